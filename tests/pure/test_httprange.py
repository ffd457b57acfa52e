"""Every judgement of an HTTP answer."""

import re
from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.device import Identity
from lazyfs.core.errors import (
    AccessDenied,
    BadAnswer,
    ImageChanged,
    LazyfsError,
    NoRanges,
    NotFound,
    ServerBusy,
    SourceError,
)
from lazyfs.sources import httprange

SIZE = 10_000
MONDAY = "Mon, 06 Jan 2025 10:00:00 GMT"
TUESDAY = "Tue, 07 Jan 2025 10:00:00 GMT"
PINNED = Identity(SIZE, '"v1"', MONDAY)

OFFSET, LENGTH = 100, 50  # what the tests of judge_answer ask for
RIGHT = {"content-range": f"bytes 100-149/{SIZE}", "content-length": "50", "etag": '"v1"'}


def answer(status: int = 206, **changes: str | None) -> dict[str, Any]:
    """A right answer to the request for OFFSET and LENGTH, changed; None takes a field away."""
    fields = RIGHT | {name.replace("_", "-"): value for name, value in changes.items()}
    return {"status": status, "headers": {k: v for k, v in fields.items() if v is not None}}


def judge(status: int, headers: dict[str, str], identity: Identity = PINNED) -> int:
    return httprange.judge_answer("img", status, headers, OFFSET, LENGTH, identity)


def test_the_request() -> None:
    assert httprange.request_headers(0, 1) == [
        ("Range", "bytes=0-0"),
        ("Accept-Encoding", "identity"),
    ]
    assert httprange.request_headers(4096, 8192)[0] == ("Range", "bytes=4096-12287")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"content_length": None},
        {"content_encoding": "identity"},
        {"content_encoding": ""},
        {"content_encoding": " Identity "},
        {"content_range": f"Bytes 100-149/{SIZE}"},
        {"content_range": f" bytes 100-149/{SIZE} "},
        {"content_type": "application/octet-stream"},
        {"last_modified": TUESDAY},  # the strong tag decides
    ],
)
def test_a_right_answer_passes(changes: dict[str, str | None]) -> None:
    assert judge(**answer(**changes)) == LENGTH


@given(st.integers(1, LENGTH), st.sampled_from([str(SIZE), "*"]))
def test_an_answer_may_be_shorter_than_asked(got: int, size: str) -> None:
    fields = {"content_range": f"bytes 100-{99 + got}/{size}", "content_length": str(got)}
    assert judge(**answer(**fields)) == got


@pytest.mark.parametrize("content_range", ["bytes 100-149/*", "BYTES 100-149/*"])
def test_a_size_that_is_left_open_is_the_known_one(content_range: str) -> None:
    assert judge(**answer(content_range=content_range)) == LENGTH
    with pytest.raises(ImageChanged):
        judge(**answer(content_range=content_range, etag='"v2"'))
    with pytest.raises(BadAnswer, match="makes no sense"):
        judge(**answer(content_range=content_range), identity=Identity(149, '"v1"'))


@pytest.mark.parametrize(
    ("changes", "result"),
    [
        ({}, SIZE),
        ({"accept_ranges": "bytes"}, SIZE),
        ({"content_length": str(SIZE - 1)}, NoRanges),
        ({"content_length": None}, NoRanges),
        ({"content_length": "x"}, NoRanges),
        ({"etag": '"v2"'}, ImageChanged),
        ({"etag": None}, ImageChanged),
        ({"content_encoding": "gzip"}, BadAnswer),
        ({"transfer_encoding": "chunked"}, BadAnswer),
    ],
)
def test_the_whole_image_may_come_as_a_200(
    changes: dict[str, str | None], result: int | type[LazyfsError]
) -> None:
    """As tornado answers when the range is all of it."""
    whole = answer(200, **{"content_range": None, "content_length": str(SIZE)} | changes)
    asked = partial(httprange.judge_answer, "img", **whole, offset=0, identity=PINNED)
    if isinstance(result, int):
        assert asked(length=SIZE) == result
    else:
        with pytest.raises(result):
            asked(length=SIZE)
    with pytest.raises(LazyfsError):
        asked(length=SIZE - 1)


@given(st.integers(0, 10**6), st.integers(1, 10**6), st.none() | st.integers(4096, 10**6))
def test_cut_ranges_are_the_whole_range_in_order(
    offset: int, length: int, most: int | None
) -> None:
    position = offset
    for start, size in httprange.cut(offset, length, most):
        assert start == position
        assert 0 < size <= (most or length)
        position += size
    assert position == offset + length


@pytest.mark.parametrize(
    ("status", "content_range", "right"),
    [
        (206, "bytes 100-149/10000", True),
        (206, "Bytes 100-120/*", True),
        (206, "bytes 1000-1049/10000", False),
        (206, "bytes 10-149/10000", False),
        (206, "", False),
        (200, "bytes 100-149/10000", False),
        (400, "", False),
    ],
)
def test_an_answer_is_told_from_that_to_another_request(
    status: int, content_range: str, right: bool
) -> None:
    wanted = httprange.request_headers(OFFSET, LENGTH)
    assert httprange.answers(wanted, status, {"content-range": content_range}) is right


BAD_RANGES = [
    None,
    "",
    "bytes",
    "100-149/10000",
    "bytes 100-149",
    "bytes */10000",
    "bytes */*",
    "bytes -149/10000",
    "bytes 100-/10000",
    "bytes -100-149/10000",
    "bytes 100--149/10000",
    "bytes 100-149/-10000",
    "bytes 149-100/10000",
    "bytes 100-149/149",  # ends beyond its own size
    "bytes 10000-10049/10000",
    "bytes 0x64-0x95/10000",
    "bytes 1e2-149/10000",
    "bytes 100.0-149/10000",
    "bytes 100-149/10000, bytes 100-149/10000",
    "bytes=100-149/10000",
    "items 100-149/10000",
    f"bytes 100-149/{httprange.MAX_SIZE + 1}",
    f"bytes {1 << 64}-{(1 << 64) + 49}/{1 << 65}",
    f"bytes 100-149/{'9' * 41}",
    f"bytes {'9' * 5000}-{'9' * 5000}/{'9' * 5000}",
    "bytes \u0661\u0660\u0660-149/10000",  # digits, but not HTTP's
]


@pytest.mark.parametrize("content_range", BAD_RANGES)
def test_a_content_range_that_says_nothing_sound(content_range: str | None) -> None:
    with pytest.raises(BadAnswer, match="img") as caught:
        judge(**answer(content_range=content_range))
    assert len(str(caught.value)) < 300
    with pytest.raises(BadAnswer):
        httprange.judge_opening("img", **answer(content_range=content_range), most=1)


@pytest.mark.parametrize("size", [httprange.MAX_SIZE + 1, 1 << 62, 1 << 63, 1 << 64, 10**30])
def test_a_size_that_nothing_holds_is_called_one(size: int) -> None:
    with pytest.raises(BadAnswer, match=f"has {size} bytes, and no more than 64 TiB"):
        opened(content_range=f"bytes 0-0/{size}")


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"content_range": f"bytes 101-149/{SIZE}"}, BadAnswer),
        ({"content_range": f"bytes 100-148/{SIZE}"}, BadAnswer),  # by its length
        ({"content_range": "bytes 101-149/*"}, BadAnswer),
        ({"content_range": "bytes 100-150/*"}, BadAnswer),
        ({"content_range": f"bytes 100-150/{SIZE}"}, BadAnswer),
        ({"content_range": f"bytes 0-49/{SIZE}"}, BadAnswer),
        ({"content_range": f"bytes 0-{SIZE - 1}/{SIZE}"}, BadAnswer),
        ({"content_range": f"bytes 100-149/{SIZE - 1}"}, ImageChanged),
        ({"content_range": f"bytes 100-149/{SIZE + 1}"}, ImageChanged),
        ({"content_length": "49"}, BadAnswer),
        ({"content_length": "51"}, BadAnswer),
        ({"content_length": "-50"}, BadAnswer),
        ({"content_length": "x"}, BadAnswer),
        ({"transfer_encoding": "chunked"}, BadAnswer),  # beside a Content-Length
        ({"etag": '"v2"'}, ImageChanged),
        ({"etag": 'W/"v1"'}, ImageChanged),
        ({"etag": None}, ImageChanged),
        ({"content_encoding": "gzip"}, BadAnswer),
        ({"content_encoding": "br"}, BadAnswer),
        ({"content_encoding": "identity, gzip"}, BadAnswer),
        ({"content_type": "multipart/byteranges; boundary=x"}, BadAnswer),
        ({"content_type": "Multipart/Byteranges;boundary=x"}, BadAnswer),
    ],
)
def test_a_206_that_is_not_what_was_asked_for(
    changes: dict[str, str | None], error: type[LazyfsError]
) -> None:
    with pytest.raises(error, match="img"):
        judge(**answer(**changes))


STATUSES = [
    (200, NoRanges),
    (201, BadAnswer),
    (204, BadAnswer),
    (304, BadAnswer),
    (400, BadAnswer),
    (401, AccessDenied),
    (403, AccessDenied),
    (404, NotFound),
    (405, BadAnswer),
    (407, AccessDenied),
    (408, ServerBusy),
    (410, NotFound),
    (425, ServerBusy),
    (429, ServerBusy),
    (451, BadAnswer),
    (501, BadAnswer),
    (505, BadAnswer),
    *((status, ServerBusy) for status in range(500, 600) if status not in (501, 505)),
    (999, ServerBusy),
]


@pytest.mark.parametrize(("status", "error"), STATUSES)
def test_other_statuses(status: int, error: type[LazyfsError]) -> None:
    for judged in (judge, lambda **a: httprange.judge_opening("img", **a, most=1)):
        with pytest.raises(error, match="img") as caught:
            judged(**answer(status))
        assert type(caught.value) is error
        assert caught.value.cure


@pytest.mark.parametrize("status", [412, 416])
def test_a_range_that_no_longer_exists_means_another_image(status: int) -> None:
    with pytest.raises(ImageChanged):
        judge(**answer(status, content_range=f"bytes */{SIZE - 5000}"))


@pytest.mark.parametrize(
    ("etag", "error"), [('"v1"', NoRanges), ('"v2"', ImageChanged), (None, ImageChanged)]
)
def test_a_whole_200_tells_a_changed_image_from_a_server_without_ranges(
    etag: str | None, error: type[LazyfsError]
) -> None:
    with pytest.raises(error):
        judge(**answer(200, content_range=None, content_length=str(SIZE), etag=etag))


# Opening


def opened(status: int = 206, most: int = 1, **fields: str) -> Identity:
    headers = {"content-range": f"bytes 0-0/{SIZE}"}
    headers |= {name.replace("_", "-"): value for name, value in fields.items()}
    identity, length = httprange.judge_opening("img", status, headers, most)
    assert length == min(most, identity.size)
    return identity


@pytest.mark.parametrize(
    ("fields", "identity"),
    [
        ({}, Identity(SIZE)),
        ({"etag": '"v1"'}, Identity(SIZE, '"v1"')),
        ({"etag": '"v1"', "last_modified": MONDAY}, PINNED),
        ({"etag": 'w/"v1"'}, Identity(SIZE)),
        ({"etag": "v1"}, Identity(SIZE)),
        ({"etag": '"v1'}, Identity(SIZE)),
        ({"etag": '"a"b"'}, Identity(SIZE)),
        ({"etag": '"v 1"'}, Identity(SIZE)),
        ({"etag": '"v1", "v2"'}, Identity(SIZE)),
        ({"etag": '""'}, Identity(SIZE, '""')),
        ({"etag": '"\xe9"'}, Identity(SIZE, '"\xe9"')),
        ({"content_range": "bytes 0-0/1"}, Identity(1)),
        ({"content_range": f"bytes 0-0/{1 << 46}"}, Identity(1 << 46)),
        ({"last_modified": MONDAY, "date": TUESDAY}, Identity(SIZE, None, MONDAY)),
        ({"last_modified": MONDAY, "date": MONDAY}, Identity(SIZE)),
        ({"etag": '"v1"', "last_modified": MONDAY, "date": MONDAY}, Identity(SIZE, '"v1"')),
    ],
)
def test_opening_learns_the_identity(fields: dict[str, str], identity: Identity) -> None:
    assert opened(**fields) == identity
    assert identity.pinned == (identity.etag is not None or identity.last_modified is not None)


def opened_by(status: int, most: int, sized: Identity | None, **fields: str) -> Any:
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    return httprange.judge_opening("img", status, headers, most, sized)


WHOLE = {"content_length": "5", "accept_ranges": "bytes", "etag": '"v1"'}


def test_opening_takes_what_comes_of_the_first_bytes() -> None:
    part = {"content_range": f"bytes 0-9/{SIZE}", "content_length": "10", "etag": '"v1"'}
    assert opened_by(206, 64, None, **part) == (Identity(SIZE, '"v1"'), 10)
    assert opened_by(200, 64, None, **WHOLE) == (Identity(5, '"v1"'), 5)
    assert opened_by(200, 5, None, **WHOLE) == (Identity(5, '"v1"'), 5)


@pytest.mark.parametrize(
    ("most", "fields", "error"),
    [
        (4, WHOLE, NoRanges),
        (64, WHOLE | {"accept_ranges": "none"}, NoRanges),
        (64, {"content_length": "5"}, NoRanges),  # it may be a page that says "log in here"
        (64, {"accept_ranges": "bytes"}, NoRanges),
        (64, WHOLE | {"content_encoding": "gzip"}, BadAnswer),
    ],
)
def test_opening_does_not_take_any_200(
    most: int, fields: dict[str, str], error: type[LazyfsError]
) -> None:
    with pytest.raises(error):
        opened_by(200, most, None, **fields)


def test_opening_with_a_size_that_had_to_be_asked_for() -> None:
    part = {"content_range": "bytes 0-9/*", "etag": '"v1"'}
    headers = {"content-range": "bytes 0-9/*"}
    assert httprange.hides_size(206, headers)
    assert not httprange.hides_size(200, headers)
    assert not httprange.hides_size(206, {"content-range": f"bytes 0-9/{SIZE}"})
    assert not httprange.hides_size(206, {"content-range": "bytes */*"})
    sized = Identity(SIZE, '"v1"')
    assert opened_by(206, 64, sized, **part) == (sized, 10)
    with pytest.raises(BadAnswer, match="does not say which part"):
        opened_by(206, 64, None, **part)
    with pytest.raises(ImageChanged):
        opened_by(206, 64, Identity(SIZE, '"v2"'), **part)


@pytest.mark.parametrize(
    ("status", "fields", "size"),
    [
        (206, {"content-range": "bytes 99-99/*"}, 100),
        (206, {"content-range": "bytes 99-99/100"}, 100),
        (200, {"content-length": "100"}, 100),
        (206, {"content-range": "bytes 90-99/*"}, None),
        (206, {"content-range": "bytes 0-0/*"}, None),
        (206, {"content-range": "bytes 99-99/99"}, None),
        (206, {"content-range": f"bytes {1 << 46}-{1 << 46}/*"}, None),
        (206, {}, None),
        (200, {}, None),
        (416, {}, None),
    ],
)
def test_the_last_byte_shows_the_size(
    status: int, fields: dict[str, str], size: int | None
) -> None:
    fields["etag"] = '"v1"'
    if size is not None:
        assert httprange.judge_size("img", status, fields) == Identity(size, '"v1"')
    else:
        with pytest.raises(SourceError):
            httprange.judge_size("img", status, fields)


def test_a_weak_tag_pins_nothing() -> None:
    for fields in ({"etag": 'W/"v1"'}, {"etag": 'W/"v1"', "last_modified": MONDAY}):
        identity = opened(**fields)
        assert identity.etag is None
        assert identity.pinned == ("last_modified" in fields)


@pytest.mark.parametrize(
    ("first", "later", "same"),
    [
        ('W/"1"', 'W/"1"', True),
        ('W/"1"', '"1"', True),  # Apache: a weak tag for a fresh file, the same as strong one later
        ('W/"1"', None, True),
        (None, 'W/"1"', True),
        ('W/"1"', 'W/"2"', False),
        ('W/"1"', '"2"', False),
        ('"1"', 'W/"1"', False),  # nobody vouches for the bytes any more
    ],
)
@pytest.mark.parametrize("dates", [{}, {"last-modified": MONDAY}])
def test_weak_tags_that_differ_are_of_two_versions(
    first: str | None, later: str | None, same: bool, dates: dict[str, str]
) -> None:
    """Although the date is the same: two versions may have been written in one second."""
    one, other = (
        httprange.identity_of(({"etag": tag} if tag else {}) | dates, SIZE)
        for tag in (first, later)
    )
    assert one.matches(other) is same


@pytest.mark.parametrize(
    ("status", "fields", "error", "says"),
    [
        (416, {"content_range": "bytes */0"}, BadAnswer, "empty"),
        (200, {"content_length": "0"}, BadAnswer, "empty"),
        (200, {"content_length": "5"}, NoRanges, "range"),
        (206, {"content_range": f"bytes 1-1/{SIZE}"}, BadAnswer, "another range"),
        (206, {"content_range": f"bytes 0-99/{SIZE}"}, BadAnswer, "another range"),
        (206, {"content_length": "2"}, BadAnswer, "sent 2 bytes for a range of 1"),
        (206, {"content_encoding": "gzip"}, BadAnswer, "gzip"),
        (206, {"content_type": "multipart/byteranges"}, BadAnswer, "multipart"),
    ],
)
def test_opening_refuses(
    status: int, fields: dict[str, str], error: type[LazyfsError], says: str
) -> None:
    with pytest.raises(error, match=says):
        opened(status, **fields)


@pytest.mark.parametrize("field", ["content_encoding", "content_length", "content_range"])
def test_no_message_repeats_what_the_server_wrote(field: str) -> None:
    """A server may send back what it was told: a login, say."""
    with pytest.raises(BadAnswer) as caught:
        opened(**{"content_range": f"bytes 0-0/{SIZE}", field: "bytes s3cret"})
    assert "s3cret" not in str(caught.value)


# Identity


@pytest.mark.parametrize(
    ("fields", "just"),
    [
        ({}, False),
        ({"date": MONDAY}, False),
        ({"last-modified": MONDAY}, False),
        ({"last-modified": MONDAY, "date": TUESDAY}, False),
        ({"last-modified": MONDAY, "date": MONDAY}, True),
    ],
)
def test_an_image_that_was_just_written(fields: dict[str, str], just: bool) -> None:
    assert httprange.just_written(fields) is just


def test_a_date_that_does_not_pin_yet_is_not_the_one_that_did() -> None:
    """Rewritten in this second, the image may still have any content."""
    identity = Identity(SIZE, None, MONDAY)
    fresh = answer(etag=None, last_modified=TUESDAY, date=TUESDAY)
    with pytest.raises(ImageChanged):
        judge(**fresh, identity=identity)


ETAGS = st.sampled_from([None, '"v1"', '"v2"'])
DATES = st.sampled_from([None, MONDAY, TUESDAY])


@pytest.mark.parametrize(
    ("first", "later", "same"),
    [
        (PINNED, PINNED, True),
        (PINNED, Identity(SIZE + 1, '"v1"', MONDAY), False),
        (PINNED, Identity(SIZE, '"v1"', TUESDAY), True),
        (PINNED, Identity(SIZE, '"v1"', None), True),
        (PINNED, Identity(SIZE, '"v2"', MONDAY), False),
        (PINNED, Identity(SIZE, None, MONDAY), False),
        (Identity(SIZE, None, MONDAY), PINNED, True),  # Apache: a weak tag, a strong one later
        (Identity(SIZE, None, MONDAY), Identity(SIZE, None, TUESDAY), False),
        (Identity(SIZE, None, MONDAY), Identity(SIZE, '"v1"', None), False),
        (Identity(SIZE), PINNED, True),
        (Identity(SIZE), Identity(SIZE + 1), False),
    ],
)
def test_matching(first: Identity, later: Identity, same: bool) -> None:
    assert first.matches(later) is same


@given(etag=ETAGS, date=DATES, later_etag=ETAGS, later_date=DATES, growth=st.integers(-1, 1))
def test_an_answer_passes_exactly_when_it_is_of_the_same_identity(
    etag: str | None, date: str | None, later_etag: str | None, later_date: str | None, growth: int
) -> None:
    identity = Identity(SIZE, etag, date)
    later = answer(
        content_range=f"bytes 100-149/{SIZE + growth}", etag=later_etag, last_modified=later_date
    )
    if identity.matches(Identity(SIZE + growth, later_etag, later_date)):
        judge(**later, identity=identity)
    else:
        with pytest.raises(ImageChanged):
            judge(**later, identity=identity)


# Retry-After


@pytest.mark.parametrize(
    ("fields", "seconds"),
    [
        ({}, None),
        ({"retry-after": "0"}, 0.0),
        ({"retry-after": "120"}, 120.0),
        ({"retry-after": " 7 "}, 7.0),
        ({"retry-after": TUESDAY, "date": MONDAY}, 86400.0),
        ({"retry-after": MONDAY, "date": TUESDAY}, 0.0),
        ({"retry-after": TUESDAY}, None),
        ({"retry-after": TUESDAY, "date": "today"}, None),
        ({"retry-after": "Tue, 07 Jan 2025 10:00:00 -0000", "date": MONDAY}, None),
        ({"retry-after": "-5"}, None),
        ({"retry-after": "1.5"}, None),
        ({"retry-after": "soon"}, None),
        ({"retry-after": "\u00b2"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_retry_after(fields: dict[str, str], seconds: float | None) -> None:
    assert httprange.retry_after(fields) == seconds


def test_a_huge_retry_after_stays_a_number() -> None:
    assert 1e8 <= (httprange.retry_after({"retry-after": "9" * 400}) or 0) < 1e9


@given(value=st.text(max_size=40), date=st.sampled_from(["", MONDAY]))
def test_no_retry_after_breaks_the_judge(value: str, date: str) -> None:
    delay = httprange.retry_after({"retry-after": value, "date": date})
    assert delay is None or 0 <= delay < 1e12


@pytest.mark.parametrize("status", [429, 503, 507, 509, 522, 530])
def test_a_busy_server_says_when(status: int) -> None:
    with pytest.raises(ServerBusy) as caught:
        judge(**answer(status, retry_after="30"))
    assert caught.value.retry_after == 30.0


# Redirects

URL = "https://host/dir/a.iso?x=1"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize(
    ("location", "target"),
    [
        ("https://other/b.iso", "https://other/b.iso"),
        ("http://other:8080/b.iso?sig=%2F", "http://other:8080/b.iso?sig=%2F"),
        ("/b.iso", "https://host/b.iso"),
        ("b.iso", "https://host/dir/b.iso"),
        ("../b.iso", "https://host/b.iso"),
        ("//other/b.iso", "https://other/b.iso"),
        ("?y=2", "https://host/dir/a.iso?y=2"),
    ],
)
def test_redirects(status: int, location: str, target: str) -> None:
    assert httprange.redirect_target("img", URL, status, {"location": location}) == target


@pytest.mark.parametrize(
    "location",
    [
        None,
        "",
        "ftp://other/b.iso",
        "file:///etc/passwd",
        "javascript:alert(1)",
        "data:,x",
        "https://[::1/b.iso",  # an address without its end
        "https://other:99999/b.iso",
        "https://other:x/b.iso",
        "https:///b.iso",
        "https://",
    ],
)
def test_redirects_to_nowhere(location: str | None) -> None:
    headers = {} if location is None else {"location": location}
    with pytest.raises(BadAnswer, match="img"):
        httprange.redirect_target("img", URL, 302, headers)


@pytest.mark.parametrize("status", [200, 206, 300, 304, 305, 306, 404, 500])
def test_no_redirect(status: int) -> None:
    headers = {"location": "https://other/b.iso"}
    assert httprange.redirect_target("img", URL, status, headers) is None


@pytest.mark.parametrize("status", range(200, 600))
def test_a_target_that_refuses_or_is_out_of_order_has_failed(status: int) -> None:
    refused = status in (400, 401, 403, 404, 410, 451)
    assert httprange.is_failed_target(status) == (refused or status >= 500)


# All of it

FIELDS = ["content-range", "content-length", "content-encoding", "content-type"]
FIELDS += ["etag", "last-modified", "retry-after", "date", "location"]
VALUES = st.text(max_size=30) | st.sampled_from([*RIGHT.values(), MONDAY, "gzip", "5"])


@given(
    status=st.sampled_from([200, 206, 301, 404, 416, 503]) | st.integers(100, 599),
    headers=st.dictionaries(st.sampled_from(FIELDS), VALUES),
)
def test_nothing_but_source_errors_comes_of_any_answer(
    status: int, headers: dict[str, str]
) -> None:
    try:
        got = judge(status, headers)
    except SourceError:
        pass
    else:
        assert status == 206
        said = re.sub(r"\s", "", headers["content-range"]).lower()
        assert said.rpartition("/")[0] == f"bytes100-{99 + got}"
        assert 0 < got <= LENGTH
        assert headers["etag"] == '"v1"'
    try:
        identity, _ = httprange.judge_opening("img", status, headers, 1)
    except SourceError:
        pass
    else:
        assert status == 206
        assert 0 < identity.size <= httprange.MAX_SIZE


@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (418, {}, "a.iso: the server answered with status 418; check the URL"),
        (
            206,
            {"content-type": "multipart/byteranges; boundary=x"},
            (
                "a.iso: the server answers one range with a multipart body; tell whoever runs the "
                "server"
            ),
        ),
    ],
)
def test_an_answer_that_cannot_be_used_is_said_to_whom(
    status: int, headers: dict[str, str], said: str
) -> None:
    with pytest.raises(BadAnswer) as caught:
        httprange.judge_opening("a.iso", status, headers, 1)
    assert str(caught.value) == said

"""Every judgement of an HTTP answer."""

import re
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


def judge(status: int, headers: dict[str, str], identity: Identity = PINNED) -> None:
    httprange.judge_answer("img", status, headers, OFFSET, LENGTH, identity)


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
    judge(**answer(**changes))


BAD_RANGES = [
    None,
    "",
    "bytes",
    "100-149/10000",
    "bytes 100-149",
    "bytes 100-149/*",  # which size?
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
        ({"content_range": f"bytes 100-148/{SIZE}"}, BadAnswer),
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
    (500, ServerBusy),
    (501, BadAnswer),
    (502, ServerBusy),
    (503, ServerBusy),
    (504, ServerBusy),
    (505, BadAnswer),
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
    return httprange.judge_opening("img", status, headers, most)


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


@pytest.mark.parametrize("status", [429, 503])
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
        judge(status, headers)
    except SourceError:
        pass
    else:
        assert status == 206
        assert re.sub(r"\s", "", headers["content-range"]).lower() == f"bytes100-149/{SIZE}"
        assert headers["etag"] == '"v1"'
    try:
        identity = httprange.judge_opening("img", status, headers, 1)
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

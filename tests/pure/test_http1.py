"""HTTP/1.1 on the wire: requests to the byte, and every shape of a head.

Each head is parsed whole, byte by byte, and with the beginning of a body behind it: however TCP
cuts what a server says, the outcome is the same.
"""

from urllib.parse import unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core import address
from lazyfs.core.errors import BadAnswer
from lazyfs.sources import http1
from lazyfs.sources.http1 import MAX_HEAD, Head

BODIES = [b"", b"x", b"\r\n", b"\r\n\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"\0\xff" * 1000]


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([*lines, b"", b""])


def parsed(raw: bytes) -> Head:
    """What a whole head says, however it is cut and whatever follows it."""
    for length in range(len(raw)):
        assert http1.parse_head(raw[:length]) is None
    whole = http1.parse_head(raw)
    assert whole is not None
    assert whole[1] == len(raw)
    for body in BODIES:
        assert http1.parse_head(raw + body) == whole
        assert http1.parse_head(bytearray(raw + body)) == whole
    return whole[0]


def refused(raw: bytes) -> BadAnswer:
    """The error for a malformed head: raised when it is whole, and never taken back before."""
    for length in range(len(raw)):
        try:
            assert http1.parse_head(raw[:length]) is None
        except BadAnswer:
            for rest in (raw[: length + 1], raw, raw + b"x"):
                with pytest.raises(BadAnswer):
                    http1.parse_head(rest)
            break
    with pytest.raises(BadAnswer) as caught:
        http1.parse_head(raw)
    for body in BODIES:
        with pytest.raises(BadAnswer):
            http1.parse_head(raw + body)
    return caught.value


# Requests


def test_a_request_to_the_byte() -> None:
    fields = [("User-Agent", "lazyfs/1"), ("Range", "bytes=0-0"), ("X", "")]
    assert http1.request("host:8080", "/a%20b?c=d", fields) == (
        b"GET /a%20b?c=d HTTP/1.1\r\n"
        b"Host: host:8080\r\n"
        b"User-Agent: lazyfs/1\r\n"
        b"Range: bytes=0-0\r\n"
        b"X: \r\n"
        b"\r\n"
    )


def test_a_request_without_fields_has_its_host() -> None:
    assert http1.request("[::1]", "/", []) == b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n"


@pytest.mark.parametrize("name", ["Host", "host", "HOST"])
def test_a_host_that_was_named_stands_in_for_the_urls_own(name: str) -> None:
    raw = http1.request("127.0.0.1", "/", [("X", "y"), (name, "mirror.test")])
    assert raw == f"GET / HTTP/1.1\r\nX: y\r\n{name}: mirror.test\r\n\r\n".encode()


# Targets


@pytest.mark.parametrize(
    ("url", "target"),
    [
        ("http://host/", "/"),
        ("http://host/d/a.iso", "/d/a.iso"),
        ("http://host/a%20b.iso", "/a%20b.iso"),
        ("http://host/a%2Fb%2fc", "/a%2Fb%2fc"),
        ("http://host/\u20ac.iso", "/%E2%82%AC.iso"),
        ("http://host/\xe9", "/%C3%A9"),
        ("http://host/a+b~c-d_e.f", "/a+b~c-d_e.f"),
        ("http://host/a:b@c;d,e=f!$&'()*", "/a:b@c;d,e=f!$&'()*"),
        ('http://host/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("http://host/?a=b&c=d;e", "/?a=b&c=d;e"),
        ("http://host/a?b?c/d:e@f+g", "/a?b?c/d:e@f+g"),
        ("http://host/a?sig=x%2By%3D%3D", "/a?sig=x%2By%3D%3D"),
        ("http://host/a?\u20ac|", "/a?%E2%82%AC%7C"),
        ("http://host/a#fragment", "/a"),
        ("http://host/a?b#c?d", "/a?b"),
        ("http://user:pw@host:81/a", "/a"),
        ("http://[::1]:80/a", "/a"),
        ("http://host", "/"),
        ("http://host?a=b", "/?a=b"),
    ],
)
def test_on_the_wire(url: str, target: str) -> None:
    assert address.on_the_wire(address.bare(url)) == target


PATHS = st.text(st.characters(categories=["L", "N", "P", "S"], exclude_characters="?#%"))


@given(path=PATHS, query=PATHS)
def test_any_target_can_stand_in_a_request_line_and_keeps_its_meaning(
    path: str, query: str
) -> None:
    target = address.on_the_wire(f"http://host/{path}?q{query}")
    assert target.isascii()
    assert target.isprintable()
    assert " " not in target
    assert unquote(target) == f"/{path}?q{query}"
    assert address.on_the_wire(f"http://host{target}") == target


# Heads that are well-formed


def test_a_usual_head() -> None:
    answer = parsed(
        head(
            b"HTTP/1.1 206 Partial Content",
            b"Server: nginx/1.22.1",
            b"Date: Mon, 06 Jan 2025 10:00:00 GMT",
            b"Content-Length: 4096",
            b'ETag: "677ba3e0-100000"',
            b"Content-Range: bytes 0-4095/1048576",
        )
    )
    assert answer == Head(
        206,
        {
            "server": "nginx/1.22.1",
            "date": "Mon, 06 Jan 2025 10:00:00 GMT",
            "content-length": "4096",
            "etag": '"677ba3e0-100000"',
            "content-range": "bytes 0-4095/1048576",
        },
        4096,
        keep=True,
    )


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"HTTP/1.1 200 OK", 200),
        (b"HTTP/1.1 200 ", 200),
        (b"HTTP/1.1 200", 200),
        (b"HTTP/1.1 206 Partial  Content: \t\xe4\xff", 206),
        (b"HTTP/1.0 404 Not Found", 404),
        (b"HTTP/1.1 999 ?", 999),
        (b"HTTP/1.1 100 Continue", 100),
    ],
)
def test_status_lines(line: bytes, status: int) -> None:
    assert parsed(head(line)).status == status
    assert parsed(head(line)).headers == {}


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        (b"A: b", "a", "b"),
        (b"A:b", "a", "b"),
        (b"A: \t b c \t ", "a", "b c"),
        (b"A:", "a", ""),
        (b"A: ", "a", ""),
        (b"A: :", "a", ":"),
        (b"A: b: c", "a", "b: c"),
        (b"ETaG: x", "etag", "x"),
        (b"!#$%&'*+-.^_`|~09: x", "!#$%&'*+-.^_`|~09", "x"),
        (b"A: \xe9\xff", "a", "\xe9\xff"),
        (b"A: b\tc", "a", "b\tc"),
    ],
)
def test_fields(line: bytes, name: str, value: str) -> None:
    assert parsed(head(b"HTTP/1.1 200 OK", line)).headers == {name: value}


def test_repeated_fields_are_joined_in_order() -> None:
    answer = parsed(head(b"HTTP/1.1 200 OK", b"Via: a", b"X: 1", b"VIA: b", b"via:", b"Via: c"))
    assert answer.headers == {"via": "a, b, , c", "x": "1"}


def test_many_fields() -> None:
    lines = [b"X-%d: %d" % (number, number) for number in range(200)]
    assert len(parsed(head(b"HTTP/1.1 200 OK", *lines)).headers) == 200


# How long the body is


@pytest.mark.parametrize(
    ("fields", "length"),
    [
        ([b"Content-Length: 0"], 0),
        ([b"Content-Length: 1"], 1),
        ([b"content-length:  0042 "], 42),
        ([b"Content-Length: " + b"9" * 18], 10**18 - 1),
        ([b"Content-Length: " + b"9" * 19], None),
        ([b"Content-Length: " + b"9" * 5000], None),
        ([], None),
        ([b"Content-Length:"], None),
        ([b"Content-Length: -1"], None),
        ([b"Content-Length: +1"], None),
        ([b"Content-Length: 1.0"], None),
        ([b"Content-Length: 1e3"], None),
        ([b"Content-Length: 0x10"], None),
        ([b"Content-Length: 1_000"], None),
        ([b"Content-Length: 1 0"], None),
        ([b"Content-Length: \xb2"], None),  # a superscript 2
        ([b"Content-Length: x"], None),
        ([b"Content-Length: 5", b"Content-Length: 5"], None),
        ([b"Content-Length: 5", b"Content-Length: 6"], None),
        ([b"Content-Length: 5, 5"], None),
        ([b"Transfer-Encoding: chunked"], None),
        ([b"Transfer-Encoding: chunked", b"Content-Length: 5"], None),
        ([b"Content-Length: 5", b"Transfer-Encoding: identity"], None),
        ([b"Content-Length: 5", b"Transfer-Encoding:"], None),
    ],
)
def test_the_length_is_known_only_where_it_is_simply_counted(
    fields: list[bytes], length: int | None
) -> None:
    answer = parsed(head(b"HTTP/1.1 206 Partial Content", *fields))
    assert answer.length == length
    assert answer.keep


@pytest.mark.parametrize("status", [100, 101, 102, 103, 199])
def test_an_interim_answer_has_no_body_whatever_it_says(status: int) -> None:
    answer = parsed(head(b"HTTP/1.1 %d x" % status, b"Content-Length: 5"))
    assert (answer.status, answer.length) == (status, None)


@pytest.mark.parametrize(
    ("status", "interim"),
    [(100, True), (101, False), (102, True), (103, True), (199, True), (200, False), (206, False)],
)
def test_an_interim_answer_has_another_behind_it(status: int, interim: bool) -> None:
    """101 has not: after it another protocol would be spoken, which nobody asked for."""
    assert parsed(head(b"HTTP/1.1 %d x" % status)).interim is interim


# Whether the connection goes on


@pytest.mark.parametrize(
    ("version", "fields", "keep"),
    [
        (b"1.1", [], True),
        (b"1.1", [b"Connection: keep-alive"], True),
        (b"1.1", [b"Connection: Keep-Alive, TE"], True),
        (b"1.1", [b"Connection:"], True),
        (b"1.1", [b"Connection: close"], False),
        (b"1.1", [b"CONNECTION: Close"], False),
        (b"1.1", [b"Connection: TE, close"], False),
        (b"1.1", [b"Connection: TE", b"Connection: close"], False),
        (b"1.0", [], False),
        (b"1.0", [b"Connection: close"], False),
        (b"1.0", [b"Connection: keep-alive"], False),  # not HTTP/1.1's, so not relied on
    ],
)
def test_whether_the_connection_can_be_used_again(
    version: bytes, fields: list[bytes], keep: bool
) -> None:
    answer = parsed(head(b"HTTP/" + version + b" 206 x", b"Content-Length: 5", *fields))
    assert answer.keep is keep
    assert answer.length == 5


# What is no HTTP


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"HTTP/1.1",
        b"HTTP/1.1 ",
        b"HTTP/1.1 20",
        b"HTTP/1.1 2000 OK",
        b"HTTP/1.1 20x OK",
        b"HTTP/1.1 099 OK",
        b"HTTP/1.1 -20 OK",
        b"HTTP/1.1 200OK",
        b"HTTP/1.1  200 OK",
        b"HTTP/1.1\t200 OK",
        b"HTTP/1.1 200 \0",
        b"HTTP/1.1 200 a\rb",
        b"HTTP/1.1 200 a\nb",
        b"HTTP/1.2 200 OK",
        b"HTTP/2 200 OK",
        b"HTTP/2.0 200 OK",
        b"HTTP/0.9 200 OK",
        b"HTTP/11 200 OK",
        b"http/1.1 200 OK",
        b" HTTP/1.1 200 OK",
        b"\nHTTP/1.1 200 OK",
        b"ICY 200 OK",
        b"SSH-2.0-OpenSSH_9.2",
        b"220 ftp.example.org ready",
        b"<!DOCTYPE html>",
        b"GET / HTTP/1.1",
        b"\x15\x03\x01\x00\x02\x02\x50",  # a TLS alert
    ],
)
def test_malformed_status_lines(line: bytes) -> None:
    assert "not HTTP" in str(refused(head(line, b"Content-Length: 5")))


@pytest.mark.parametrize(
    "line",
    [
        b"no colon",
        b": no name",
        b" A: space before it",
        b"\tfolded, as long ago",
        b"A : space before the colon",
        b"A\t: tab before the colon",
        b"A b: space within",
        b"\xe4: not ASCII",
        b"A(b): no token",
        b'"A": no token',
        b"A\0: x",
        b"A: x\0y",
        b"A: \x01",
        b"A: x\x1b[31m",
        b"A: x\x7f",
        b"A: x\ry",
        b"A: x\nB: y",
        b"A: x\r",
        b"A: x\n",
        b"\n",
    ],
)
def test_malformed_fields(line: bytes) -> None:
    for lines in ([line], [b"Content-Length: 5", line], [line, b"Content-Length: 5"]):
        assert "malformed" in str(refused(head(b"HTTP/1.1 206 x", *lines)))


def test_tls_is_told_by_its_name() -> None:
    for record in (b"\x15\x03\x01\0\x02\x02\x50", b"\x16\x03\x03\0\x7a\x02"):
        assert "https://" in str(refused(record))


@pytest.mark.parametrize("raw", [b"SSH-2", b"\0\0\0\0\0", b"http/", b"HTTP:"])
def test_what_does_not_begin_as_http_is_refused_at_once(raw: bytes) -> None:
    assert http1.parse_head(raw[:4]) is None
    with pytest.raises(BadAnswer, match="not HTTP"):
        http1.parse_head(raw)


def test_no_message_repeats_what_the_server_sent() -> None:
    for raw in (head(b"S3CRET"), head(b"HTTP/1.1 200 OK", b"S3CRET")):
        assert "S3CRET" not in str(refused(raw))


# Heads without an end


def padded(length: int) -> bytes:
    """A well-formed head whose last empty line begins at ``length``."""
    start = b"HTTP/1.1 206 x\r\nX: "
    return start + b"x" * (length - len(start)) + b"\r\n\r\n"


def test_the_longest_head() -> None:
    raw = padded(MAX_HEAD)
    for cut in range(MAX_HEAD - 2, MAX_HEAD + 1):
        assert http1.parse_head(raw[:cut]) is None
    whole = http1.parse_head(raw)
    assert whole is not None
    assert whole[1] == MAX_HEAD + 4
    assert http1.parse_head(raw + b"x" * 300_000) == whole


def test_the_longest_head_does_not_depend_on_where_it_is_cut() -> None:
    raw = padded(MAX_HEAD)
    for cut in range(MAX_HEAD + 1, MAX_HEAD + 4):
        assert http1.parse_head(raw[:cut]) is None


@pytest.mark.parametrize(
    "raw", [padded(MAX_HEAD + 1), padded(MAX_HEAD + 1)[:-1], b"HTTP/1.1 " + b"2" * (1 << 20)]
)
def test_an_endless_head(raw: bytes) -> None:
    with pytest.raises(BadAnswer, match="has no end"):
        http1.parse_head(raw)


# Whatever comes


def judged(raw: bytes) -> object:
    """What came of ``raw``, which is one of three things."""
    try:
        found = http1.parse_head(raw)
    except BadAnswer:
        return BadAnswer
    if found is None:
        return None
    answer, taken = found
    assert raw[:taken].endswith(b"\r\n\r\n")
    assert 100 <= answer.status <= 999
    assert answer.length is None or 0 <= answer.length < 10**18
    assert all(name == name.lower() and name.isascii() and name for name in answer.headers)
    assert not any(c in value for value in answer.headers.values() for c in "\r\n\0")
    return found


@given(st.binary(max_size=300))
def test_any_bytes(raw: bytes) -> None:
    judged(raw)
    judged(b"HTTP/1.1 206 x\r\n" + raw + b"\r\n\r\n")


LINES = (b"HTTP/1.1 206 x", b"Content-Length: 5", b"Transfer-Encoding: chunked", b"a: b")
MARKS = (b"\r\n", b"\r\n\r\n", b"\r", b"\n", b":", b" ", b"\0", b"\xff")
PIECES = st.sampled_from([*LINES, *MARKS])


@given(st.lists(PIECES, max_size=12).map(b"".join), st.binary(max_size=20))
def test_a_verdict_is_final(raw: bytes, more: bytes) -> None:
    """Once there is one, nothing that comes later changes it."""
    verdict = judged(raw)
    if verdict is not None:
        assert judged(raw + more) == verdict


TOKENS = st.text("abcXYZ019-_!~", min_size=1, max_size=8)
CONTROLS = "".join(map(chr, [*range(9), *range(10, 32), 127]))
VALUES = st.text(st.characters(max_codepoint=255, exclude_characters=CONTROLS), max_size=20)


@given(
    status=st.integers(200, 999),
    fields=st.dictionaries(TOKENS.map(str.lower), VALUES, max_size=8),
    body=st.binary(max_size=20),
)
def test_what_is_well_formed_comes_out_as_it_went_in(
    status: int, fields: dict[str, str], body: bytes
) -> None:
    lines = [f"{name}: {value}".encode("latin-1") for name, value in fields.items()]
    raw = head(b"HTTP/1.1 %d x" % status, *lines)
    found = http1.parse_head(raw + body)
    assert found is not None
    assert found[0].status == status
    assert found[0].headers == {name: value.strip(" \t") for name, value in fields.items()}
    assert found[1] == len(raw)


def test_a_head_without_an_end_is_said_to_have_none() -> None:
    endless = b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * MAX_HEAD
    with pytest.raises(BadAnswer) as caught:
        http1.parse_head(endless)
    assert str(caught.value) == (
        "the header of the server's answer has no end; tell whoever runs the server"
    )

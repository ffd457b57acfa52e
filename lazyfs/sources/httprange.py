"""HTTP range requests: building them, and judging their answers. Pure.

Every answer is judged before any byte of it is used. The rules, by RFC 9110:

- a 206 must begin where the requested range does, and not go on behind it (section 14.4); it may
  be shorter (section 15.3.7);
- it says the image's size, or leaves it open: then the size is the one that is known;
- a 200 is right if the range was the whole image, and length and validators fit; else it means that
  the server does not support ranges, and its body is never read;
- identity is the strong entity tag, else Last-Modified (section 8.8), always with the size; it is
  compared on each answer, so that two versions of an image never mix;
- an answer in a content coding has other offsets than the image, and is refused (section 8.4).

Messages never repeat a server's text, since it may contain a secret.

``If-Range`` is not sent: a changed image would then be sent as a whole 200, whereas comparing the
validators of a 206 detects the change for the price of a header.
"""

import re
from collections.abc import Mapping, Sequence
from email.utils import parsedate_to_datetime
from urllib.parse import urljoin

from lazyfs.core import address
from lazyfs.core.device import Identity
from lazyfs.core.errors import (
    AccessDenied,
    BadAnswer,
    ImageChanged,
    NoRanges,
    NotFound,
    ServerBusy,
    SourceError,
    UsageError,
)

Headers = Mapping[str, str]  # names in lower case; values decoded as Latin-1, a byte each

# 64 TiB, for which the bitmap of a cache takes 256 MiB (in blocks of 32 KiB). A larger size is a
# mistake or an attack.
MAX_SIZE = 1 << 46
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REFUSED = frozenset({401, 403})  # the credentials were refused
# Refusals that another target of the redirect may not give. 400: S3 gives it for an expired token.
_REFUSED_THERE = frozenset({400, 401, 403, 404, 410, 451})

_CONTENT_RANGE = re.compile(
    r"bytes (?:(\d{1,40})-(\d{1,40})|\*)/(\d{1,40}|\*)", re.IGNORECASE | re.ASCII
)
_LENGTH = re.compile(r"\d{1,18}", re.ASCII)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress"})
_BUSY = frozenset({408, 425, 429})
_NEVER = frozenset({501, 505})  # the method or the protocol is not supported: no waiting cures that


def request_headers(offset: int, length: int) -> list[tuple[str, str]]:
    """The header fields of a request for ``length`` bytes at ``offset``."""
    return [("Range", f"bytes={offset}-{offset + length - 1}"), ("Accept-Encoding", "identity")]


def cut(offset: int, length: int, most: int | None) -> list[tuple[int, int]]:
    """A range (offset, length) in parts of at most ``most`` bytes; None for no limit."""
    step, stop = most or length, offset + length
    return [(start, min(step, stop - start)) for start in range(offset, stop, step)]


# The last byte: where it is shows the size of an image.
THE_LAST_BYTE = [("Range", "bytes=-1"), ("Accept-Encoding", "identity")]


def judge_opening(
    image: str, status: int, headers: Headers, most: int, sized: Identity | None = None
) -> tuple[Identity, int]:
    """Judge the answer to a request for the first ``most`` bytes of the image.

    Returns the image's identity, and the number of bytes in the answer. ``image``: its name in
    messages. ``sized``: the identity by ``judge_size``. Raises a SourceError.
    """
    if is_empty(status, headers):
        raise BadAnswer(f"{image} is empty", "check the URL")
    whole = _whole(status, headers)
    # Without a word of ranges, it may as well be a page for people.
    if whole is not None and whole <= most and headers.get("accept-ranges", "").lower() == "bytes":
        _judge_form(image, headers)
        return identity_of(headers, whole), whole
    _judge_status(image, status, headers)
    first, last, size = _content_range(image, headers, None if sized is None else sized.size)
    if first != 0 or last >= most:
        raise BadAnswer(f"{image}: the server sent another range than the one asked for")
    _judge_length(image, headers, last + 1)
    identity = identity_of(headers, size)
    if sized is not None and not sized.matches(identity):
        raise _changed(image)
    return identity, last + 1


def hides_size(status: int, headers: Headers) -> bool:
    """Whether a 206 leaves the size of the image open (RFC 9110 section 14.4)."""
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    return status == 206 and match is not None and match[1] is not None and match[3] == "*"


def judge_size(image: str, status: int, headers: Headers) -> Identity:
    """The image's identity, from the answer to a request for its last byte.

    Raises a SourceError.
    """
    whole = _whole(status, headers)
    if whole:
        return identity_of(headers, whole)
    _judge_status(image, status, headers)
    match = _CONTENT_RANGE.fullmatch(headers.get("content-range", "").strip())
    last = int(match[2]) if match and match[1] and match[1] == match[2] else 0
    # An image of one byte is less likely than a server that answers with the first one.
    size = _content_range(image, headers, last + 1 if last else None)[2]
    return identity_of(headers, size)


def is_empty(status: int, headers: Headers) -> bool:
    """Whether the answer to a request for the first byte says that the image is empty."""
    return status == 416 or (status == 200 and headers.get("content-length") == "0")


def judge_answer(
    image: str, status: int, headers: Headers, offset: int, length: int, identity: Identity
) -> int:
    """Accept only an answer with these bytes, or the first of them, of exactly this image.

    Returns how many. Raises a SourceError.
    """
    if status in (412, 416):
        raise _changed(image)
    if status == 200 and not identity.matches(identity_of(headers, identity.size)):
        raise _changed(image)
    if _whole(status, headers) == length == identity.size:
        _judge_form(image, headers)
        return length
    _judge_status(image, status, headers)
    first, last, size = _content_range(image, headers, identity.size)
    if not identity.matches(identity_of(headers, size)):
        raise _changed(image)
    if first != offset or last >= offset + length:
        raise BadAnswer(
            f"{image}: asked for bytes {offset} to {offset + length - 1}, "
            f"the server sent {first} to {last}"
        )
    _judge_length(image, headers, last + 1 - first)
    return last + 1 - first


def answers(wanted: Sequence[tuple[str, str]], status: int, headers: Headers) -> bool:
    """Whether this is the 206 to a request with these fields, by its first byte."""
    first = dict(wanted)["Range"].removeprefix("bytes=").partition("-")[0]
    return status == 206 and headers.get("content-range", "").lower().startswith(f"bytes {first}-")


def identity_of(headers: Headers, size: int) -> Identity:
    """The identity of the image according to these header fields.

    A strong entity tag alone decides; a weak one says nothing about bytes (RFC 9110 section
    8.8.1), so Last-Modified is used instead.
    """
    etag = headers.get("etag", "")
    date = None if just_written(headers) else headers.get("last-modified")
    if _ETAG.fullmatch(etag):
        return Identity(size, etag, date)
    weak = etag.removeprefix("W/")
    return Identity(size, None, date, weak if _ETAG.fullmatch(weak) else None)


def just_written(headers: Headers) -> bool:
    """Whether the image was last modified in the very second of this answer.

    It may be modified again before that second is over, so the date does not pin it yet (RFC 9110
    section 8.8.2.2). A server must not send a date in the future, so the two are equal then.
    """
    return headers.get("last-modified", "") == headers.get("date")


def redirect_target(image: str, url: str, status: int, headers: Headers) -> str | None:
    """The absolute URL that a redirect of ``url`` leads to; None if this is no redirect.

    Many servers leave spaces and letters that are not ASCII unescaped, and mean them.

    Raises BadAnswer for a redirect without a valid target.
    """
    if status not in REDIRECTS:
        return None
    sent = headers.get("location")
    if not sent:
        raise BadAnswer(f"{image}: the server redirects without saying where to")
    location = address.escaped(sent.encode("latin-1", "ignore"))
    try:
        # urljoin takes "https:///x" for relative; by RFC 3986 it is absolute, and without a host.
        target = location if _ABSOLUTE.match(location) else urljoin(url, location)
        address.parse(target)
    except (ValueError, UsageError) as error:
        raise BadAnswer(
            f"{image}: the server redirects to something that is no HTTP URL"
        ) from error
    return target


def is_failed_target(status: int) -> bool:
    """Whether a redirect's target has expired or is out of order: another one may be good."""
    return status in _REFUSED_THERE or _is_server_error(status)


def retry_after(headers: Headers) -> float | None:
    """Seconds to wait by Retry-After (RFC 9110 section 10.2.3); None if absent or invalid.

    A date is compared with the server's own Date, so that the local clock does not matter.
    """
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value[:9])
    try:
        until = parsedate_to_datetime(value)
        return max(0.0, (until - parsedate_to_datetime(headers.get("date", ""))).total_seconds())
    except (ValueError, TypeError, OverflowError):
        return None


def _judge_status(image: str, status: int, headers: Headers) -> None:
    """Accept a 206 with one plain byte range; raise the SourceError for any other answer."""
    if status != 206:
        raise _refusal(image, status, headers)
    _judge_form(image, headers)


def _whole(status: int, headers: Headers) -> int | None:
    """The size of the image if it was sent as a whole, and counted."""
    announced = headers.get("content-length", "")
    return int(announced) if status == 200 and _LENGTH.fullmatch(announced) else None


def _judge_form(image: str, headers: Headers) -> None:
    """Accept a body that is a part of the image, byte for byte."""
    if "transfer-encoding" in headers and "content-length" in headers:
        raise BadAnswer(f"{image}: the server says in two ways how long its answer is")
    coding = headers.get("content-encoding", "identity").strip().lower()
    if coding not in ("identity", ""):
        shown = repr(coding) if coding in _CODINGS else "that it names"
        raise BadAnswer(
            f"{image}: the server sends it in the content coding {shown}",
            "switch compression off for this file on the server",
        )
    if headers.get("content-type", "").lower().startswith("multipart/byteranges"):
        raise BadAnswer(f"{image}: the server answers one range with a multipart body")


def _is_server_error(status: int) -> bool:
    """Whether the fault is the server's; so are codes above 599 (RFC 9110 section 15)."""
    return status >= 500


def _is_busy(status: int) -> bool:
    """Whether the same request may succeed later."""
    return status in _BUSY or (_is_server_error(status) and status not in _NEVER)


def _refusal(image: str, status: int, headers: Headers) -> SourceError:
    """The error for a status other than 206."""
    if status == 200:
        return NoRanges(
            f"{image}: the server does not support range requests",
            "download the file, or serve it with one that does (nginx, Apache, lighttpd)",
        )
    if status in (401, 407):
        return AccessDenied(
            f"{image}: the server wants a login (status {status})",
            "give one with --netrc, --header 'Authorization: ...' or https://USER:PASSWORD@HOST/",
        )
    if status == 403:
        return AccessDenied(f"{image}: access is forbidden (status 403)")
    if status in (404, 410):
        return NotFound(f"{image}: no such file on the server (status {status})", "check the URL")
    if _is_busy(status):
        return ServerBusy(
            f"{image}: the server cannot answer now (status {status})",
            "try again later",
            retry_after(headers),
        )
    return BadAnswer(f"{image}: the server answered with status {status}", "check the URL")


def _content_range(image: str, headers: Headers, known: int | None) -> tuple[int, int, int]:
    """First byte, last byte and complete size from Content-Range (RFC 9110 section 14.4).

    ``known``: the size that holds where that field leaves it open.
    """
    value = headers.get("content-range", "").strip()
    match = _CONTENT_RANGE.fullmatch(value)
    if value and not match:
        raise BadAnswer(f"{image}: the server's Content-Range makes no sense")
    said = match and (known if match[3] == "*" else int(match[3]))
    if not match or match[1] is None or said is None:
        raise BadAnswer(f"{image}: the server does not say which part of how much it sends")
    first, last, size = int(match[1]), int(match[2]), said
    if not first <= last < size:
        raise BadAnswer(f"{image}: the server's Content-Range makes no sense: {value!r}")
    if size > MAX_SIZE:
        raise BadAnswer(
            f"{image}: the server says that it has {size} bytes, and no more than "
            f"{MAX_SIZE >> 40} TiB can be handled",
            "check the URL",
        )
    return first, last, size


def _judge_length(image: str, headers: Headers, length: int) -> None:
    announced = headers.get("content-length", str(length))
    if announced == str(length):
        return
    how_many = announced if announced.isascii() and announced.isdigit() else "uncounted"
    raise BadAnswer(f"{image}: the server sent {how_many[:40]} bytes for a range of {length}")


def _changed(image: str) -> ImageChanged:
    return ImageChanged(
        f"{image} has changed on the server since it was opened",
        "unmount it and mount it again to use the new version",
    )

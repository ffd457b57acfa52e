"""HTTP range requests: building them, and judging their answers. Pure.

Every answer is judged before any byte of it is used. The rules, by RFC 9110:

- a 206 must carry exactly the requested range, and the image's size (section 14.4);
- a 200 to a ranged request means that the server does not support ranges: its body is never read;
- identity is the strong entity tag, else Last-Modified (section 8.8), always with the size; it is
  compared on each answer, so that two versions of an image never mix;
- an answer in a content coding has other offsets than the image, and is refused (section 8.4).

Messages never repeat a server's text, since it may contain a secret.

``If-Range`` is not sent: a changed image would then be sent as a whole 200, whereas comparing the
validators of a 206 detects the change for the price of a header.
"""

import re
from collections.abc import Mapping
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

Headers = Mapping[str, str]  # names in lower case

# 64 TiB, for which the bitmap of a cache takes 256 MiB (in blocks of 32 KiB). A larger size is a
# mistake or an attack.
MAX_SIZE = 1 << 46
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REFUSED = frozenset({401, 403})  # the credentials were refused
# Answers of a redirect's target that has expired or is out of order.
FAILED_TARGET = frozenset({403, 404, 410, 500, 502, 503, 504})

_CONTENT_RANGE = re.compile(
    r"bytes (?:(\d{1,40})-(\d{1,40})|\*)/(\d{1,40}|\*)", re.IGNORECASE | re.ASCII
)
_ABSOLUTE = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_ETAG = re.compile(r'"[\x21\x23-\x7e\x80-\xff]*"')
_CODINGS = frozenset({"gzip", "x-gzip", "deflate", "br", "zstd", "compress"})
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504})


def request_headers(offset: int, length: int) -> list[tuple[str, str]]:
    """The header fields of a request for ``length`` bytes at ``offset``."""
    return [("Range", f"bytes={offset}-{offset + length - 1}"), ("Accept-Encoding", "identity")]


def judge_opening(image: str, status: int, headers: Headers, most: int) -> Identity:
    """The identity of the image, from the answer to a request for its first ``most`` bytes.

    A shorter image must be sent as a whole. ``image``: its name in messages. Raises a SourceError.
    """
    if is_empty(status, headers):
        raise BadAnswer(f"{image} is empty", "check the URL")
    _judge_status(image, status, headers)
    first, last, size = _content_range(image, headers)
    length = min(most, size)
    if (first, last) != (0, length - 1):
        raise BadAnswer(f"{image}: the server sent another range than the one asked for")
    _judge_length(image, headers, length)
    return identity_of(headers, size)


def is_empty(status: int, headers: Headers) -> bool:
    """Whether the answer to a request for the first byte says that the image is empty."""
    return status == 416 or (status == 200 and headers.get("content-length") == "0")


def judge_answer(
    image: str, status: int, headers: Headers, offset: int, length: int, identity: Identity
) -> None:
    """Accept only an answer with exactly these bytes of exactly this image.

    Raises a SourceError.
    """
    if status in (412, 416):
        raise _changed(image)
    if status == 200 and not identity.matches(identity_of(headers, identity.size)):
        raise _changed(image)
    _judge_status(image, status, headers)
    first, last, size = _content_range(image, headers)
    if not identity.matches(identity_of(headers, size)):
        raise _changed(image)
    if (first, last) != (offset, offset + length - 1):
        raise BadAnswer(
            f"{image}: asked for bytes {offset} to {offset + length - 1}, "
            f"the server sent {first} to {last}"
        )
    _judge_length(image, headers, length)


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

    Raises BadAnswer for a redirect without a valid target.
    """
    if status not in REDIRECTS:
        return None
    location = headers.get("location")
    if not location:
        raise BadAnswer(f"{image}: the server redirects without saying where to")
    try:
        # urljoin takes "https:///x" for relative; by RFC 3986 it is absolute, and without a host.
        target = location if _ABSOLUTE.match(location) else urljoin(url, location)
        address.parse(target)
    except (ValueError, UsageError) as error:
        raise BadAnswer(
            f"{image}: the server redirects to something that is no HTTP URL"
        ) from error
    return target


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
    if status in _BUSY:
        return ServerBusy(
            f"{image}: the server cannot answer now (status {status})",
            "try again later",
            retry_after(headers),
        )
    return BadAnswer(f"{image}: the server answered with status {status}", "check the URL")


def _content_range(image: str, headers: Headers) -> tuple[int, int, int]:
    """First byte, last byte and complete size from Content-Range (RFC 9110 section 14.4)."""
    value = headers.get("content-range", "").strip()
    match = _CONTENT_RANGE.fullmatch(value)
    if value and not match:
        raise BadAnswer(f"{image}: the server's Content-Range makes no sense")
    if not match or match[1] is None or match[3] == "*":
        raise BadAnswer(f"{image}: the server does not say which part of how much it sends")
    first, last, size = int(match[1]), int(match[2]), int(match[3])
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

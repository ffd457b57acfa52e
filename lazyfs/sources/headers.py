"""Parsing and checking header fields that a user adds to requests. Pure."""

import re

from lazyfs.core.errors import UsageError

Field = tuple[str, str]  # a name and a value

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")

# Fields that request ranges, frame answers, and control connections.
# (The user may set Host, as with curl: it is sent to the URL's own host only.)
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def parse_header(text: str, what: str = "a --header") -> Field:
    """Parse ``"Name: value"``. ``what``: where it was written. Raises UsageError.

    No message repeats the value, which may be a secret.
    """
    name, colon, value = text.partition(":")
    if not colon or not _NAME.fullmatch(name):
        raise UsageError(f"{what} is no header field", "write it as 'Name: value'")
    if name.lower() in _OURS:
        raise UsageError(f"{what} cannot set {name}: it belongs to lazyfs", "leave it out")
    return name, parse_value(value)


def parse_headers(text: str, what: str) -> tuple[Field, ...]:
    """Parse one field per line; empty lines and those that begin with ``#`` are skipped.

    Raises UsageError.
    """
    lines = (line.strip() for line in text.splitlines())
    return tuple(parse_header(line, what) for line in lines if line and line[0] != "#")


def parse_value(text: str) -> str:
    """Strip and check a field's value (RFC 9110 section 5.5). Raises UsageError."""
    value = text.strip(" \t")
    if not all(c.isprintable() or c == "\t" for c in value) or not value.isascii():
        raise UsageError("a header has characters that cannot be sent", "leave them out")
    return value

"""URLs of images: what is secret in them, and what may be shown. Pure.

A login in a URL (``user:password@``) and the values of a query (signed URLs carry their signature
there) are secrets: they are sent to the server and kept out of everything else.
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from lazyfs.core.errors import UsageError

_PORTS = {"http": 80, "https": 443, "nbd": 10809, "nbds": 10809}
_HTTP = ("http", "https")
_UNIX = ("nbd+unix", "nbds+unix")
_BRACKETED = re.compile(r"\[[0-9A-Fa-f:.]+(%[^\[\]]+)?\](:\d*)?")  # an IPv6 address, and a port
_FIELD = re.compile(r"([^&;=]*=)?[^&;]+")  # of a query: a name, if it has one, and a value
_SAFE = "%/:?#[]@!$&'()*+,;=~"  # RFC 3986 section 2.2, and what is escaped already


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: where credentials may go (RFC 6454)."""

    scheme: str
    host: str
    port: int

    def may_share(self, other: "Origin") -> bool:
        """Whether what is told to this origin may be told to ``other``.

        The same origin, or the same host when plain HTTP on its own port has been upgraded.
        """
        upgraded = (self.scheme, self.port, other.scheme, other.port) == ("http", 80, "https", 443)
        return self == other or (upgraded and self.host == other.host)


def parse(url: str) -> SplitResult:
    """Split the URL of an image. Raises UsageError for what is none."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise UsageError(f"{shown(url)} is not a URL", "check its spelling") from error
    if parts.scheme not in (*_PORTS, *_UNIX):
        raise UsageError(
            f"{shown(url)}: {parts.scheme or 'this'} is not a kind of URL that lazyfs reads",
            "give an http://, https:// or nbd:// URL",
        )
    named = parts.scheme in _UNIX or _is_host(parts)
    if not named or any(c.isspace() or not c.isprintable() for c in url):
        raise UsageError(f"{shown(url)} is not a URL", "check its spelling and quoting")
    return parts


def is_nbd(url: str) -> bool:
    """Whether an NBD server has the image, and not one of HTTP."""
    return parse(url).scheme not in _HTTP


def origin(url: str) -> Origin:
    """Raises UsageError for a URL that is not one of HTTP."""
    parts = parse(url)
    if parts.scheme not in _HTTP:
        raise UsageError(f"{shown(url)} is not a URL of HTTP", "give an http:// or https:// URL")
    return Origin(parts.scheme, parts.hostname or "", parts.port or _PORTS[parts.scheme])


def login(url: str) -> tuple[str, str] | None:
    """User and password from the URL, decoded; None when it has none."""
    parts = parse(url)
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def bare(url: str) -> str:
    """``url`` without login and fragment: what goes into a request."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, _host_port(parts.netloc), parts.path or "/", parts.query, ""))


def on_the_wire(url: str) -> str:
    """Path and query as they stand in a request line; what may not stand there is escaped."""
    parts = urlsplit(url)
    query = f"?{quote(parts.query, _SAFE)}" if parts.query else ""
    return quote(parts.path, _SAFE) + query


def shown(url: str) -> str:
    """``url`` with nothing secret in it: for messages, logs, ``mount``, metadata.

    Of what is no URL, next to nothing is shown: nobody can tell what in it is secret. (A password
    with an unescaped slash makes one: it looks like a port.)
    """
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        return "..."
    if not parts.netloc:
        return "..." if "@" in url else url
    query = _FIELD.sub(lambda field: f"{field[1] or ''}...", parts.query)
    return urlunsplit(
        (parts.scheme, _host_port(parts.netloc), parts.path, query if parts.query else "", "")
    )


def cache_key(url: str) -> str:
    """A name for the image's cache: the same for the same image, whoever logs in.

    The query counts, since it may select the image, but only its hash is in the name.
    """
    digest = hashlib.sha256(bare(url).encode()).hexdigest()[:16]
    return f"{_cut(file_name(url), 128)}-{digest}"


def file_name(url: str) -> str:
    """What the image is called in a directory: the last part of the path, or else the host.

    Never empty, ``.`` or ``..``, never with a slash, a control character or over 255 bytes.
    """
    parts = parse(url)
    last = unquote(parts.path.rstrip("/").rpartition("/")[2], errors="replace")
    for name in (last, parts.hostname or ""):
        safe = _cut("".join(c if c.isprintable() and c != "/" else "_" for c in name), 255)
        if safe not in ("", ".", ".."):
            return safe
    return "image"


def with_ending(url: str, ending: str) -> str:
    """The URL of the file beside the image whose name is the image's with this ending."""
    parts = parse(url)
    return urlunsplit(parts._replace(path=parts.path + ending))


def _is_host(parts: SplitResult) -> bool:
    """Whether a URL names a host that can be looked up (labels by RFC 1035 section 2.3.4)."""
    authority = _host_port(parts.netloc)
    if "[" in authority or "]" in authority:
        return bool(_BRACKETED.fullmatch(authority))
    labels = (parts.hostname or "").removesuffix(".").split(".")
    return all(0 < len(label) < 64 for label in labels)


def _cut(name: str, most: int) -> str:
    """As many whole characters of ``name`` as fit into ``most`` bytes of UTF-8."""
    return name.encode()[:most].decode(errors="ignore")


def _host_port(netloc: str) -> str:
    return netloc.rpartition("@")[2]

"""URLs of images: parsing them, and hiding their secrets. Pure.

A login in a URL (``user:password@``) and the values of a query (signed URLs carry their signature
there) are secrets: they are sent to the server and kept out of everything else.

The fragment, which is never sent, names the layers on top of the image: ``#part=2``. It is read
from left to right: words separated by commas, each a name or ``name=value``, percent-encoded
(RFC 3986 section 2.1). A ``#`` in a file name is written ``%23``.
"""

import hashlib
import re
from dataclasses import dataclass
from urllib.parse import SplitResult, quote, unquote, urlsplit, urlunsplit

from lazyfs.core.errors import UsageError

_PORTS = {"http": 80, "https": 443, "nbd": 10809, "nbds": 10809}
LONGEST_NAME = 255  # bytes of a file's name

HTTP = ("http", "https")
_UNIX = ("nbd+unix", "nbds+unix")
NBD = ("nbd", "nbds", *_UNIX)
# An IPv6 address, perhaps with a zone (RFC 6874), and a port.
_BRACKETED = re.compile(r"\[[0-9A-Fa-f:.]+(%[\w.~-]+)?\](:\d*)?", re.ASCII)
_FIELD = re.compile(r"([^&;=]*=)?[^&;]+")  # of a query: an optional name, and a value
_PLAIN = ":/+"  # unescaped in a word of a fragment, besides letters and digits
_TO_AUTHORITY = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*:)?//[^/?#]*")  # what precedes a path
_SAFE = "%/:?#[]@!$&'()*+,;=~"  # RFC 3986 section 2.2, and "%" of existing escapes


@dataclass(frozen=True)
class Origin:
    """Scheme, host and port: where credentials may go (RFC 6454).

    ``host``: as it is looked up; an IPv6 address with its zone, ``fe80::1%eth0``.
    """

    scheme: str
    host: str
    port: int

    @property
    def certified(self) -> str:
        """The host as others know it: a zone means something on this machine only."""
        return self.host.partition("%")[0]

    @property
    def field(self) -> str:
        """The value of the Host field (RFC 9110 section 7.2), without a default port."""
        host = f"[{self.certified}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"

    def may_share(self, other: "Origin") -> bool:
        """Whether credentials for this origin may be sent to ``other``.

        True for the same origin, and for an upgrade from HTTP to HTTPS on the default ports of the
        same host.
        """
        upgraded = (self.scheme, self.port, other.scheme, other.port) == ("http", 80, "https", 443)
        return self == other or (upgraded and self.host == other.host)


def parse(url: str) -> SplitResult:
    """Split the URL of an image. Raises UsageError if it is invalid."""
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


def scheme(url: str) -> str:
    """The scheme of an image's URL, like ``"https"``. Raises UsageError."""
    return parse(url).scheme


def origin(url: str) -> Origin:
    """The origin of an HTTP URL. Raises UsageError for other URLs."""
    parts = parse(url)
    if parts.scheme not in HTTP:
        raise UsageError(f"{shown(url)} is not a URL of HTTP", "give an http:// or https:// URL")
    return Origin(parts.scheme, host(parts), parts.port or _PORTS[parts.scheme])


def host(parts: SplitResult) -> str:
    """The host of a URL, as it is looked up; "" for none.

    The zone of an IPv6 address is written ``%25eth0`` (RFC 6874), or ``%eth0``, as curl takes too.
    """
    name, percent, zone = (parts.hostname or "").partition("%")
    if ":" not in name or not percent:
        return parts.hostname or ""
    return f"{name}%{zone.removeprefix('25') or zone}"


def login(url: str) -> tuple[str, str] | None:
    """User and password from the URL, decoded; None if it has none."""
    parts = parse(url)
    if parts.username is None:
        return None
    return unquote(parts.username), unquote(parts.password or "")


def bare(url: str) -> str:
    """``url`` without login and fragment, as used in requests."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, _host_port(parts.netloc), parts.path or "/", parts.query, ""))


def on_the_wire(url: str) -> str:
    """Path and query for a request line; invalid characters are escaped."""
    parts = urlsplit(url)
    query = f"?{quote(parts.query, _SAFE)}" if parts.query else ""
    return quote(parts.path, _SAFE) + query


def escaped(reference: bytes) -> str:
    """A URL or a relative reference, with the characters escaped that must be.

    Escaped bytes stay as they were sent. A host is decoded, since it has an encoding of its own.
    """
    try:
        text, encoding = reference.decode(), "utf-8"
    except UnicodeDecodeError:
        text, encoding = reference.decode("latin-1"), "latin-1"
    host_end = _TO_AUTHORITY.match(text)
    start = host_end.end() if host_end else 0
    return text[:start] + quote(text[start:], _SAFE, encoding)


def shown(url: str) -> str:
    """``url`` without its secrets: for messages, logs, ``mount``, metadata.

    An invalid URL is hidden almost entirely, since any part of it may be secret. (A password with
    an unescaped slash makes a URL invalid: it looks like a port.) The fragment is left out too: it
    may be the rest of a password with an unescaped ``#``. An opened image adds its own chain.
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


def split_fragment(where: str) -> tuple[str, str]:
    """A URL or a path without its fragment, and the fragment ("" for none)."""
    base, _, fragment = where.partition("#")
    return base, fragment


def words_of(fragment: str) -> list[tuple[str, str]]:
    """The words of a fragment, decoded: names and values ("" for none)."""
    found = []
    for word in fragment.split(",") if fragment else ():
        name, _, value = word.partition("=")
        found.append((unquote(name), unquote(value)))
    return found


def quoted(value: str) -> str:
    """``value``, quoted for a fragment."""
    return quote(value, _PLAIN)


def cache_key(url: str) -> str:
    """A name for the cache of the image's bytes: the same for all logins and all views.

    The query counts, since it may select the image, but only its hash is in the name.
    """
    digest = hashlib.sha256(bare(url).encode()).hexdigest()[:16]
    return f"{cut(file_name(url), 128)}-{digest}"


def file_name(url: str) -> str:
    """The image's name in a directory: the last part of the path, or else the host.

    Never empty, ``.`` or ``..``, never with a slash, a control character or over 255 bytes.
    """
    parts = parse(url)
    last = unquote(parts.path.rstrip("/").rpartition("/")[2], errors="replace")
    for name in (last, parts.hostname or ""):
        safe = cut("".join(c if c.isprintable() and c != "/" else "_" for c in name), LONGEST_NAME)
        if safe not in ("", ".", ".."):
            return safe
    return "image"


def with_ending(url: str, ending: str) -> str:
    """The URL of a sidecar: the image's name plus ``ending``."""
    parts = parse(url)
    return urlunsplit(parts._replace(path=parts.path + ending, fragment=""))


def _is_host(parts: SplitResult) -> bool:
    """Whether a URL has a valid host name (labels by RFC 1035 section 2.3.4) or address."""
    authority = _host_port(parts.netloc)
    if "[" in authority or "]" in authority:
        return bool(_BRACKETED.fullmatch(authority))
    labels = (parts.hostname or "").removesuffix(".").split(".")
    return all(0 < len(label) < 64 for label in labels)


def cut(name: str, most: int) -> str:
    """As many whole characters of ``name`` as fit into ``most`` bytes of UTF-8."""
    return name.encode()[:most].decode(errors="ignore")


def _host_port(netloc: str) -> str:
    return netloc.rpartition("@")[2]

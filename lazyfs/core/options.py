"""User options as frozen values; parsing and formatting sizes and durations. Pure."""

import re
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path

from lazyfs.core.errors import UsageError

KIB = 1024
MIB = 1024 * KIB

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_SIZE = re.compile(r"(\d{1,18})([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_DURATION = re.compile(r"(\d{1,9}(?:\.\d{1,9})?)(ms|s|m|h|d)?", re.IGNORECASE | re.ASCII)
_SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001, "m": 60.0, "h": 3600.0, "d": 86400.0}

CACHE_ENDINGS = (
    ".sums",
    ".json",
    ".lock",
    ".claim",
    ".catalog",
)  # of files beside a data file that the user named

MIN_BLOCK_SIZE = 4 * KIB
MAX_BLOCK_SIZE = MIB
SMALLEST_CACHE = 16 * MIB

_BUSY = 4  # bandwidth-delay products ahead of a reader that keep the link busy


def parse_size(text: str) -> int:
    """Bytes from ``"4096"``, ``"64K"``, ``"1M"``, ``"10GiB"``: powers of 1024, as in losetup.

    Raises UsageError.
    """
    match = _SIZE.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a size", "write it like 65536, 64K or 1M")
    return int(match[1]) * _UNITS[match[2].lower()]


def parse_duration(text: str) -> float:
    """Seconds from ``"60"``, ``"1.5s"``, ``"200ms"``, ``"2m"``, ``"1h"``, ``"30d"``.

    Raises UsageError.
    """
    match = _DURATION.fullmatch(text.strip())
    if not match:
        raise UsageError(f"{text!r} is not a duration", "write it like 60, 1.5s, 200ms or 2m")
    return float(match[1]) * _SECONDS[(match[2] or "").lower()]


def parse_block_size(text: str) -> int:
    """A power of two from 4 KiB to 1 MiB. Raises UsageError."""
    size = parse_size(text)
    if not is_block_size(size):
        raise UsageError(f"block size {text!r} cannot be used", "give a power of two from 4K to 1M")
    return size


def parse_cache_size(text: str) -> int:
    """Bytes, at least 16 MiB. Raises UsageError."""
    size = parse_size(text)
    if size < SMALLEST_CACHE:
        raise UsageError(f"a cache of {text} is too small to be of use", "give at least 16M")
    return size


def is_block_size(size: int) -> bool:
    return MIN_BLOCK_SIZE <= size <= MAX_BLOCK_SIZE and not size & (size - 1)


def format_size(size: int) -> str:
    """``size`` bytes in human-readable form: ``"1.5 MiB"``."""
    value = float(size)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if value < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


class Prefetch(Enum):
    """Prefetch beyond the preloads that the user names."""

    NONE = "none"  # nothing: not a byte beyond the blocks that were read
    METADATA = "metadata"  # read-ahead of sequential readers, and a filesystem's tables
    AUTO = "auto"  # that, and what lies around a miss, as far as it proves useful
    EAGER = "eager"  # the same, four times as wide


@dataclass(frozen=True)
class ReadAheadLimit:
    """How far to read ahead: ``seconds`` of the link's throughput, or ``size`` bytes.

    At least what keeps the link busy, unless a size is given. ``most``: upper limit in bytes,
    because more could not be kept.
    """

    seconds: float = 0.25
    size: int | None = None
    most: int | None = None

    def bytes_at(self, rate: float, bandwidth_delay: int = 0) -> int:
        """The limit in bytes at ``rate`` bytes per second (0: not known yet).

        ``bandwidth_delay``: bytes that the link carries in one round trip.
        """
        if self.size is not None:
            wanted = self.size
        elif rate:
            wanted = max(MIB, int(self.seconds * rate), _BUSY * bandwidth_delay)
        else:
            wanted = 4 * MIB
        return wanted if self.most is None else min(wanted, self.most)


def parse_readahead(text: str) -> ReadAheadLimit:
    """``"4s"`` or ``"500ms"``: seconds of throughput; ``"8M"``, ``"0"``: a size.

    Raises UsageError.
    """
    if text.strip().lower().endswith("s"):
        return ReadAheadLimit(seconds=parse_duration(text))
    return ReadAheadLimit(size=parse_size(text))


def parse_rate(text: str) -> float:
    """Bytes per second from ``"10M/s"``, ``"500K"``. Raises UsageError."""
    try:
        rate = parse_size(text.strip().removesuffix("/s"))
    except UsageError:
        rate = 0
    if rate < 1:
        raise UsageError(f"{text!r} is not a rate", "write it like 10M/s")
    return float(rate)


@dataclass(frozen=True)
class ServerOptions:
    """How to talk to servers.

    ``stall``: seconds to wait for a silent server.
    ``headers``: fields for each request.
    ``header_files``: files with more fields, one per line.
    ``header_command``: a shell command that prints more fields.
    """

    connections: int = 4
    stall: float = 15.0
    headers: tuple[tuple[str, str], ...] = ()
    header_files: tuple[Path, ...] = ()
    header_command: str | None = None
    netrc: bool = False
    user_agent: str = ""
    proxy: str | None = None
    cacert: Path | None = None
    insecure: bool = False
    insecure_redirects: bool = False


class OnChange(Enum):
    """What to do with a cache if the server has another version of the image."""

    REFETCH = "refetch"  # drop it
    FAIL = "fail"  # keep it, and fail


@dataclass(frozen=True)
class CacheOptions:
    """Where blocks are kept, and how many.

    ``files``: a (bitmap, data) pair that the user named, instead of a cache in ``directory``.
    ``block_size``: bytes; None for that of the existing cache, or else the default.
    ``limit``: bytes that ``directory`` may take; None for no limit.
    ``min_free``: bytes that must stay free on its disk; None for no limit.
    ``must_exist``: whether a missing cache is an error.
    """

    directory: Path
    files: tuple[Path, Path] | None = None
    memory_only: bool = False
    block_size: int | None = None
    limit: int | None = None
    min_free: int | None = None
    on_change: OnChange = OnChange.REFETCH
    must_exist: bool = False


@dataclass(frozen=True)
class ImageOptions:
    """One image.

    ``url``: with the layers in its fragment.
    ``name``: of its file.
    ``choose_partition``: whether a partitioned image without layers means its only partition with
    a filesystem.
    """

    url: str
    name: str
    server: ServerOptions = field(default_factory=ServerOptions)
    choose_partition: bool = False


@dataclass(frozen=True)
class PreloadOptions:
    """What to preload, and what to record for the next run.

    ``patterns``: of paths in an ISO image.
    ``profile``: a file, or ``AUTO`` for the sidecar of the image on its server.
    ``any_version``: whether to use the profile even if it is of another version of the image.
    ``record``: the file for a new profile.
    """

    patterns: tuple[str, ...] = ()
    profile: Path | None = None
    any_version: bool = False
    record: Path | None = None


AUTO = Path("auto")

EACH_REQUEST = 5  # a log level below DEBUG: a line for each request


@dataclass(frozen=True)
class LogOptions:
    level: int
    file: Path | None = None
    json: bool = False


@dataclass(frozen=True, kw_only=True)
class StackOptions:
    """How images are fetched and cached. ``timeout``: seconds until a read fails; 0 for never."""

    images: tuple[ImageOptions, ...]
    cache: CacheOptions
    timeout: float = 60.0
    readahead: ReadAheadLimit = field(default_factory=ReadAheadLimit)
    prefetch: Prefetch = Prefetch.AUTO
    fill: bool = False
    rate: float | None = None  # limit for the fill, in bytes per second
    nbd_fixed: bool = False  # whether the user vouches that exports never change
    preload: PreloadOptions = field(default_factory=PreloadOptions)


@dataclass(frozen=True, kw_only=True)
class DaemonOptions(StackOptions):
    """Images that a daemon serves until it is ended.

    ``system``: whether a root filesystem will be on them; see ``system/rootstorage.py``.
    """

    log: LogOptions
    foreground: bool = False
    system: bool = False


@dataclass(frozen=True, kw_only=True)
class MountOptions(DaemonOptions):
    """One mount."""

    mountpoint: Path
    browse: bool = False  # whether to show the tree in the image, not the image
    fuse: tuple[str, ...] = ()  # options passed unchanged to the kernel or to fusermount3


@dataclass(frozen=True)
class TlsOptions:
    """TLS for a server: certificates or pre-shared keys.

    ``certificates``: a directory with the certificates, named as in nbdkit and qemu.
    ``verify_peer``: whether clients need one too.
    ``keys``: used instead of certificates: a file with lines ``NAME:KEY``, keys in hexadecimal, as
    psktool(1) writes them.
    """

    certificates: Path | None = None
    verify_peer: bool = False
    keys: Path | None = None

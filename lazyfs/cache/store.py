"""Where the blocks of one image are kept: on disk, or in memory.

A disk cache is four files (and a lock)::

    data       sparse, as long as the image
    bitmap     one bit a block (``bitmap.py``): which blocks of ``data`` are meant to be there
    sums       8 bytes a block, little-endian: XXH3-64 of the block, seeded with the image's
               identity and the block's number; sparse
    meta.json  format, URL without secrets, identity, size, block size
    lock       held (flock) by the one daemon that uses the cache; names its process

**The crash rule.** A set bit is a claim, not a proof. Before a block is served for the first time
after opening, it is read back and compared with its checksum; a block that fails is dropped and
fetched again. So no write has to wait for another: a bit that reached the disk before its data, a
torn page, a rotten sector and a file of another version all fail the comparison (the seed keeps a
right block in the wrong place, or of the wrong image, from passing).

Bits are written when a request ends, so a killed daemon loses at most what was under way; all is
synced every few seconds, so a power cut loses no more than those.

A block of zeros has a checksum like any other, so a hole in ``sums`` vouches for nothing.

XXH3 and not CRC-32: 64 bits, a seed, and 22 GB/s against 4 GB/s on the machine of the first
measurements; a 64 KiB block costs 3 microseconds where reading it costs 20.

What was rejected: one checksum file with the bit inside it (ULOOP's tools could not read the
bitmap); a journal (a second copy of state that the checksums make unnecessary); serving from an
``mmap`` of ``data`` (a failing disk becomes SIGBUS).
"""

import contextlib
import fcntl
import itertools
import json
import logging
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Container, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import xxhash

from lazyfs.cache.bitmap import PAGE, Bitmap, padded_bytes
from lazyfs.device import Identity
from lazyfs.errors import CacheBusy, CacheError
from lazyfs.options import CACHE_ENDINGS, is_block_size
from lazyfs.ranges import Span, bytes_of

log = logging.getLogger(__name__)

FORMAT = 1
_SUM = 8  # bytes of a checksum
_SEED_MASK = (1 << 64) - 1

Pages = list[tuple[int, bytes]]  # of the bitmap: number and content


class Store(Protocol):
    """Keeps the bytes of blocks. Which blocks are present is the plan's to know."""

    block_size: int
    present: Bitmap  # the blocks found at opening; the plan owns it from then on

    def verify(self, blocks: Span) -> list[int]:
        """Those of these present blocks that may not be served, because they are damaged."""
        ...

    def read(self, span: Span) -> bytes:
        """The bytes of a span (bytes) whose blocks are present and verified."""
        ...

    def put(self, block: int, content: bytes | memoryview) -> None:
        """Keep whole blocks from ``block`` on. Raises OSError."""
        ...

    def evict(self, held: Container[int]) -> list[int]:
        """Keep to the limit; returns the blocks that went for it, none of them in ``held``."""
        ...

    def note(self, pages: Pages) -> None:
        """Write these pages of the bitmap; from then on they survive the end of this process.

        Raises OSError.
        """
        ...

    def sync(self) -> None:
        """Make all that was written survive a power cut. Runs in a thread. Raises OSError."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class CachePaths:
    """The files of one image's cache."""

    data: Path
    bitmap: Path
    sums: Path
    meta: Path
    lock: Path
    foreign: bool = False  # the user named the files: they may be something else than a cache

    @classmethod
    def in_directory(cls, directory: Path) -> "CachePaths":
        data, bitmap, sums, meta, lock = (
            directory / name for name in ("data", "bitmap", "sums", "meta.json", "lock")
        )
        return cls(data, bitmap, sums, meta, lock)

    @classmethod
    def named(cls, bitmap: Path, data: Path) -> "CachePaths":
        """Two files that the user named; the others stand beside the data."""
        sums, meta, lock = (data.with_name(data.name + ending) for ending in CACHE_ENDINGS)
        return cls(data, bitmap, sums, meta, lock, foreign=True)


class CacheLock:
    """The right to use a cache, for as long as this is open."""

    def __init__(self, path: Path, patience: float = 2.0) -> None:
        """Take the lock, waiting ``patience`` seconds for a daemon that is just ending.

        Raises CacheBusy or CacheError.
        """
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise CacheError(
                f"the cache directory {path.parent} cannot be used: {error.strerror}",
                "name another with --cache-dir, or use --no-cache",
            ) from error
        until = time.monotonic() + patience
        while not self._try():
            if time.monotonic() > until:
                holder = os.pread(self._fd, 32, 0).decode(errors="replace").strip() or "unknown"
                os.close(self._fd)
                raise CacheBusy(
                    f"the cache {path.parent} is in use by another lazyfs (process {holder})",
                    "use its mount, name another place with --cache-dir, or use --no-cache",
                )
            time.sleep(0.05)
        if not _HOLDER.fullmatch(os.pread(self._fd, 32, 0)):
            self.close()
            raise CacheError(f"{path} exists and is no lock of lazyfs", "name another cache")
        os.ftruncate(self._fd, 0)
        os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def _try(self) -> bool:
        try:
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_HOLDER = re.compile(rb"(\d{1,10}\n)?")  # what a lock file holds


@dataclass(frozen=True)
class Meta:
    """What ``meta.json`` says."""

    url: str
    identity: Identity
    block_size: int

    def save(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "url": self.url,
            "identity": asdict(self.identity),
            "block_size": self.block_size,
        }
        partial = path.with_name(path.name + ".new")
        with _private(partial) as file:
            file.write(json.dumps(content, indent=2) + "\n")
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)

    @classmethod
    def load(cls, path: Path) -> "Meta | None":
        """None when there is none, or none that can be understood."""
        try:
            content = json.loads(path.read_text())
            if content["format"] != FORMAT:
                log.warning("%s is of another format; the cache is started afresh", path)
                return None
            return cls._checked(content)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            log.warning("%s cannot be used (%s); the cache is started afresh", path, error)
            return None

    @classmethod
    def _checked(cls, content: Any) -> "Meta":
        """Raises ValueError, KeyError or TypeError for what ``save`` did not write."""
        identity, block_size = Identity(**content["identity"]), content["block_size"]
        if type(block_size) is not int or not is_block_size(block_size):
            raise ValueError(f"block size {block_size!r}")
        if type(identity.size) is not int or identity.size <= 0:
            raise ValueError(f"size {identity.size!r}")
        for validator in (identity.etag, identity.last_modified):
            if not isinstance(validator, str | None):
                raise TypeError(f"validator {validator!r}")
        return cls(str(content["url"]), identity, block_size)


class DiskStore:
    """A cache on disk."""

    def __init__(self, paths: CachePaths, lock: CacheLock, meta: Meta) -> None:
        """Open the cache that ``meta`` describes, or make it; see ``open_disk_store``."""
        self.block_size = meta.block_size
        self._size = meta.identity.size
        blocks = -(-self._size // self.block_size)
        self._lock = lock
        self._seed = _seed(meta.identity)
        self._fds: list[int] = []
        try:
            self._data = self._open(paths.data, self._size)
            self._sums = self._open(paths.sums, blocks * _SUM)
            self._bitmap = self._open(paths.bitmap, padded_bytes(blocks))
            self.present = _load_bitmap(self._bitmap, blocks)
        except OSError as error:
            self.close()
            raise CacheError(
                f"the cache file {error.filename or paths.data} cannot be used: {error.strerror}",
                "name another place with --cache-dir, or use --no-cache",
            ) from error
        self._verified = Bitmap(blocks)

    def verify(self, blocks: Span) -> list[int]:
        return [b for b in self._verified.missing(blocks) if not self._check(b)]

    def read(self, span: Span) -> bytes:
        return _pread(self._data, span)

    def put(self, block: int, content: bytes | memoryview) -> None:
        _pwrite(self._data, content, block * self.block_size)
        sums = b"".join(self._sum(b, piece) for b, piece in _cut(block, content, self.block_size))
        _pwrite(self._sums, sums, block * _SUM)
        for number in range(block, block + len(sums) // _SUM):
            self._verified.add(number)

    def evict(self, held: Container[int]) -> list[int]:  # noqa: ARG002
        return []

    def note(self, pages: Pages) -> None:
        for number, content in pages:
            _pwrite(self._bitmap, content, number * PAGE)

    def sync(self) -> None:
        for fd in (self._data, self._sums, self._bitmap):
            os.fdatasync(fd)

    def close(self) -> None:
        for fd in self._fds:
            os.close(fd)
        self._fds.clear()
        self._lock.close()

    def _open(self, path: Path, length: int) -> int:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self._fds.append(fd)
        if os.fstat(fd).st_size != length:
            os.ftruncate(fd, length)
        return fd

    def _check(self, block: int) -> bool:
        """Compare a block with its checksum; remember that it was right."""
        try:
            content = self.read(bytes_of(Span(block, block + 1), self.block_size, self._size))
            good = _pread(self._sums, Span(block * _SUM, (block + 1) * _SUM)) == self._sum(
                block, content
            )
        except OSError as error:
            log.warning("block %d of the cache cannot be read: %s", block, error.strerror)
            good = False
        if good:
            self._verified.add(block)
        return good

    def _sum(self, block: int, content: bytes | memoryview) -> bytes:
        seed = (self._seed + block) & _SEED_MASK
        return xxhash.xxh3_64_intdigest(content, seed).to_bytes(_SUM, "little")


class MemoryStore:
    """Blocks in memory only, the least recently used going first.

    At most ``limit`` bytes, and what readers are waiting for: a read that needs more than the limit
    would never end otherwise.
    """

    def __init__(self, size: int, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.present = Bitmap(-(-size // block_size))
        self._most = max(1, limit // block_size)
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def verify(self, blocks: Span) -> list[int]:  # noqa: ARG002
        return []

    def read(self, span: Span) -> bytes:
        pieces = []
        position = span.start
        while position < span.stop:
            block, skip = divmod(position, self.block_size)
            self._blocks.move_to_end(block)
            piece = self._blocks[block][skip : skip + span.stop - position]
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)

    def put(self, block: int, content: bytes | memoryview) -> None:
        for number, piece in _cut(block, content, self.block_size):
            self._blocks[number] = bytes(piece)

    def evict(self, held: Container[int]) -> list[int]:
        excess = len(self._blocks) - self._most
        if excess <= 0:
            return []
        gone = list(itertools.islice((b for b in self._blocks if b not in held), excess))
        for block in gone:
            del self._blocks[block]
        return gone

    def note(self, pages: Pages) -> None:
        """Memory ends with the process."""

    def sync(self) -> None:
        """Memory ends with the power."""

    def close(self) -> None:
        self._blocks.clear()


def open_disk_store(
    paths: CachePaths,
    lock: CacheLock,
    url: str,
    identity: Identity,
    block_size: int,
    *,
    must_match: bool = False,
) -> DiskStore:
    """The cache of this version of the image, with what an earlier mount left in it.

    ``url``: without secrets. ``block_size``: for a new cache; an old one keeps its own. What is
    there of another version, or cannot be told from one, is dropped first; with ``must_match`` that
    is an error. Raises CacheError.
    """
    meta = Meta.load(paths.meta)
    if paths.foreign:
        _check_foreign(paths, meta)
    if must_match and (meta is None or not _reusable(meta.identity, identity)):
        raise CacheError(
            f"{url} is another version than the one that was mounted, or its cache is elsewhere",
            "give the same URL and --cache-dir, or unmount and mount anew",
        )
    if meta is not None and not _reusable(meta.identity, identity):
        log.warning("%s: the cached data are of another version; starting afresh", url)
        meta = None
    try:
        if meta is None:
            _clear(paths)
            meta = Meta(url, identity, block_size)
            meta.save(paths.meta)
    except OSError as error:
        raise CacheError(
            f"the cache {paths.data.parent} cannot be written: {error.strerror}",
            "name another place with --cache-dir, or use --no-cache",
        ) from error
    return DiskStore(paths, lock, meta)


def _reusable(cached: Identity, now: Identity) -> bool:
    """Whether cached data may stand for the image as it is now.

    Without a validator nobody can say, so it may not.
    """
    return cached.pinned and cached.matches(now)


def _check_foreign(paths: CachePaths, meta: Meta | None) -> None:
    """Refuse files that a user named if they may be something else than a cache.

    Raises CacheError.
    """
    expected = {path: {0} for path in (paths.data, paths.bitmap, paths.sums, paths.meta)}
    if meta is not None:
        blocks = -(-meta.identity.size // meta.block_size)
        expected[paths.data].add(meta.identity.size)
        expected[paths.bitmap].add(padded_bytes(blocks))
        expected[paths.sums].add(blocks * _SUM)
        del expected[paths.meta]
    for path, sizes in expected.items():
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_size not in sizes:
            raise CacheError(
                f"{path} exists and is no cache of lazyfs",
                "name another file, or remove it yourself",
            )


def _clear(paths: CachePaths) -> None:
    """Drop a cache. The bitmap goes first: without it nothing else counts."""
    for path in (paths.bitmap, paths.sums, paths.data, paths.meta):
        path.unlink(missing_ok=True)


def _load_bitmap(fd: int, blocks: int) -> Bitmap:
    """The saved bitmap; holes of the file are skipped, not read."""
    bitmap = Bitmap(blocks)
    length = padded_bytes(blocks)
    for extent in _extents(fd, length):
        for page in range(extent.start // PAGE, -(-extent.stop // PAGE)):
            bitmap.load(page, _pread(fd, Span(page * PAGE, (page + 1) * PAGE)))
    return bitmap


def _extents(fd: int, length: int) -> Iterator[Span]:
    """The parts of a sparse file that are no holes (lseek(2), SEEK_DATA)."""
    position = 0
    while position < length:
        try:
            start = os.lseek(fd, position, os.SEEK_DATA)
        except OSError:  # ENXIO: only a hole is left
            return
        position = os.lseek(fd, start, os.SEEK_HOLE)
        yield Span(start, min(position, length))


def _cut(
    first: int, content: bytes | memoryview, block_size: int
) -> Iterator[tuple[int, bytes | memoryview]]:
    """The blocks in ``content``, which begins with block number ``first``."""
    for start in range(0, len(content), block_size):
        yield first + start // block_size, content[start : start + block_size]


def _pread(fd: int, span: Span) -> bytes:
    """Exactly these bytes. Raises OSError."""
    content = os.pread(fd, span.length, span.start)
    while len(content) < span.length:
        more = os.pread(fd, span.length - len(content), span.start + len(content))
        if not more:
            raise OSError(0, "the file has become shorter")
        content += more
    return content


def _pwrite(fd: int, content: bytes | memoryview, offset: int) -> None:
    """Write all of it. Raises OSError."""
    written = os.pwrite(fd, content, offset)
    while written < len(content):
        written += os.pwrite(fd, memoryview(content)[written:], offset + written)


def _seed(identity: Identity) -> int:
    """What ties checksums to one version of an image."""
    pin = json.dumps([identity.size, identity.etag or identity.last_modified])
    return xxhash.xxh3_64_intdigest(pin.encode())


@contextlib.contextmanager
def _private(path: Path) -> Iterator[Any]:
    """A new text file that only its owner may read."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with open(fd, "w", encoding="utf-8") as file:
        yield file

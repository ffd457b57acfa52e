"""The blocks of one image on disk.

A disk cache is four files (and a lock)::

    data       sparse, as long as the image
    bitmap     one bit a block (``bitmap.py``): which blocks of ``data`` are meant to be there
    sums       8 bytes a block, little-endian: XXH3-64 of the block, seeded with the image's
               identity and the block's number; sparse
    meta.json  format, URL without secrets, identity, size, block size
    lock       held (flock) by the one daemon that uses the cache; contains its process id

**The crash rule.** A set bit is a claim, not a proof. Before a block is served for the first time
after opening, it is read back and compared with its checksum; a block that fails is dropped and
refetched. So writes need no order: a bit that reached the disk before its data, a torn page, a
rotten sector and a file of another version all fail the comparison (the seed makes a block in the
wrong place, or of another image, fail too).

Bits are written when a request ends, so a killed daemon loses at most the requests in flight;
everything is synced every few seconds, so a power cut loses no more than those.

A block of zeros has a checksum like any other, so a hole in ``sums`` verifies nothing.

XXH3 instead of CRC-32: 64 bits, a seed, and 22 GB/s against 4 GB/s on the machine of the first
measurements; a 64 KiB block costs 3 microseconds where reading it costs 20.

Rejected: one checksum file with the bit inside it (ULOOP's tools could not read the bitmap); a
journal (a second copy of state that the checksums make unnecessary); serving from an ``mmap`` of
``data`` (a failing disk becomes SIGBUS).
"""

import contextlib
import json
import logging
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

import xxhash

from lazyfs.cache.bitmap import PAGE, Bitmap, padded_bytes
from lazyfs.cache.files import File, Opener
from lazyfs.cache.layout import SUM, CacheLock, Layout, Meta, check_foreign, clear
from lazyfs.cache.store import Pages, cut
from lazyfs.core.device import Identity
from lazyfs.core.errors import CacheError, CacheUnknown, ImageChanged
from lazyfs.core.options import OnChange
from lazyfs.core.ranges import Span, bytes_of
from lazyfs.system.ownfiles import open_own

log = logging.getLogger(__name__)

_SEED_MASK = (1 << 64) - 1


class DiskStore:
    """A cache on disk. Not a Store by itself, since disks fail and fill up: see ``overflow.py``."""

    def __init__(
        self, paths: Layout, lock: CacheLock, meta: Meta, open_file: Opener = File
    ) -> None:
        """Open or create the cache that ``meta`` describes; see ``open_disk_store``."""
        self.block_size = meta.block_size
        self.size = meta.identity.size  # bytes
        blocks = -(-self.size // self.block_size)
        self._lock = lock
        self._seed = _seed(meta.identity)
        self._files: list[File] = []
        try:
            for path, length in (
                (paths.data, self.size),
                (paths.sums, blocks * SUM),
                (paths.bitmap, padded_bytes(blocks)),
            ):
                self._files.append(open_file(path, length))
            self.data, self._sums, self._bitmap = self._files
            self.present = _load_bitmap(self._bitmap, blocks)
        except OSError as error:
            self.close()
            raise CacheError(
                f"the cache file {error.filename or paths.data} cannot be used: {error.strerror}",
                "name another place with --cache-dir, or use --no-cache",
            ) from error
        self._verified = Bitmap(blocks)

    def verify(self, blocks: Span) -> list[int]:
        """The damaged ones of these present blocks."""
        return [b for b in self._verified.missing(blocks) if not self._check(b)]

    def read(self, span: Span) -> bytes:
        """Read a span (in bytes). Raises OSError."""
        return self.data.read(span)

    def put(self, block: int, content: bytes | memoryview) -> None:
        """Write whole blocks from ``block`` on. Raises OSError; they then count as damaged."""
        sums = b"".join(self._sum(b, piece) for b, piece in cut(block, content, self.block_size))
        blocks = range(block, block + len(sums) // SUM)
        for number in blocks:
            self._verified.discard(number)
        self.data.write(content, block * self.block_size)
        self._sums.write(sums, block * SUM)
        for number in blocks:
            self._verified.add(number)

    def drop(self, blocks: Iterable[int]) -> None:
        """Give the space of these blocks back. Raises OSError."""
        for run in _runs(blocks):
            for number in range(run.start, run.stop):
                self._verified.discard(number)
            self.data.punch(bytes_of(run, self.block_size, self.size))

    def note(self, pages: Pages) -> None:
        """Write these pages of the bitmap. Raises OSError."""
        for number, content in pages:
            self._bitmap.write(content, number * PAGE)

    def sync(self) -> None:
        """Sync all files to disk. Runs in a thread. Raises OSError.

        A kernel that failed to write a page back may drop it, and then read the old one from disk.
        So after a failure every block is verified again before it is served.
        """
        try:
            for file in self._files:
                file.sync()
        except OSError:
            self._verified = Bitmap(self._verified.block_count)
            raise

    def allocated(self) -> int:
        """Bytes that the files take on disk. Raises OSError."""
        return sum(file.allocated() for file in self._files)

    def close(self) -> None:
        for file in self._files:
            file.close()
        self._files.clear()
        self._lock.close()

    def _check(self, block: int) -> bool:
        """Verify a block against its checksum, and remember success."""
        try:
            content = self.read(bytes_of(Span(block, block + 1), self.block_size, self.size))
            good = self._sums.read(Span(block * SUM, (block + 1) * SUM)) == self._sum(
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
        return xxhash.xxh3_64_intdigest(content, seed).to_bytes(SUM, "little")


def open_disk_store(
    paths: Layout,
    lock: CacheLock,
    url: str,
    identity: Identity,
    block_size: int,
    *,
    on_change: OnChange = OnChange.REFETCH,
    must_exist: bool = False,
    open_file: Opener = File,
) -> DiskStore:
    """Open the cache of this version of the image, with the blocks that earlier mounts left.

    ``url``: without secrets.
    ``block_size``: for a new cache; an existing one keeps its own.
    ``on_change``: whether a cache of another version, or of an unknown one, is dropped first or is
    an error.

    Raises CacheError or ImageChanged.
    """
    try:
        meta = Meta.load(paths.meta)
    except CacheUnknown as error:
        log.warning("%s; the cache is started afresh", error.message)
        meta = None
    if paths.foreign:
        check_foreign(paths, meta)
    if meta is None and must_exist:
        raise CacheError(
            f"{paths.data.parent} holds no cache of {url}", "give the --cache-dir that it is in"
        )
    if meta is not None and not _reusable(meta.identity, identity):
        if on_change is OnChange.FAIL:
            raise ImageChanged(
                f"{url} is another version than the one that is cached in {paths.data.parent}",
                "give --on-change refetch to drop that one, or another --cache-dir",
            )
        log.warning("%s: the cached data are of another version; starting afresh", url)
        meta = None
    if meta is not None:
        return DiskStore(paths, lock, meta, open_file)
    return _new_disk_store(paths, lock, Meta(url, identity, block_size), open_file)


def _new_disk_store(paths: Layout, lock: CacheLock, meta: Meta, open_file: Opener) -> DiskStore:
    """Create an empty cache, replacing any existing one. Raises CacheError."""
    try:
        clear(paths)
        meta.save(paths.meta)
        store = DiskStore(paths, lock, meta, open_file)
        _sync_directories(paths.data.parent)
    except OSError as error:
        raise CacheError(
            f"the cache {paths.data.parent} cannot be written: {error.strerror}",
            "name another place with --cache-dir, or use --no-cache",
        ) from error
    return store


def _reusable(cached: Identity, now: Identity) -> bool:
    """Whether cached data are valid for the current version; never without a validator."""
    return cached.pinned and cached.matches(now)


def _load_bitmap(file: File, blocks: int) -> Bitmap:
    """Load the saved bitmap; holes of the file are skipped, not read."""
    bitmap = Bitmap(blocks)
    for extent in file.extents():
        for page in range(extent.start // PAGE, -(-extent.stop // PAGE)):
            bitmap.load(page, file.read(Span(page * PAGE, (page + 1) * PAGE)))
    return bitmap


def saved_bitmap(paths: Layout, meta: Meta) -> Bitmap:
    """The blocks that a cache claims to hold, read without changing it. Raises OSError."""
    bitmap = Bitmap(-(-meta.identity.size // meta.block_size))
    with open(open_own(paths.bitmap, os.O_RDONLY), "rb") as file:
        for page in range(padded_bytes(bitmap.block_count) // PAGE):
            bitmap.load(page, file.read(PAGE).ljust(PAGE, b"\0"))
    return bitmap


def _runs(blocks: Iterable[int]) -> Iterator[Span]:
    """The blocks as runs of adjacent ones, in order."""
    run = Span(0, 0)
    for block in sorted(blocks):
        if block == run.stop and run.length:
            run = Span(run.start, block + 1)
            continue
        if run.length:
            yield run
        run = Span(block, block + 1)
    if run.length:
        yield run


def _sync_directories(directory: Path) -> None:
    """Sync the directory entries of new files, and of their directory."""
    for place in (directory, directory.parent):
        with contextlib.suppress(PermissionError):  # the parent may belong to another user
            fd = os.open(place, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)


def _seed(identity: Identity) -> int:
    """The seed that ties checksums to one version of an image."""
    pin = json.dumps([identity.size, identity.etag or identity.last_modified])
    return xxhash.xxh3_64_intdigest(pin.encode())

"""A fault-tolerant store: blocks on disk, and those that the disk does not take in memory.

A disk fills up, reaches its limit, or fails. None of that may fail a read: blocks that cannot be
written are kept in memory for as long as they are needed, which is logged once, and the disk is
retried now and then. Within a limit, new blocks replace the least recently used ones, and pass
through memory only briefly.

Blocks in memory are never saved in the bitmap, since they end with the process.
"""

import logging
import time
from collections.abc import Callable, Container
from pathlib import Path

from lazyfs.cache.bitmap import Bitmap, page_without
from lazyfs.cache.clock import Clock
from lazyfs.cache.disk import DiskStore
from lazyfs.cache.memory import MemoryStore
from lazyfs.cache.quota import Quota
from lazyfs.cache.store import Pages
from lazyfs.core.errors import CacheError
from lazyfs.core.ranges import Span, blocks_of

log = logging.getLogger(__name__)

MEMORY_LIMIT = 16 << 20  # bytes of blocks in memory
AT_ONCE = 4 << 20  # bytes freed in one step, during which no reader is served
TRY_AGAIN = 30.0  # seconds after which a disk that refused is retried


class OverflowStore:
    """A Store: a disk store bounded by a quota (``quota``), with memory behind it."""

    def __init__(
        self, name: str, disk: DiskStore, quota: Quota, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """Take ``disk`` over and evict blocks until it is within the limit. Raises CacheError.

        ``name``: the image, for messages.
        """
        self.block_size = disk.block_size
        self.present: Bitmap = disk.present
        self._name = name
        self._disk = disk
        self._quota = quota
        self._clock = clock
        self._uses = Clock(disk.present)
        self._memory = MemoryStore(disk.size, disk.block_size, MEMORY_LIMIT)
        self._unreadable: set[int] = set()  # blocks that the disk fails to read
        self._refused = False
        self._try_at = float("-inf")  # when a disk that refused is retried
        try:
            quota.measure()
        except OSError as error:
            raise CacheError(f"{name}: the cache cannot be used: {error.strerror}") from error
        while gone := self._make_room(()):
            for block in gone:
                self.present.discard(block)

    @property
    def copy(self) -> Path:
        """The data file: the whole image, once complete. It may have been unlinked."""
        return self._disk.data.link

    @property
    def settled(self) -> bool:
        return self._memory.empty

    @property
    def prefetch_limit(self) -> int | None:
        return self._memory.prefetch_limit if self._refused else None

    def verify(self, blocks: Span) -> list[int]:
        if self._memory.empty:
            return self._disk.verify(blocks)
        on_disk = (b for b in range(blocks.start, blocks.stop) if b not in self._memory)
        return [bad for block in on_disk for bad in self._disk.verify(Span(block, block + 1))]

    def read(self, span: Span) -> bytes:
        blocks = blocks_of(span, self.block_size)
        if self._quota.limited:
            self._uses.read(blocks)
        if self._memory.empty:
            return self._read_disk(span, blocks)
        pieces = []
        for block in range(blocks.start, blocks.stop):
            start = block * self.block_size
            part = Span(max(span.start, start), min(span.stop, start + self.block_size))
            if block in self._memory:
                pieces.append(self._memory.read(part))
            else:
                pieces.append(self._read_disk(part, Span(block, block + 1)))
        return b"".join(pieces)

    def put(self, block: int, content: bytes | memoryview) -> None:
        if not self._write(block, content):
            self._memory.put(block, content)

    def evict(self, held: Container[int]) -> list[int]:
        gone = self._memory.evict(held)
        if not self._memory.empty:
            self._move_to_disk()
        return gone + self._make_room(held)

    def note(self, pages: Pages) -> bool:
        if not self._memory.empty:
            pages = [(n, page_without(n, content, self._memory)) for n, content in pages]
        self._disk.note(pages)
        return True

    def sync(self) -> None:
        self._disk.sync()

    def close(self) -> None:
        self._disk.close()

    def _read_disk(self, span: Span, blocks: Span) -> bytes:
        """Read from disk. Raises OSError; the blocks are not written to disk again then."""
        try:
            return self._disk.read(span)
        except OSError:
            self._unreadable.update(range(blocks.start, blocks.stop))
            raise

    def _write(self, block: int, content: bytes | memoryview) -> bool:
        """Write blocks to disk; returns whether it took them."""
        blocks = Span(block, block - (-len(content) // self.block_size))
        readable = self._unreadable.isdisjoint(range(blocks.start, blocks.stop))
        if not readable or self._clock() < self._try_at:
            return False
        try:
            if not self._quota.take(len(content)):
                if self._quota.refusal:
                    self._refuse(self._quota.refusal)
                return False
            self._disk.put(block, content)
        except OSError as error:
            self._refuse(error.strerror or str(error))
            return False
        if self._quota.limited:
            self._uses.came(blocks)
        self._accepted()
        return True

    def _make_room(self, held: Container[int]) -> list[int]:
        """Free blocks on disk to cover the quota's shortage, some at a time; returns them."""
        if not self._quota.shortage or self._clock() < self._try_at:
            return []
        try:
            self._quota.measure()  # other caches may have freed space
            if not self._quota.shortage:
                return []
            if self._disk.data.in_use_by_loop():
                self._refuse("a loop device stands on it, so nothing of it can go")
                return []
            count = max(1, min(self._quota.shortage, AT_ONCE) // self.block_size)
            gone = [b for b in self._uses.choose(count, held) if b not in self._memory]
            if not gone:
                self._refuse("--cache-size leaves it nothing")
                return []
            self._disk.drop(gone)
            self._quota.measure()
        except OSError as error:
            self._refuse(error.strerror or str(error))
            return []
        return gone

    def _move_to_disk(self) -> None:
        """Write blocks in memory to disk, as far as it takes them now."""
        for block in list(self._memory):
            if block not in self._unreadable:
                if not self._write(block, self._memory.peek(block)):
                    return
                self._memory.drop(block)
                self.present.touch(block)  # so that its bit is saved

    def _refuse(self, why: str) -> None:
        self._try_at = self._clock() + TRY_AGAIN
        if not self._refused:
            log.warning("%s: the cache takes no more (%s); reading on without it", self._name, why)
        self._refused = True

    def _accepted(self) -> None:
        if self._refused:
            log.info("%s: the cache takes data again", self._name)
        self._refused = False

"""What a cache has done, counted; and whether prefetch was worth it. Pure."""

from math import exp
from typing import NamedTuple

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

_MEMORY = 2.0  # seconds over which the flow is smoothed
_LATELY = 60.0  # seconds
_SLOWEST = 5  # reads that are remembered


class Flow:
    """Bytes a second, lately: what came long ago counts for less and less. Times in seconds."""

    def __init__(self) -> None:
        self._rate = 0.0
        self._at = 0.0

    def received(self, now: float, length: int) -> None:
        self._rate = self.rate(now) + length / _MEMORY
        self._at = now

    def rate(self, now: float) -> float:
        return self._rate * exp((self._at - now) / _MEMORY)


class Slowest:
    """The reads of the last minute that waited longest. Times in seconds."""

    def __init__(self) -> None:
        self._reads: list[SlowRead] = []

    def note(self, now: float, offset: int, length: int, seconds: float) -> None:
        self._reads = self.lately(now)
        self._reads.append(SlowRead(now, offset, length, seconds))
        self._reads.sort(key=lambda read: -read.seconds)
        del self._reads[_SLOWEST:]

    def lately(self, now: float) -> "list[SlowRead]":
        """The slowest first."""
        return [read for read in self._reads if now - read.at <= _LATELY]


class SlowRead(NamedTuple):
    """``at``: when it ended; ``seconds``: how long it took; ``offset`` and ``length``: in bytes."""

    at: float
    offset: int
    length: int
    seconds: float


class Counts:
    """Running counts of one image; see ``device.Statistics`` for their meaning."""

    def __init__(self, block_count: int) -> None:
        self.wanted = self.hits = self.misses = 0
        self.fetched = self.prefetched = 0
        self.requests = self.under_way = self.failures = self.damaged = self.evicted = 0
        self.flow = Flow()
        self.slowest = Slowest()
        self._unused = Bitmap(block_count)  # prefetched, and not read yet

    @property
    def unused_blocks(self) -> int:
        return self._unused.count

    def unused_in(self, blocks: Span) -> int:
        """How many blocks of the span came before anybody asked, and nobody has yet."""
        return self._unused.count_in(blocks)

    def prefetch_arrived(self, blocks: Span, length: int) -> None:
        """These blocks, ``length`` bytes, came before anybody asked for them."""
        self.prefetched += length
        for block in range(blocks.start, blocks.stop):
            self._unused.add(block)

    def prefetch_used(self, blocks: Span) -> None:
        """A reader got these blocks."""
        if self._unused.count:
            for block in range(blocks.start, blocks.stop):
                self._unused.discard(block)

"""Running counts of a cache, among them whether prefetch was worth it. Pure."""

from math import exp
from typing import NamedTuple

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

_MEMORY = 2.0  # seconds over which the flow is smoothed
_LATELY = 60.0  # seconds
_SLOWEST = 5  # reads that are remembered


class Flow:
    """The recent rate in bytes per second, exponentially smoothed. Times in seconds."""

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
        """The reads of the last minute, slowest first."""
        return [read for read in self._reads if now - read.at <= _LATELY]


class SlowRead(NamedTuple):
    """One read.

    ``at``: when it ended.
    ``offset``, ``length``: in bytes.
    ``seconds``: how long it took.
    """

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
        """How many blocks of the span were prefetched and not read yet."""
        return self._unused.count_in(blocks)

    def prefetch_arrived(self, blocks: Span, length: int) -> None:
        """Count these blocks, ``length`` bytes, as prefetched."""
        self.prefetched += length
        for block in range(blocks.start, blocks.stop):
            self._unused.add(block)

    def prefetch_used(self, blocks: Span) -> None:
        """Count these blocks as read."""
        if self._unused.count:
            for block in range(blocks.start, blocks.stop):
                self._unused.discard(block)

"""What a cache has done, counted; and whether prefetch was worth it. Pure."""

from lazyfs.cache.bitmap import Bitmap
from lazyfs.ranges import Span


class Counts:
    """Running counts of one image; see ``device.Statistics`` for their meaning."""

    def __init__(self, block_count: int) -> None:
        self.wanted = self.hits = self.misses = 0
        self.fetched = self.prefetched = 0
        self.requests = self.under_way = self.failures = self.damaged = self.evicted = 0
        self._unused = Bitmap(block_count)  # prefetched, and not read yet

    @property
    def unused_blocks(self) -> int:
        return self._unused.count

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

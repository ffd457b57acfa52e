"""Choosing blocks to evict: approximately the least recently used. Pure.

The clock algorithm (second chance): a hand goes round over the present blocks. A block that was
used since the hand last passed it is spared once; any other is evicted. This takes three bits per
block, where an exact LRU order would take a hundred bytes: a cache of 10 GiB has 327,680 blocks.

The read that a block was fetched for does not count as a use: one pass over the whole image must
not evict blocks that are read again and again.
"""

from collections.abc import Container

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

WINDOW = 1 << 15  # blocks that are examined in one step, at C speed


class Clock:
    """The uses of the blocks in ``present``, which the caller owns and changes."""

    def __init__(self, present: Bitmap) -> None:
        self._present = present
        self._used = Bitmap(present.block_count)
        self._unread = Bitmap(present.block_count)
        self._hand = 0

    def came(self, blocks: Span) -> None:
        """Note that these blocks were stored; the read that they were fetched for is to come."""
        for block in range(blocks.start, blocks.stop):
            self._unread.add(block)

    def read(self, blocks: Span) -> None:
        for block in range(blocks.start, blocks.stop):
            if block in self._unread:
                self._unread.discard(block)
            else:
                self._used.add(block)

    def choose(self, count: int, held: Container[int]) -> list[int]:
        """Choose ``count`` (at least 1) present blocks to evict, or fewer; none in ``held``.

        The caller must remove them from ``present`` before the next call.
        """
        chosen: dict[int, None] = {}
        steps = (
            2 * (-(-self._present.block_count // WINDOW)) + 1
        )  # two rounds, since each block may be spared once
        for _ in range(steps):
            window = Span(self._hand, min(self._hand + WINDOW, self._present.block_count))
            for block in self._present.difference((self._used, self._unread), window):
                if block not in held:
                    chosen[block] = None
                if len(chosen) == count:
                    self._pass(Span(window.start, block + 1))
                    return list(chosen)
            self._pass(window)
        return list(chosen)

    def _pass(self, blocks: Span) -> None:
        """Move the hand over these blocks."""
        self._used.clear(blocks)
        self._unread.clear(blocks)
        self._hand = blocks.stop if blocks.stop < self._present.block_count else 0

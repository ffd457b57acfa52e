"""Which blocks to let go: those that were not used for longest, nearly. Pure.

The clock algorithm (second chance): a hand goes round over the blocks that are present. A block
that was used since the hand passed it last is spared once; one that was not goes. Three bits a
block where a true order of use would take a hundred bytes: a cache of 10 GiB has 327,680 blocks.

The read that a block came in for is no use of it: what is read once, from end to end of an image,
must not push out what is read again and again.
"""

from collections.abc import Container

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

WINDOW = 1 << 15  # blocks that are looked at in one step, at C speed


class Clock:
    """The uses of the blocks in ``present``, which belongs to somebody else."""

    def __init__(self, present: Bitmap) -> None:
        self._present = present
        self._used = Bitmap(present.block_count)
        self._unread = Bitmap(present.block_count)
        self._hand = 0

    def came(self, blocks: Span) -> None:
        """These blocks came in, and are going to be read."""
        for block in range(blocks.start, blocks.stop):
            self._unread.add(block)

    def read(self, blocks: Span) -> None:
        for block in range(blocks.start, blocks.stop):
            if block in self._unread:
                self._unread.discard(block)
            else:
                self._used.add(block)

    def choose(self, count: int, held: Container[int]) -> list[int]:
        """``count`` present blocks to let go (at least 1), or all there are; none in ``held``.

        They stay present until the caller takes them away, which he must do before he asks again.
        """
        chosen: dict[int, None] = {}
        steps = (
            2 * (-(-self._present.block_count // WINDOW)) + 1
        )  # twice round: all are spared once
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
        """The hand moves over these blocks."""
        self._used.clear(blocks)
        self._unread.clear(blocks)
        self._hand = blocks.stop if blocks.stop < self._present.block_count else 0

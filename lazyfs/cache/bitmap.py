"""A bitmap with one bit per block, in the layout that ULOOP's tools use. Pure.

On disk: bit ``n % 8`` (the least significant is 0) of byte ``n // 8`` says that block ``n`` is
present; the file is padded with zeros to a multiple of 4096 bytes. In memory, the same bytes are
the buffer of a ``bitarray``, so that runs are found at C speed (a terabyte in 64 KiB blocks has 16
million bits). Bits beyond the last block are always zero.
"""

from collections.abc import Iterable, Iterator
from mmap import mmap

from bitarray import bitarray

from lazyfs.core.ranges import Span

PAGE = 4096  # bytes: the file is padded to a multiple of this, and saved in this unit
_BLOCKS_PER_PAGE = PAGE * 8


class Bitmap:
    """A set of block numbers below ``block_count``."""

    def __init__(self, block_count: int) -> None:
        self.block_count = block_count
        # Anonymous memory, since a bytearray writes its zeros: pages of a sparse bitmap that are
        # never touched cost nothing (a terabyte in 4 KiB blocks has a bitmap of 32 MiB).
        self._bytes = mmap(-1, padded_bytes(block_count))
        self._bits = bitarray(buffer=self._bytes, endian="little")
        self._count = 0
        self._dirty: set[int] = set()

    @property
    def count(self) -> int:
        """How many blocks are in the set."""
        return self._count

    def load(self, page: int, content: bytes) -> None:
        """Load a saved page by its number; bits beyond the last block are dropped."""
        start = page * PAGE
        self._count -= self._bits.count(1, start * 8, (start + PAGE) * 8)
        self._bytes[start : start + PAGE] = content
        if (start + PAGE) * 8 > self.block_count:
            self._bits[self.block_count :] = 0
        self._count += self._bits.count(1, start * 8, (start + PAGE) * 8)

    def take_dirty(self) -> list[tuple[int, bytes]]:
        """Pages changed since the last call, as (number, content), in order."""
        pages = [(p, bytes(self._bytes[p * PAGE : (p + 1) * PAGE])) for p in sorted(self._dirty)]
        self._dirty.clear()
        return pages

    def mark_dirty(self, pages: list[tuple[int, bytes]]) -> None:
        """Mark these pages as unsaved again, after saving them failed."""
        self._dirty.update(number for number, _ in pages)

    def __contains__(self, block: int) -> bool:
        return bool(self._bits[block])

    def add(self, block: int) -> None:
        if not self._bits[block]:
            self._bits[block] = 1
            self._count += 1
            self._dirty.add(block // _BLOCKS_PER_PAGE)

    def discard(self, block: int) -> None:
        if self._bits[block]:
            self._bits[block] = 0
            self._count -= 1
            self._dirty.add(block // _BLOCKS_PER_PAGE)

    def touch(self, block: int) -> None:
        """Mark this block's page as unsaved."""
        self._dirty.add(block // _BLOCKS_PER_PAGE)

    def clear(self, blocks: Span) -> None:
        """Remove all blocks of the span."""
        found = self._bits.count(1, blocks.start, blocks.stop)
        if found:
            self._bits[blocks.start : blocks.stop] = 0
            self._count -= found
            first, last = blocks.start // _BLOCKS_PER_PAGE, (blocks.stop - 1) // _BLOCKS_PER_PAGE
            self._dirty.update(range(first, last + 1))

    def within(self, blocks: Span) -> Iterator[int]:
        """Blocks of the span that are in the set now, in order."""
        return self.difference((), blocks)

    def difference(self, others: "Iterable[Bitmap]", blocks: Span) -> Iterator[int]:
        """Blocks of the span that are in this set and in none of the others now, in order."""
        here = slice(blocks.start, blocks.stop)
        only = self._bits[here]
        for other in others:
            only &= ~other._bits[here]
        return (blocks.start + found for found in only.search(1))

    def byte_count(self, block_size: int, size: int) -> int:
        """The bytes that these blocks hold of an image of ``size`` bytes."""
        last = self.block_count - 1
        short = (last + 1) * block_size - size if last >= 0 and last in self else 0
        return self._count * block_size - short

    def count_in(self, blocks: Span) -> int:
        """How many blocks of the span are in the set."""
        return self._bits.count(1, blocks.start, blocks.stop)

    def covers(self, blocks: Span) -> bool:
        """Whether every block of the span is in the set."""
        return self._bits.find(0, blocks.start, blocks.stop) < 0

    def runs(self, blocks: Span) -> Iterator[tuple[Span, bool]]:
        """Runs of the span, in order, and whether their blocks are in the set.

        The set may change between steps; each step sees its current state.
        """
        start = blocks.start
        while start < blocks.stop:
            here = bool(self._bits[start])
            end = self._bits.find(not here, start, blocks.stop)
            run = Span(start, end if end >= 0 else blocks.stop)
            yield run, here
            start = run.stop

    def missing(self, blocks: Span) -> Iterator[int]:
        """Blocks of the span that are not in the set, in order.

        The set may change between steps; each step sees its current state.
        """
        block = self._bits.find(0, blocks.start, blocks.stop)
        while block >= 0:
            yield block
            block = self._bits.find(0, block + 1, blocks.stop)


def page_without(number: int, content: bytes, blocks: Iterable[int]) -> bytes:
    """A copy of a saved page without these blocks; blocks of other pages are ignored."""
    first = number * _BLOCKS_PER_PAGE
    page = bytearray(content)
    for block in blocks:
        if 0 <= block - first < _BLOCKS_PER_PAGE:
            page[(block - first) // 8] &= ~(1 << (block - first) % 8)
    return bytes(page)


def padded_bytes(block_count: int) -> int:
    """The length of the bitmap file for this many blocks, in bytes."""
    return max(1, -(-block_count // _BLOCKS_PER_PAGE)) * PAGE

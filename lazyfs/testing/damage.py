"""Which bits of a medium are wrong, and which of its reads fail: computed, not remembered. Pure.

Everything follows from a seed, the place and, for what passes, the number of the read; so a medium
of any size has its faults at the same places each time it is asked, and no map of them is kept.

Bits are drawn in cells of a sector. Within a cell the gaps from one hit bit to the next have the
geometric distribution, which is what independent bits of one density have; the random numbers come
from a hash of seed, cell and count.
"""

import math
import struct
from collections.abc import Iterator
from dataclasses import dataclass

import xxhash

from lazyfs.core.ranges import Span

CELL = 512  # bytes whose hits are drawn together
_STUCK, _RAYS, _FAILS, _WAITS = range(4)  # keeps what is drawn for one purpose from another's


@dataclass(frozen=True)
class Faults:
    """What is wrong with a medium.

    ``stuck``: the share of bits that always read the same, whatever was written. ``rays``: the
    share of bits that flip in any one read. ``unreadable``: bytes of which every read fails.
    ``failing``: the share of all reads that fail. ``delay``: seconds; each read waits for a random
    part of them.
    """

    seed: int = 0
    stuck: float = 0.0
    rays: float = 0.0
    unreadable: tuple[Span, ...] = ()
    failing: float = 0.0
    delay: float = 0.0

    def spoil(self, offset: int, content: bytes, read: int) -> bytes:
        """What read number ``read`` makes of ``content``, which lies at ``offset``."""
        spoiled = bytearray(content)
        where = Span(offset, offset + len(content))
        for bit in hits(self._draw(_STUCK), self.stuck, where):
            _set(spoiled, bit - 8 * offset, to=_hash(self._draw(_STUCK), bit, 0) & 1)
        for bit in hits(self._draw(_RAYS, read), self.rays, where):
            spoiled[bit // 8 - offset] ^= 1 << bit % 8
        return bytes(spoiled)

    def unreadable_in(self, span: Span) -> bool:
        """Whether ``span`` touches a byte that can never be read."""
        return any(max(bad.start, span.start) < min(bad.stop, span.stop) for bad in self.unreadable)

    def fails(self, read: int) -> bool:
        """Whether read number ``read`` fails by chance."""
        return _uniform(self._draw(_FAILS), read, 0) <= self.failing

    def wait(self, read: int) -> float:
        """Seconds that read number ``read`` takes longer."""
        return self.delay * _uniform(self._draw(_WAITS), read, 0)

    def _draw(self, purpose: int, read: int = 0) -> int:
        """A seed of its own for each purpose."""
        return _hash(self.seed, purpose, read)


def hits(seed: int, density: float, span: Span) -> Iterator[int]:
    """The bits of ``span`` (bytes) that are hit, in order; ``density``: the share of all bits.

    Bit ``n % 8``, counted from the least significant, of byte ``n // 8`` is bit ``n``.
    """
    if density <= 0:
        return
    for cell in range(span.start // CELL, -(-span.stop // CELL)):
        for bit in _hits_of_cell(seed, density, cell):
            if 8 * span.start <= bit < 8 * span.stop:
                yield bit


def _hits_of_cell(seed: int, density: float, cell: int) -> Iterator[int]:
    stop = 8 * CELL * (cell + 1)
    bit = 8 * CELL * cell - 1
    drawn = 0
    while True:
        bit += 1 + _gap(_uniform(seed, cell, drawn), density)
        if bit >= stop:
            return
        yield bit
        drawn += 1


def _gap(uniform: float, density: float) -> int:
    """How many bits are missed before the next hit."""
    return 0 if density >= 1 else int(math.log(uniform) / math.log1p(-density))


def _uniform(seed: int, one: int, other: int) -> float:
    """A number above 0 and up to 1."""
    return (_hash(seed, one, other) + 1) / 2.0**64


def _hash(seed: int, one: int, other: int) -> int:
    return xxhash.xxh3_64_intdigest(struct.pack("<qq", one, other), seed)


def _set(content: bytearray, bit: int, to: int) -> None:
    mask = 1 << bit % 8
    content[bit // 8] = content[bit // 8] & ~mask | mask * to

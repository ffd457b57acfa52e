"""Arithmetic on half-open ranges of bytes or blocks. Pure.

A range is ``Span(start, stop)``: ``start`` is in it, ``stop`` is not. The caller chooses the unit
(bytes, blocks) and names it where a span is stored.
"""

from collections.abc import Iterable
from typing import NamedTuple


class Span(NamedTuple):
    """The half-open range ``[start, stop)``; empty when ``stop <= start``."""

    start: int
    stop: int

    @property
    def length(self) -> int:
        return max(0, self.stop - self.start)


def clamp(offset: int, length: int, size: int) -> Span:
    """The bytes that a read of ``length`` at ``offset`` gets from a file of ``size`` bytes."""
    start = min(max(offset, 0), size)
    return Span(start, max(start, min(offset + length, size)))


def blocks_of(span: Span, block_size: int) -> Span:
    """The blocks that hold any byte of ``span`` (bytes); empty for an empty span."""
    if span.stop <= span.start:
        return Span(0, 0)
    return Span(span.start // block_size, -(-span.stop // block_size))


def bytes_of(blocks: Span, block_size: int, size: int) -> Span:
    """The bytes of ``blocks``, cut at the end of a file of ``size`` bytes."""
    return Span(blocks.start * block_size, min(blocks.stop * block_size, size))


def merged(spans: Iterable[Span], gap: int = 0) -> list[Span]:
    """The spans sorted and merged; those up to ``gap`` apart become one."""
    found: list[Span] = []
    for span in sorted(spans):
        if span.stop <= span.start:
            continue
        if found and span.start <= found[-1].stop + gap:
            found[-1] = Span(found[-1].start, max(found[-1].stop, span.stop))
        else:
            found.append(span)
    return found

"""How an image's cache is doing at this moment: what a person wants to know of it."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.counts import Counts, SlowRead
from lazyfs.core.ranges import Span


@dataclass(frozen=True)
class CacheState:
    """``flow``: bytes a second that have come lately. ``trouble``: what keeps bytes from coming,
    empty while all is well; ``trouble_for``: for how many seconds. ``complete``: every byte is here
    and right. ``filling``: the whole image is wanted; ``paused``: nothing is fetched that nobody
    waits for; ``fill_rate``: the most bytes a second for the fill, None for no limit.
    ``slowest``: reads of the last minute that waited longest.
    """

    flow: float
    trouble: str
    trouble_for: float
    complete: bool
    filling: bool
    paused: bool
    fill_rate: float | None
    slowest: tuple[SlowRead, ...]


class Cell(NamedTuple):
    """A part of an image: which share of its blocks is here, of these fetched ahead and not read
    yet, and which is on its way. From 0 to 1."""

    local: float
    ahead: float
    coming: float


def cells_of(count: int, present: Bitmap, counts: Counts, under_way: Iterable[int]) -> list[Cell]:
    """An image in ``count`` parts of about equal length; fewer, if it has not so many blocks."""
    blocks = present.block_count
    count = min(count, blocks)
    coming = [0] * count
    for block in under_way:
        coming[((block + 1) * count - 1) // blocks] += 1
    cells = []
    for number in range(count):
        span = Span(number * blocks // count, (number + 1) * blocks // count)
        found = present.count_in(span), counts.unused_in(span), coming[number]
        cells.append(Cell(*(round(blocks_of / span.length, 3) for blocks_of in found)))
    return cells

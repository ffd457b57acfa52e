"""The current state of an image's cache, for users."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.counts import Counts, SlowRead
from lazyfs.core.ranges import Span


@dataclass(frozen=True)
class CacheState:
    """The state of a cache.

    ``flow``: recent rate in bytes per second.
    ``trouble``: the failure that keeps data from arriving; empty for none.
    ``trouble_for``: its age in seconds.
    ``complete``: whether every block is present and verified.
    ``filling``: whether the fill has blocks left to fetch.
    ``paused``: whether preloads and the fill are paused.
    ``fill_rate``: the limit for the fill, in bytes per second; None for no limit.
    ``slowest``: the reads of the last minute that waited longest.
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
    """Shares of the blocks of one part of an image, from 0 to 1.

    ``local``: present.
    ``ahead``: prefetched and not read yet.
    ``coming``: in flight.
    """

    local: float
    ahead: float
    coming: float


def cells_of(count: int, present: Bitmap, counts: Counts, under_way: Iterable[int]) -> list[Cell]:
    """An image in ``count`` parts of about equal length; fewer if it has fewer blocks."""
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

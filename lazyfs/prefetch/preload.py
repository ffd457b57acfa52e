"""Turning a profile into the ranges to fetch, in order. Pure.

A profile has every read of a run; fetched one by one they would cost a request each. Ranges that
were read within a moment are wanted within a moment, so they may be fetched in any order: they are
sorted, and those that are close together become one range.
"""

from collections.abc import Iterable, Iterator

from lazyfs.core.ranges import Span, merged
from lazyfs.prefetch.profile import Use

MOMENT = 0.25  # seconds
CLOSE = 16 << 10  # bytes: a gap up to this costs less than another request


def in_order_of_use(uses: Iterable[Use]) -> Iterator[Span]:
    """The ranges of a profile, in the order in which to fetch them."""
    moment: list[Span] = []
    began = 0.0
    for use in uses:
        if moment and use.time - began > MOMENT:
            yield from merged(moment, CLOSE)
            moment = []
        if not moment:
            began = use.time
        moment.append(use.span)
    yield from merged(moment, CLOSE)

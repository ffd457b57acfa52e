"""From what somebody says will be wanted to the ranges to fetch, in order. Pure.

A profile has every read of a run; asked for one by one they would cost a request each. What was
read within a moment is wanted within a moment, so it may be fetched in any order: it is sorted, and
what lies close together becomes one range.
"""

from collections.abc import Iterable, Iterator

from lazyfs.core.ranges import Span, merged
from lazyfs.prefetch.profile import Use

MOMENT = 0.25  # seconds
CLOSE = 16 << 10  # bytes between two ranges that cost less than a request of their own


def in_order_of_use(uses: Iterable[Use]) -> Iterator[Span]:
    """The ranges of a profile in the order in which to fetch them."""
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

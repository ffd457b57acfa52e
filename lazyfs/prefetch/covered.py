"""A set of bytes, stored as merged ranges. Pure."""

from bisect import bisect_right

from lazyfs.core.ranges import Span


class Covered:
    """A set of bytes, stored as merged ranges."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    def add(self, span: Span) -> list[Span]:
        """Add a range; returns the parts of it that were not in the set, in order."""
        if not span.length:
            return []
        first = bisect_right(self._stops, span.start - 1)  # the first that touches or follows it
        last = bisect_right(self._starts, span.stop)
        new, position = [], span.start
        for start, stop in zip(self._starts[first:last], self._stops[first:last], strict=True):
            if position < start:
                new.append(Span(position, start))
            position = max(position, stop)
        if position < span.stop:
            new.append(Span(position, span.stop))
        start = min([span.start, *self._starts[first:last]])
        stop = max([span.stop, *self._stops[first:last]])
        self._starts[first:last] = [start]
        self._stops[first:last] = [stop]
        return new

    def covers(self, span: Span) -> bool:
        """Whether all of a range is in the set."""
        number = bisect_right(self._starts, span.start) - 1
        return span.length == 0 or (number >= 0 and span.stop <= self._stops[number])

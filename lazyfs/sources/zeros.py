"""A map of the zero runs of an image, as far as they are known. Pure."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator

_MOST_RUNS = 1 << 16


class ZeroMap:
    """Runs of bytes that are known to be zeros or data; the rest is unknown.

    The size is bounded: when full, the map is cleared.
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._runs: list[tuple[int, bool]] = []  # each run's end, and whether it is zeros

    def learn(self, offset: int, runs: Iterable[tuple[int, bool]]) -> None:
        """Add runs from ``offset`` on: (length, whether zeros)."""
        for length, zero in runs:
            stop = offset + length
            while offset < stop:
                known = self._run_at(offset)
                if known is None:
                    free = min(stop, self._next_start(offset))
                    self._add(offset, free, zero=zero)
                    offset = free
                else:
                    offset = min(stop, known[0])

    def known(self, offset: int, stop: int) -> Iterator[tuple[int, bool]]:
        """The known runs from ``offset`` on, without gaps: (length, whether zeros)."""
        while offset < stop:
            run = self._run_at(offset)
            if run is None:
                return
            reach = min(run[0], stop)
            yield reach - offset, run[1]
            offset = reach

    def _run_at(self, offset: int) -> tuple[int, bool] | None:
        index = bisect_right(self._starts, offset) - 1
        if index < 0 or self._runs[index][0] <= offset:
            return None
        return self._runs[index]

    def _next_start(self, offset: int) -> int:
        index = bisect_right(self._starts, offset)
        return self._starts[index] if index < len(self._starts) else 1 << 64

    def _add(self, start: int, stop: int, *, zero: bool) -> None:
        if len(self._runs) == _MOST_RUNS:
            self._starts.clear()
            self._runs.clear()
        index = bisect_right(self._starts, start)
        if index and self._runs[index - 1] == (start, zero):
            self._runs[index - 1] = (stop, zero)
            return
        self._starts.insert(index, start)
        self._runs.insert(index, (stop, zero))

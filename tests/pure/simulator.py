"""A link, a server and a reader in virtual time, around the real ``ReadAhead`` and ``Plan``.

The model: the first byte of an answer comes a round trip after its request was sent; from then on
the answers under way share the link block by block. A host has a number of slots, of which prefetch
leaves one free. One reader issues its reads in order, at most two at a time, as the kernel does for
a buffered file, and spends some CPU time on each. Nothing is random: the same accesses give the
same figures.
"""

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.plan import Fetch, Plan, Waiter
from lazyfs.core.device import Priority
from lazyfs.core.options import ReadAheadLimit
from lazyfs.core.ranges import Span, blocks_of
from lazyfs.prefetch.readahead import ReadAhead

BLOCK = 32 << 10  # bytes
SMALLEST_FETCH = 1 << 20  # bytes in one request, as the block cache cuts them
LARGEST_FETCH = 8 << 20
IN_FLIGHT = 2  # reads of a buffered reader that the kernel keeps under way

Access = tuple[int, int]  # offset and length in bytes


@dataclass(frozen=True)
class Conditions:
    """A link. ``round_trip``: seconds; ``rate``: bytes a second; ``slots``: requests at a time."""

    name: str
    round_trip: float
    rate: float
    slots: int = 4

    @property
    def full_length(self) -> int:
        """Bytes that one request may ask for."""
        double = int(2 * self.round_trip * self.rate)
        return min(max(double, SMALLEST_FETCH), LARGEST_FETCH)


@dataclass(frozen=True)
class Outcome:
    """What a run took. Bytes are those of whole blocks.

    ``warm_seconds``, ``warm_read``: of these, what lies after the first quarter of the reads.
    """

    seconds: float
    read: int  # in blocks that some read touched
    fetched: int
    requests: int
    warm_seconds: float
    warm_read: int

    @property
    def wasted(self) -> int:
        return self.fetched - self.read

    def utilisation(self, conditions: Conditions) -> float:
        """The part of the link's rate that the reader got, after warming up."""
        return self.warm_read / self.warm_seconds / conditions.rate


class _Clock:
    """Events in the order of their times; those of one time in the order of their making."""

    def __init__(self) -> None:
        self.now = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()

    def after(self, seconds: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + seconds, next(self._numbers), act))

    def run(self) -> None:
        while self._events:
            self.now, _, act = heapq.heappop(self._events)
            act()


class _Server:
    """Answers requests over one link; ``deliver`` is called for each block that has come in."""

    def __init__(
        self, clock: _Clock, conditions: Conditions, deliver: Callable[[Fetch], None]
    ) -> None:
        self._clock = clock
        self._conditions = conditions
        self._deliver = deliver
        self._sending: list[Fetch] = []  # in turn
        self._busy = False

    def ask(self, fetch: Fetch) -> None:
        self._clock.after(self._conditions.round_trip, lambda: self._begin(fetch))

    def _begin(self, fetch: Fetch) -> None:
        self._sending.append(fetch)
        if not self._busy:
            self._send_next()

    def _send_next(self) -> None:
        self._busy = bool(self._sending)
        if self._busy:
            fetch = self._sending.pop(0)
            self._clock.after(BLOCK / self._conditions.rate, lambda: self._sent(fetch))

    def _sent(self, fetch: Fetch) -> None:
        if fetch.next + 1 < fetch.blocks.stop:
            self._sending.append(fetch)
        self._deliver(fetch)
        self._send_next()


class _Run:
    """One reader on one image."""

    def __init__(
        self, size: int, accesses: Iterable[Access], conditions: Conditions, cpu: float
    ) -> None:
        self._size = size
        self._accesses = list(accesses)
        self._conditions = conditions
        self._cpu = cpu
        self._clock = _Clock()
        self._server = _Server(self._clock, conditions, self._deliver)
        self._readahead = ReadAhead(size)
        self._limit = ReadAheadLimit().bytes_at(conditions.rate)
        self._plan = Plan(Bitmap(-(-size // BLOCK)))
        self._slots = conditions.slots
        self._prefetch_slots = max(1, conditions.slots - 1)
        self._issued = self._done = self._requests = 0
        self._ended_at: list[float] = []
        self._touched: set[int] = set()
        self._warm_from = len(self._accesses) // 4
        self._touched_cold = 0

    def outcome(self) -> Outcome:
        for _ in range(IN_FLIGHT):
            self._clock.after(0, self._issue)
        self._clock.run()
        assert self._done == len(self._accesses), "a read was never answered"
        cold = self._ended_at[self._warm_from - 1] if self._warm_from else 0.0
        return Outcome(
            seconds=self._ended_at[-1],
            read=len(self._touched) * BLOCK,
            fetched=self._plan.present.count * BLOCK,
            requests=self._requests,
            warm_seconds=self._ended_at[-1] - cold,
            warm_read=(len(self._touched) - self._touched_cold) * BLOCK,
        )

    def _issue(self) -> None:
        """The next read, if any: what the read-ahead and the block cache make of it."""
        if self._issued == len(self._accesses):
            return
        offset, length = self._accesses[self._issued]
        if self._issued == self._warm_from:
            self._touched_cold = len(self._touched)
        self._issued += 1
        ahead = self._readahead.note(offset, length, self._limit)
        if ahead is not None:
            self._hint(blocks_of(ahead, BLOCK))
        blocks = blocks_of(Span(offset, offset + length), BLOCK)
        self._touched.update(range(blocks.start, blocks.stop))
        if self._plan.present.covers(blocks):
            self._answered(None)
        else:
            self._plan.want(blocks, Waiter(self._answered))
        self._dispatch()

    def _hint(self, blocks: Span) -> None:
        if not self._plan.present.covers(blocks):
            self._plan.hint(blocks, Priority.READAHEAD)

    def _answered(self, error: Exception | None) -> None:
        assert error is None
        self._clock.after(self._cpu, self._finish)

    def _finish(self) -> None:
        self._done += 1
        self._ended_at.append(self._clock.now)
        self._issue()

    def _dispatch(self) -> None:
        """Start what slots allow, demand first."""
        while self._slots and self._start(Priority.DEMAND):
            pass
        while self._slots and self._prefetch_slots and self._start(Priority.READAHEAD):
            self._prefetch_slots -= 1

    def _start(self, priority: Priority) -> bool:
        fetch = self._plan.next_fetch([priority], self._conditions.full_length // BLOCK)
        if fetch is None:
            return False
        self._slots -= 1
        self._requests += 1
        self._server.ask(fetch)
        return True

    def _deliver(self, fetch: Fetch) -> None:
        for waiter in self._plan.arrived(fetch):
            self._plan.forget(waiter)
            waiter.wake(None)
        if fetch.next == fetch.blocks.stop:
            self._plan.end(fetch)
            self._slots += 1
            if fetch.priority is not Priority.DEMAND:
                self._prefetch_slots += 1
        self._dispatch()


def simulate(
    size: int, accesses: Iterable[Access], conditions: Conditions, cpu: float = 0.0002
) -> Outcome:
    """Read ``accesses`` of an image of ``size`` bytes. ``cpu``: seconds spent on each read.

    The time ends with the last read; what is still under way or queued then is fetched too, and
    counts as fetched.
    """
    return _Run(size, accesses, conditions, cpu).outcome()

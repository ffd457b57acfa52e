"""Fetching: four dispatchers (demand, read-ahead, preload, fill) start the fetches of the plan.

Each takes a slot of the source for its fetches. Blocks are handed on as they arrive, while the rest
of the range is still in flight.

A transient failure is retried with growing delays for as long as there is a waiter; any other is
passed to the waiters.
"""

import logging
from collections.abc import AsyncIterator, Callable

import trio

from lazyfs.cache.blocks import Blocks
from lazyfs.cache.fill import CALM, FillPolicy
from lazyfs.cache.health import Health
from lazyfs.cache.plan import Fetch
from lazyfs.core.device import Link, Priority, Slot, Source, Stream
from lazyfs.core.errors import LazyfsError, TransientError
from lazyfs.core.options import EACH_REQUEST
from lazyfs.core.ranges import Span

log = logging.getLogger(__name__)

SMALLEST_FETCH = 1 << 20  # bytes that one request may cover on any link
LARGEST_FETCH = 8 << 20
SHORT = 128 << 10  # bytes: up to this, a request is mostly round trip
MOST_TOGETHER = 4  # short requests that are pipelined on one slot
PRELOADS_TOGETHER = 16
BUSY = 2.0  # bandwidth-delay products in flight that keep a link busy
BURST = 0.01  # seconds of the rate: on short links, the process is what takes time
SMALLEST_WINDOW = 256 << 10  # bytes
MOST_DEFECTS = 100  # tracebacks in the log
SHARES = 3  # background requests that make up the window; each has a connection of its own

_DEMAND = (Priority.DEMAND,)
_READAHEAD = (Priority.READAHEAD,)
_PRELOAD = (Priority.PRELOAD,)
_FILL = (Priority.FILL,)


class Fetcher:
    """Fetches the blocks of one image. ``filled``: the span for fill to fetch; None for none."""

    def __init__(
        self,
        blocks: Blocks,
        source: Source,
        health: Health,
        fill_rate: float | None,
        saved: Callable[[], None],
    ) -> None:
        """``fill_rate``: the limit for the fill, in bytes per second; None for no limit.

        ``saved``: called when requests have ended, to save the bitmap.
        """
        self.filled: Span | None = None
        self.fill = FillPolicy(fill_rate)
        self._blocks = blocks
        self._plan = blocks.plan
        self._counts = blocks.counts
        self._source = source
        self._health = health
        self._saved = saved
        kinds: tuple[tuple[Priority, ...], ...] = (_DEMAND, _READAHEAD, _PRELOAD, _FILL)
        self._work = {kind: trio.Event() for kind in kinds}
        self._asked = trio.Event()  # set when a request is sent that a reader waits for
        self._background: set[Fetch] = set()  # in flight, and no reader waits for them
        self._drained = trio.Event()  # set when some of their blocks have come
        self._waited_at = float("-inf")  # trio time at which a reader waited last
        self._reading_ahead = 0  # requests in flight for read-ahead and preload
        self._going_on = trio.Event()  # cleared while background fetches are paused
        self._going_on.set()
        self._rate_changed = trio.Event()
        self._defects: set[str] = set()  # unforeseen exceptions whose traceback is in the log

    async def run(self) -> None:
        """Fetch blocks until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dispatch, _DEMAND, nursery)
            nursery.start_soon(self._dispatch, _READAHEAD, nursery)
            nursery.start_soon(self._dispatch, _PRELOAD, nursery)
            nursery.start_soon(self._dispatch_fill, nursery)

    def demand(self) -> None:
        """Note that a reader waits for blocks."""
        self._work[_DEMAND].set()
        self._waited_at = trio.current_time()
        self.fill.demand(self._waited_at)

    def served(self) -> None:
        """Note that a reader has stopped waiting."""
        self._waited_at = trio.current_time()
        self.fill.demand(self._waited_at)

    def hint(self, blocks: Span, priority: Priority) -> None:
        """Queue these blocks, some of which are missing, at this priority."""
        if priority is Priority.FILL:
            self.filled = _hull(self.filled, blocks)
        self._plan.hint(blocks, priority)
        self._work[(priority,)].set()

    def refill(self, blocks: Span) -> None:
        """Queue blocks that are missing again for the fill, as far as it was to fetch them."""
        if self.filled is not None:
            again = Span(max(blocks.start, self.filled.start), min(blocks.stop, self.filled.stop))
            if again.start < again.stop:
                self.hint(again, Priority.FILL)

    @property
    def paused(self) -> bool:
        return not self._going_on.is_set()

    def pause(self) -> None:
        """Pause background fetches: preloads and the fill. Read-ahead continues."""
        if self._going_on.is_set():
            self._going_on = trio.Event()

    def resume(self) -> None:
        """Resume background fetches after ``pause``."""
        self._going_on.set()

    def limit_rate(self, rate: float | None) -> None:
        """Set the limit for the fill, in bytes per second; None for no limit."""
        self.fill.limit(rate)
        self._rate_changed.set()
        self._rate_changed = trio.Event()

    # Dispatching

    async def _dispatch(self, priorities: tuple[Priority, ...], nursery: trio.Nursery) -> None:
        """Start fetches of these priorities as work and slots become available."""
        while True:
            await self._wait_for_work(priorities)
            if priorities is _PRELOAD:
                await self._going_on.wait()
            if priorities is not _DEMAND:
                await self._wait_for_window()
            slot = await self._source.slot(priorities[0])
            fetches = self._take_some(priorities, slot)
            if not fetches:
                slot.release()
            else:
                nursery.start_soon(self._run_fetches, fetches, slot)
                self.fill.demand(trio.current_time())
                if priorities is _DEMAND:
                    self._asked.set()
                    self._asked = trio.Event()

    async def _dispatch_fill(self, nursery: trio.Nursery) -> None:
        """Start fetches of the fill when they delay no reader; see ``fill.py``."""
        while True:
            await self._wait_for_work(_FILL)
            await self._going_on.wait()
            await self._wait_until_paid()
            beside = await self._wait_for_turn()
            slot = await self._source.slot(Priority.FILL)
            now = trio.current_time()
            full = _full_length(slot.link)
            fetch = self._take(_FILL, self.fill.length(now, slot.link, full, beside=beside))
            if fetch is None:
                slot.release()
                continue
            self.fill.asked(now, fetch.blocks.length * self._blocks.block_size)
            if beside or self.fill.calm(now):
                nursery.start_soon(self._run_fetches, [fetch], slot)
            else:
                await self._run_fetches([fetch], slot)

    async def _wait_until_paid(self) -> None:
        """Wait until the rate allows another request of the fill."""
        while (ready := self.fill.ready_at()) > trio.current_time():
            with trio.move_on_at(ready):
                await self._rate_changed.wait()

    async def _wait_for_turn(self) -> bool:
        """Wait until fill may send a request; returns whether it goes beside a reader's request."""
        while not self.fill.calm(trio.current_time()):
            with trio.move_on_after(self.fill.pause(self._source.link)):
                await self._asked.wait()
                if not self._reading_ahead:
                    return True
            if self._plan.quiet and not self._reading_ahead:
                break
        return False

    async def _wait_for_window(self) -> None:
        """Wait until background fetches may send another request.

        While readers wait now and then, only as much is in flight as keeps the link busy: whatever
        is in front of a reader's request delays it.
        """
        while self._background and self._room() < self._share():
            self._drained = trio.Event()
            with trio.move_on_after(CALM):
                await self._drained.wait()

    def _share(self) -> int:
        """Bytes of one background request beside readers: some of them make up the window."""
        return max(SHORT, _window(self._source.link) // SHARES)

    def _room(self) -> int:
        """Bytes that background fetches may ask for now."""
        if trio.current_time() - self._waited_at >= CALM:
            return 2 * LARGEST_FETCH
        blocks = sum(fetch.blocks.stop - fetch.next for fetch in self._background)
        return _window(self._source.link) - blocks * self._blocks.block_size

    async def _wait_for_work(self, priorities: tuple[Priority, ...]) -> None:
        while not self._plan.has_work(priorities):
            self._work[priorities] = trio.Event()
            await self._work[priorities].wait()

    def _take_some(self, priorities: tuple[Priority, ...], slot: Slot) -> list[Fetch]:
        """Take the fetches for this slot: several short ones, which then cost one round trip.

        Several demand fetches only if others would wait for a slot. Preloads are many and
        scattered: as many as keep the link busy for one round trip.
        """
        full = _full_length(slot.link)
        if priorities is not _DEMAND:
            full = max(self._share(), min(full, self._room()))
        fetch = self._take(priorities, full)
        fetches: list[Fetch] = []
        asked = 0
        while fetch is not None:
            fetches.append(fetch)
            length = fetch.blocks.length * self._blocks.block_size
            asked += length
            fetch = None
            if priorities is _DEMAND:
                if length <= SHORT and slot.last and len(fetches) < MOST_TOGETHER:
                    fetch = self._take(priorities, SHORT)
            elif priorities is _PRELOAD and asked < full and len(fetches) < PRELOADS_TOGETHER:
                fetch = self._take(priorities, full - asked)
        return fetches

    def _take(self, priorities: tuple[Priority, ...], length: int) -> Fetch | None:
        """Take the next fetch, of at most about ``length`` bytes; None if none or paused."""
        if self.paused and priorities in (_PRELOAD, _FILL):
            return None
        return self._plan.next_fetch(priorities, max(1, length // self._blocks.block_size))

    # Running

    async def _run_fetches(self, fetches: list[Fetch], slot: Slot) -> None:
        """Run these fetches in order on one slot; after a failure, the rest is queued again."""
        spans = [self._blocks.bytes_of(fetch.blocks) for fetch in fetches]
        streams = slot.streams([(span.start, span.length) for span in spans])
        self._counts.requests += len(fetches)
        self._counts.under_way += len(fetches)
        ahead = sum(fetch.priority in (Priority.READAHEAD, Priority.PRELOAD) for fetch in fetches)
        self._reading_ahead += ahead
        if fetches[0].priority is not Priority.DEMAND:
            self._background.update(fetches)
        good = True
        try:
            for fetch, stream in zip(fetches, streams, strict=True):
                good = good and await self._fetch(fetch, stream, slot)
                self._plan.end(fetch)
                self.refill(Span(fetch.next, fetch.blocks.stop))
        finally:
            self._saved()
            self._work[_DEMAND].set()
            self._counts.under_way -= len(fetches)
            self._reading_ahead -= ahead
            self._background.difference_update(fetches)
            self._drained.set()
            slot.release()

    async def _fetch(self, fetch: Fetch, stream: Stream, slot: Slot) -> bool:
        """Run one request to its end; returns whether it succeeded. Never raises an Exception."""
        began, first = trio.current_time(), fetch.next
        try:
            async with stream as pieces:
                await self._take_in(fetch, pieces, slot)
        except TransientError as error:
            self._counts.failures += 1
            slot.failed(error)
        except LazyfsError as error:
            self._give_up(fetch, error)
        except Exception as error:
            # A defect, or a state that nobody thought of: the next try may find another one.
            self._counts.failures += 1
            name, defect = self._blocks.name, repr(error)
            if defect not in self._defects and len(self._defects) < MOST_DEFECTS:
                self._defects.add(defect)
                log.exception("%s: a fetch failed in an unforeseen way", name)
            why = f"{name}: a fetch failed in an unforeseen way: {defect}"
            slot.failed(TransientError(why, "this is a defect of lazyfs: please report it"))
        else:
            self._log_request(Span(first, fetch.next), fetch.priority, began)
            return True
        return False

    def _give_up(self, fetch: Fetch, error: LazyfsError) -> None:
        """Fail all waiters of this fetch, as no retry can help. Fill may try again much later."""
        self._counts.failures += 1
        self.fill.failed(trio.current_time())
        self._health.gave_up(error)
        for waiter in self._plan.fail(fetch):
            waiter.wake(error)

    async def _take_in(
        self, fetch: Fetch, pieces: AsyncIterator[bytes | bytearray], slot: Slot
    ) -> None:
        """Cut a stream into blocks, and store each as soon as it is whole."""
        pending = bytearray()
        async for piece in pieces:
            self._counts.fetched += len(piece)
            self._counts.flow.received(trio.current_time(), len(piece))
            pending += piece
            whole = self._whole_blocks(fetch, len(pending))
            if whole:
                with memoryview(pending) as view, view[:whole] as content:
                    self._keep(fetch, content, slot)
                del pending[:whole]

    def _whole_blocks(self, fetch: Fetch, received: int) -> int:
        """How many of ``received`` bytes are whole blocks; the image's last may be shorter."""
        left = self._blocks.bytes_of(Span(fetch.next, fetch.blocks.stop)).length
        return received if received >= left else received - received % self._blocks.block_size

    def _keep(self, fetch: Fetch, content: memoryview, slot: Slot) -> None:
        evicted = self._blocks.keep(fetch, content)
        if fetch.priority is not Priority.DEMAND:
            self._drained.set()
        self._health.arrived()
        slot.succeeded()
        self.fill.succeeded()
        if evicted and fetch.priority is Priority.FILL:
            self._stop_filling()

    def _stop_filling(self) -> None:
        """Stop the fill, since it would have to evict blocks that it has fetched itself."""
        if self.filled is not None:
            log.warning("%s: the cache cannot hold all of it; the fill stops", self._blocks.name)
        self.filled = None
        self._plan.drop_hints(Priority.FILL)

    def _log_request(self, blocks: Span, priority: Priority, began: float) -> None:
        if not log.isEnabledFor(EACH_REQUEST):
            return
        span = self._blocks.bytes_of(blocks)
        took = 1000 * (trio.current_time() - began)
        what = f"bytes {span.start} to {span.stop - 1}"
        name = self._blocks.name
        log.log(EACH_REQUEST, "%s: %s came in %.1f ms (%s)", name, what, took, priority.name)


def _hull(one: Span | None, other: Span) -> Span:
    """The smallest span that contains both."""
    if one is None:
        return other
    return Span(min(one.start, other.start), max(one.stop, other.stop))


def _window(link: Link) -> int:
    """Bytes of background fetches in flight beside readers: what keeps the link busy, just."""
    return max(int(BUSY * link.bandwidth_delay), int(BURST * link.rate), SMALLEST_WINDOW)


def _full_length(link: Link) -> int:
    """Bytes per request: enough that the round trip is short compared with the transfer."""
    return min(max(2 * link.bandwidth_delay, SMALLEST_FETCH), LARGEST_FETCH)

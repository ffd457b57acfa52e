"""The block cache: a trio shell around the plan. A Device.

A read that finds its blocks present is served inline: a thread hop costs 150 to 280 microseconds,
``os.pread`` about 30. Any other read becomes a waiter in the plan; four dispatchers (demand,
read-ahead, preload, fill) take lanes of the source and start the fetches that the plan names.
Blocks are stored as they come in, and their waiters woken, while the rest of the range is still
under way.

Failures: a transient one is retried, with growing delays, for as long as somebody waits; any other
goes to those who wait. Each read ends by its deadline.
"""

import logging
import random
from collections.abc import AsyncIterator, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager

import trio

from lazyfs.cache.counts import Counts
from lazyfs.cache.fill import FillPolicy
from lazyfs.cache.plan import Fetch, Plan, Waiter
from lazyfs.cache.retry import Backoff
from lazyfs.cache.state import CacheState, Cell, cells_of
from lazyfs.cache.store import Store
from lazyfs.core.device import Identity, Lane, Link, Priority, Source, Statistics
from lazyfs.core.errors import CacheError, InternalError, LazyfsError, ReadTimeout, TransientError
from lazyfs.core.options import EACH_REQUEST
from lazyfs.core.ranges import Span, blocks_of, bytes_of, clamp

log = logging.getLogger(__name__)

SYNC_EVERY = 5.0  # seconds: what a power cut may cost
SMALLEST_FETCH = 1 << 20  # bytes that one request may ask for on any link
LARGEST_FETCH = 8 << 20
LONGEST_WAIT = 300.0  # seconds that a server's Retry-After may hold requests back
SHORT = 128 << 10  # bytes: a request that is mostly round trip
MOST_TOGETHER = 4  # short requests that are sent at once on one lane
PRELOADS_TOGETHER = 16
VERIFY_STEP = 1 << 20  # bytes compared with their checksums between two looks at the event loop

Stream = AbstractAsyncContextManager[AsyncIterator[bytes | bytearray]]

_DEMAND = (Priority.DEMAND,)
_READAHEAD = (Priority.READAHEAD,)
_PRELOAD = (Priority.PRELOAD,)
_FILL = (Priority.FILL,)


class BlockCache:
    """One image, cached block by block. ``run`` must be running for anything to be fetched."""

    def __init__(
        self,
        name: str,
        source: Source,
        store: Store,
        timeout: float,
        fill_rate: float | None = None,
    ) -> None:
        """``name``: for messages. ``timeout``: seconds until a read fails; 0 for never.

        ``fill_rate``: the most bytes a second that fill may fetch; None for no limit.
        """
        self.identity: Identity = source.identity
        self._name = name
        self._source = source
        self._store = store
        self._timeout = timeout
        self._block_size = store.block_size
        self._plan = Plan(store.present)
        kinds: tuple[tuple[Priority, ...], ...] = (_DEMAND, _READAHEAD, _PRELOAD, _FILL)
        self._work = {kind: trio.Event() for kind in kinds}
        self._asked = trio.Event()  # set when a request is sent that a reader waits for
        self._reading_ahead = 0  # requests under way for read-ahead and preload
        self._filling = False  # whether the whole image is wanted
        self._arrived_all = trio.Event()
        if self._plan.complete:
            self._arrived_all.set()
        self._complete = trio.Event()
        self._fill = FillPolicy(fill_rate)
        self._going_on = trio.Event()  # not set while nothing may be fetched that nobody waits for
        self._going_on.set()
        self._rate_changed = trio.Event()
        self._backoff = Backoff(timeout)
        self._jitter = random.Random().random  # noqa: S311  # keeps clients apart, hides nothing
        self._resume_at = 0.0  # trio time before which nothing is asked
        self._last_failure: LazyfsError | None = None  # None while all goes well
        self._failing_since = 0.0  # trio time
        self._said = logging.NOTSET  # the highest level at which it was logged
        self._unsynced = False
        self._counts = Counts(store.present.block_count)

    def begin_with(self, content: bytes) -> None:
        """The image's first bytes have come already: keep the blocks that are whole and missing."""
        count = len(content) // self._block_size
        if len(content) == self.identity.size:
            count = self._plan.present.block_count
        self._plan.hint(Span(0, count), Priority.PRELOAD)
        fetch = self._plan.next_fetch(_PRELOAD, count)
        self._plan.drop_hints(Priority.PRELOAD)
        if fetch is not None:
            span = bytes_of(fetch.blocks, self._block_size, self.identity.size)
            self._counts.requests += 1
            self._counts.fetched += span.length
            self._keep(fetch, memoryview(content)[span.start : span.stop])

    # The Device

    @property
    def link(self) -> Link:
        return self._source.link

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        blocks = blocks_of(span, self._block_size)
        self._counts.wanted += span.length
        if self._ready(blocks):
            self._counts.hits += 1
        else:
            self._counts.misses += 1
            began = trio.current_time()
            await self._make_ready(blocks)
            now = trio.current_time()
            self._counts.slowest.note(now, span.start, span.length, now - began)
        self._counts.prefetch_used(blocks)
        try:
            return self._store.read(span)
        except OSError as error:
            log.warning("%s: the cache cannot be read: %s", self._name, error.strerror)
        return await self._read_anew(span, blocks)

    async def _read_anew(self, span: Span, blocks: Span) -> bytes:
        """Fetch what could be read and now cannot. Raises CacheError if that is in vain."""
        self._lost(range(blocks.start, blocks.stop))
        await self._make_ready(blocks)
        try:
            return self._store.read(span)
        except OSError as error:
            raise CacheError(
                f"{self._name}: the cache cannot be read: {error.strerror}",
                "look at the disk that it is on",
            ) from error

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        blocks = blocks_of(clamp(offset, length, self.identity.size), self._block_size)
        limit = self._store.prefetch_limit
        if limit is not None and priority is Priority.READAHEAD:
            blocks = Span(blocks.start, min(blocks.stop, blocks.start + limit // self._block_size))
        if not self._plan.present.covers(blocks):
            self._filling = self._filling or priority is Priority.FILL
            self._hint(blocks, priority)

    def _hint(self, blocks: Span, priority: Priority) -> None:
        self._plan.hint(blocks, priority)
        self._work[(priority,)].set()

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        span = clamp(offset, length, self.identity.size)
        for blocks, here in self._plan.present.runs(blocks_of(span, self._block_size)):
            found = bytes_of(blocks, self._block_size, span.stop)
            yield found.stop - max(found.start, span.start), here

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return await self._source.zeros(offset, length)

    async def wait_complete(self) -> None:
        """Wait until the whole image is here, each block compared with its checksum."""
        await self._complete.wait()

    def statistics(self) -> Statistics:
        counts = self._counts
        return Statistics(
            size=self.identity.size,
            cached=self._plan.present.byte_count(self._block_size, self.identity.size),
            wanted=counts.wanted,
            hits=counts.hits,
            misses=counts.misses,
            fetched=counts.fetched,
            prefetched=counts.prefetched,
            unused=counts.unused_blocks * self._block_size,
            requests=counts.requests,
            under_way=counts.under_way,
            failures=counts.failures,
            damaged=counts.damaged,
            evicted=counts.evicted,
            rate=self.link.rate,
            round_trip=self.link.round_trip,
        )

    # Steering

    def state(self) -> CacheState:
        now, failure = trio.current_time(), self._last_failure
        return CacheState(
            flow=self._counts.flow.rate(now),
            trouble=failure.message if failure else "",
            trouble_for=now - self._failing_since if failure else 0.0,
            complete=self._complete.is_set(),
            filling=self._filling and not self._plan.complete,
            paused=not self._going_on.is_set(),
            fill_rate=self._fill.rate,
            slowest=tuple(self._counts.slowest.lately(now)),
        )

    def cells(self, count: int) -> list[Cell]:
        """The image in ``count`` parts, or fewer."""
        return cells_of(count, self._plan.present, self._counts, self._plan.under_way)

    def pause(self) -> None:
        """Fetch nothing that nobody waits for, but what is read ahead of a reader."""
        if self._going_on.is_set():
            self._going_on = trio.Event()

    def resume(self) -> None:
        """Go on with what ``pause`` has stopped."""
        self._going_on.set()

    def limit_rate(self, rate: float | None) -> None:
        """The most bytes a second that fill may fetch from now on; None for no limit."""
        self._fill.limit(rate)
        self._rate_changed.set()
        self._rate_changed = trio.Event()

    async def aclose(self) -> None:
        """Save what is not saved yet, and let go of the cache. ``run`` must have ended."""
        with trio.CancelScope(shield=True):
            try:
                self._note_blocks()
                await self._sync()
            finally:
                self._store.close()

    # Its tasks

    async def run(self) -> None:
        """Fetch what is asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._dispatch, _DEMAND, nursery)
            nursery.start_soon(self._dispatch, _READAHEAD, nursery)
            nursery.start_soon(self._dispatch, _PRELOAD, nursery)
            nursery.start_soon(self._dispatch_fill, nursery)
            nursery.start_soon(self._watch_completion)
            nursery.start_soon(self._sync_regularly)

    async def _dispatch(self, priorities: tuple[Priority, ...], nursery: trio.Nursery) -> None:
        """Start fetches of these priorities as work and lanes turn up."""
        while True:
            await self._wait_for_work(priorities)
            if priorities is _PRELOAD:
                await self._going_on.wait()
            lane = await self._source.lane(priorities[0])
            fetches = self._take_some(priorities, lane)
            if not fetches:
                lane.release()
            else:
                nursery.start_soon(self._run_fetches, fetches, lane)
                self._fill.demand(trio.current_time())
                if priorities is _DEMAND:
                    self._asked.set()
                    self._asked = trio.Event()

    async def _dispatch_fill(self, nursery: trio.Nursery) -> None:
        """Start fetches of the fill when that delays nobody; see ``fill.py``."""
        while True:
            await self._wait_for_work(_FILL)
            await self._going_on.wait()
            await self._wait_until_paid()
            beside = await self._wait_for_turn()
            lane = await self._source.lane(Priority.FILL)
            now = trio.current_time()
            length = self._fill.length(now, self.link, self._full_length(), beside=beside)
            fetch = self._take(_FILL, length)
            if fetch is None:
                lane.release()
                continue
            self._fill.asked(now, fetch.blocks.length * self._block_size)
            if beside or self._fill.calm(now):
                nursery.start_soon(self._run_fetches, [fetch], lane)
            else:
                await self._run_fetches([fetch], lane)

    async def _wait_until_paid(self) -> None:
        """Wait until the rate allows another request of the fill."""
        while (ready := self._fill.ready_at()) > trio.current_time():
            with trio.move_on_at(ready):
                await self._rate_changed.wait()

    async def _wait_for_turn(self) -> bool:
        """Wait until fill may ask; returns whether it goes beside the request of a reader."""
        while not self._fill.calm(trio.current_time()):
            with trio.move_on_after(self._fill.pause(self.link)):
                await self._asked.wait()
                if not self._reading_ahead:
                    return True
            if self._plan.quiet and not self._reading_ahead:
                break
        return False

    async def _wait_for_work(self, priorities: tuple[Priority, ...]) -> None:
        """Wait until there is something to fetch, and the server may be asked."""
        while not self._plan.has_work(priorities):
            self._work[priorities] = trio.Event()
            await self._work[priorities].wait()
        await trio.sleep_until(self._resume_at)

    def _take_some(self, priorities: tuple[Priority, ...], lane: Lane) -> list[Fetch]:
        """What to fetch on this lane: several short requests, which then cost one round trip.

        Of demand only if others would wait for a lane. Preloads are many and scattered: as many as
        use the link while one round trip lasts.
        """
        full = self._full_length()
        fetch = self._take(priorities, full)
        fetches: list[Fetch] = []
        asked = 0
        while fetch is not None:
            fetches.append(fetch)
            length = fetch.blocks.length * self._block_size
            asked += length
            fetch = None
            if priorities is _DEMAND:
                if length <= SHORT and lane.last and len(fetches) < MOST_TOGETHER:
                    fetch = self._take(priorities, SHORT)
            elif priorities is _PRELOAD and asked < full and len(fetches) < PRELOADS_TOGETHER:
                fetch = self._take(priorities, full - asked)
        return fetches

    def _take(self, priorities: tuple[Priority, ...], length: int) -> Fetch | None:
        """The next fetch, of at most about ``length`` bytes, unless such are held back."""
        held = not self._going_on.is_set() and priorities in (_PRELOAD, _FILL)
        if held or trio.current_time() < self._resume_at:
            return None
        return self._plan.next_fetch(priorities, max(1, length // self._block_size))

    def _full_length(self) -> int:
        """Bytes in one request: enough that its round trip is small beside its transfer."""
        return min(max(2 * self.link.bandwidth_delay, SMALLEST_FETCH), LARGEST_FETCH)

    async def _run_fetches(self, fetches: list[Fetch], lane: Lane) -> None:
        """Run these one after the other, on one lane; after a failure, the rest is put back."""
        spans = [bytes_of(f.blocks, self._block_size, self.identity.size) for f in fetches]
        streams = self._source.streams([(span.start, span.length) for span in spans])
        self._counts.requests += len(fetches)
        self._counts.under_way += len(fetches)
        ahead = sum(fetch.priority in (Priority.READAHEAD, Priority.PRELOAD) for fetch in fetches)
        self._reading_ahead += ahead
        good = True
        try:
            for fetch, stream in zip(fetches, streams, strict=True):
                good = good and await self._fetch(fetch, stream)
                self._plan.end(fetch)
                if self._filling and fetch.next < fetch.blocks.stop:
                    self._hint(Span(fetch.next, fetch.blocks.stop), Priority.FILL)
        finally:
            self._note_blocks()
            self._work[_DEMAND].set()
            self._counts.under_way -= len(fetches)
            self._reading_ahead -= ahead
            lane.release()

    async def _fetch(self, fetch: Fetch, stream: Stream) -> bool:
        """Run one request to its end; returns whether that was good. Never raises an Exception."""
        began, first = trio.current_time(), fetch.next
        try:
            async with stream as pieces:
                await self._take_in(fetch, pieces)
        except TransientError as error:
            self._retry_later(error)
        except LazyfsError as error:
            self._give_up(fetch, error)
        except Exception as error:
            log.exception("%s: a fetch failed in an unforeseen way", self._name)
            self._give_up(
                fetch,
                InternalError(f"{self._name}: a fetch failed in an unforeseen way: {error!r}"),
            )
        else:
            self._log_request(Span(first, fetch.next), fetch.priority, began)
            return True
        return False

    def _log_request(self, blocks: Span, priority: Priority, began: float) -> None:
        if not log.isEnabledFor(EACH_REQUEST):
            return
        span = bytes_of(blocks, self._block_size, self.identity.size)
        took = 1000 * (trio.current_time() - began)
        what = f"bytes {span.start} to {span.stop - 1}"
        log.log(EACH_REQUEST, "%s: %s came in %.1f ms (%s)", self._name, what, took, priority.name)

    async def _take_in(self, fetch: Fetch, pieces: AsyncIterator[bytes | bytearray]) -> None:
        """Cut a stream into blocks; store each and wake its waiters."""
        pending = bytearray()
        async for piece in pieces:
            self._counts.fetched += len(piece)
            self._counts.flow.received(trio.current_time(), len(piece))
            pending += piece
            whole = self._whole_blocks(fetch, len(pending))
            if whole:
                with memoryview(pending) as view, view[:whole] as content:
                    self._keep(fetch, content)
                del pending[:whole]

    def _whole_blocks(self, fetch: Fetch, received: int) -> int:
        """How many of ``received`` bytes make up whole blocks; the image's last may be shorter."""
        left = bytes_of(Span(fetch.next, fetch.blocks.stop), self._block_size, self.identity.size)
        return received if received >= left.length else received - received % self._block_size

    def _keep(self, fetch: Fetch, content: memoryview) -> None:
        """Store the next blocks of ``fetch``. The store comes first: a set bit must be true."""
        self._store.put(fetch.next, content)
        if self._last_failure is not None or self._said > logging.NOTSET:
            self._recovered()
        blocks = Span(fetch.next, fetch.next - (-len(content) // self._block_size))
        if fetch.priority is not Priority.DEMAND:
            self._counts.prefetch_arrived(blocks, len(content))
        for _ in range(blocks.length):
            for waiter in self._plan.arrived(fetch):
                waiter.wake(None)
        if self._evict() and fetch.priority is Priority.FILL:
            self._stop_filling()

    def _evict(self) -> int:
        """Let the store put its blocks in order; returns how many went to keep to its limit."""
        gone = self._store.evict(self._plan.held)
        self._lost(gone)
        self._counts.evicted += len(gone)
        if self._all_here() and not self._complete.is_set():
            self._arrived_all.set()
        return len(gone)

    def _lost(self, blocks: Collection[int]) -> None:
        """These blocks are not there any more."""
        self._plan.lost(blocks)
        if blocks:
            self._not_complete_any_more()

    def _not_complete_any_more(self) -> None:
        if self._complete.is_set():
            self._complete = trio.Event()

    def _all_here(self) -> bool:
        """Whether all blocks are in their place, as far as is known without looking at them."""
        return self._plan.complete and self._store.settled

    def _stop_filling(self) -> None:
        """What fill brings now takes the place of what is there: it would never come to its end."""
        if self._filling:
            log.warning("%s: the cache cannot hold all of it; the fill stops", self._name)
        self._filling = False
        self._plan.drop_hints(Priority.FILL)

    async def _watch_completion(self) -> None:
        """Find out when all blocks are here, right and on the disk, those of earlier mounts too."""
        while True:
            await self._arrived_all.wait()
            self._arrived_all = trio.Event()
            step = max(1, VERIFY_STEP // self._block_size)
            for first in range(0, self._plan.present.block_count, step):
                self._ready(Span(first, min(first + step, self._plan.present.block_count)))
                await trio.lowlevel.checkpoint()
            self._note_blocks()
            if not await self._sync():
                await trio.sleep(SYNC_EVERY)
                self._arrived_all.set()
            elif self._all_here():
                log.info("%s is complete", self._name)
                await self._source.rest()
                self._complete.set()
            else:
                await self.ensure(0, self.identity.size, Priority.FILL)

    # Saving

    def _note_blocks(self) -> None:
        """Write down which blocks are present. A failure costs work after a crash, nothing else."""
        pages = self._plan.present.take_dirty()
        if not pages:
            return
        try:
            self._unsynced = self._store.note(pages) or self._unsynced
        except OSError as error:
            self._plan.present.mark_dirty(pages)
            log.error("%s: the cache's bitmap cannot be written: %s", self._name, error.strerror)

    async def _sync_regularly(self) -> None:
        while True:
            await trio.sleep(SYNC_EVERY)
            self._evict()
            self._note_blocks()
            await self._sync()

    async def _sync(self) -> bool:
        """Have the disk keep what was written; returns whether it does."""
        if not self._unsynced:
            return True
        self._unsynced = False
        try:
            await trio.to_thread.run_sync(self._store.sync)
        except OSError as error:
            self._unsynced = True
            self._not_complete_any_more()  # what was verified may be gone from the kernel's memory
            log.error("%s: the cache cannot be synced: %s", self._name, error.strerror)
            return False
        return True

    # Waiting

    def _ready(self, blocks: Span) -> bool:
        """Whether these blocks can be served now; damaged ones are dropped on the way."""
        if not self._plan.present.covers(blocks):
            return False
        damaged = self._store.verify(blocks)
        if not damaged:
            return True
        self._counts.damaged += len(damaged)
        self._lost(damaged)
        if self._filling:
            for block in damaged:
                self._hint(Span(block, block + 1), Priority.FILL)
        log.warning(
            "%s: %d cached blocks from block %d on were damaged; fetching them again",
            self._name,
            len(damaged),
            damaged[0],
        )
        return False

    async def _make_ready(self, blocks: Span) -> None:
        """Wait until these blocks can be served. Raises ReadTimeout, or what made it impossible."""
        with trio.move_on_after(self._timeout or float("inf")):
            while not self._ready(blocks):
                await self._wait_for(blocks)
            return
        reason = f" (last failure: {self._last_failure.message})" if self._last_failure else ""
        error = ReadTimeout(f"{self._name}: no data within {self._timeout:g} seconds{reason}")
        self._say(error, logging.ERROR)
        raise error

    async def _wait_for(self, blocks: Span) -> None:
        """Wait until these blocks have arrived, once."""
        done = trio.Event()
        failure: Exception | None = None

        def wake(error: Exception | None) -> None:
            nonlocal failure
            failure = error
            done.set()

        waiter = Waiter(wake)
        self._plan.want(blocks, waiter)
        self._work[_DEMAND].set()
        self._fill.demand(trio.current_time())
        try:
            await done.wait()
        finally:
            self._plan.forget(waiter)
            self._fill.demand(trio.current_time())
        if failure is not None:
            raise failure

    # Failing and recovering: each change of state is said once, not at every attempt

    def _retry_later(self, error: TransientError) -> None:
        """Hold all requests back for a while."""
        wait = None if error.retry_after is None else min(error.retry_after, LONGEST_WAIT)
        delay = self._backoff.failed(self._jitter(), wait)
        self._resume_at = max(self._resume_at, trio.current_time() + delay)
        self._failed(error, logging.WARNING if delay else logging.DEBUG, "; retrying")

    def _give_up(self, fetch: Fetch, error: LazyfsError) -> None:
        """No retry can help those who wait for this fetch; fill may try again much later."""
        self._fill.failed(trio.current_time())
        self._failed(error, logging.ERROR)
        for waiter in self._plan.fail(fetch):
            waiter.wake(error)

    def _failed(self, error: LazyfsError, level: int, what_next: str = "") -> None:
        self._counts.failures += 1
        if self._last_failure is None:
            self._failing_since = trio.current_time()
        self._last_failure = error
        self._say(error, level, what_next)

    def _say(self, error: LazyfsError, level: int, what_next: str = "") -> None:
        if level > self._said:
            self._said = level
            log.log(level, "%s%s", error, what_next)

    def _recovered(self) -> None:
        if self._said > logging.DEBUG:
            log.info("%s: data are coming in again", self._name)
        self._said = logging.NOTSET
        self._last_failure = None
        self._resume_at = 0.0
        self._backoff.succeeded()
        self._fill.succeeded()

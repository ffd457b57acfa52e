"""What is missing, under way and present; asks and answers in, fetches and wake-ups out. Pure.

The bitmap, the set of blocks under way and the order of fetches are one state, and it lives here:
a scheduler of its own would be a second truth. Everything is synchronous, so between two awaits of
the shell (``blockcache.py``) the state is whole. What holds after every call:

- a block is never both present and under way, and never in two fetches: any number of readers of
  one block cause one request;
- a waiter waits for exactly those blocks of its range that were not present when it came; when the
  last of them arrives it is handed back, once (a block may have been lost by then: the reader looks
  again);
- what waiters have asked for is held, present or not, until they are forgotten: a store that has to
  make room takes other blocks;
- a block that a waiter waits for is under way or queued at DEMAND.

Queues hold ranges, not blocks: asking for a whole terabyte costs one entry. What a range still
needs is worked out when its turn comes, so an entry may be stale but never wrong.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.device import Priority
from lazyfs.core.ranges import Span

PRELOADS_JOINED = 16  # of them become one request, if they adjoin in their order
MAX_READAHEADS = 32  # queued ranges; the oldest go: their readers have gone elsewhere


class Waiter:
    """One reader waiting for blocks. ``wake`` is called once, with None or with what failed."""

    __slots__ = ("blocks", "missing", "wake")

    def __init__(self, wake: Callable[[Exception | None], None]) -> None:
        self.blocks = Span(0, 0)
        self.missing: set[int] = set()
        self.wake = wake


class Fetch:
    """One request under way: ``blocks`` were asked for, those from ``next`` on have not come."""

    __slots__ = ("blocks", "next", "priority")

    def __init__(self, blocks: Span, priority: Priority) -> None:
        self.blocks = blocks
        self.next = blocks.start
        self.priority = priority


class Plan:
    """The state of one image's blocks."""

    def __init__(self, present: Bitmap) -> None:
        self.present = present
        self._under_way: dict[int, Fetch] = {}
        self._waiters: dict[int, list[Waiter]] = {}
        self.held: Counter[int] = Counter()  # blocks of all readers that wait, present ones too
        self._queues: dict[Priority, deque[Span]] = {p: deque() for p in Priority}

    # What readers ask

    def want(self, blocks: Span, waiter: Waiter) -> None:
        """Have ``waiter`` woken when all these blocks are present; some must not be."""
        waiter.blocks = blocks
        self.held.update(range(blocks.start, blocks.stop))
        waiter.missing = set(self.present.missing(blocks))
        for block in waiter.missing:
            self._waiters.setdefault(block, []).append(waiter)
        self._queues[Priority.DEMAND].append(blocks)

    def forget(self, waiter: Waiter) -> None:
        """The reader has gone; nothing is fetched or held for its sake any more."""
        for block in range(waiter.blocks.start, waiter.blocks.stop):
            self.held[block] -= 1
            if not self.held[block]:
                del self.held[block]
        waiter.blocks = Span(0, 0)
        for block in waiter.missing:
            others = self._waiters[block]
            others.remove(waiter)
            if not others:
                del self._waiters[block]
        waiter.missing = set()

    def hint(self, blocks: Span, priority: Priority) -> None:
        """These blocks will be wanted. Nobody is woken.

        What adjoins earlier hints is joined with them. The hint that was given or continued last
        is served first: a reader that goes on is worth more than one that may have gone. Preloads
        come in the order in which they will be used, and stay in it.
        """
        queue = self._queues[priority]
        if priority is Priority.PRELOAD:
            queue.append(blocks)
            return
        for earlier in list(queue):
            if earlier.start <= blocks.stop and blocks.start <= earlier.stop:
                queue.remove(earlier)
                blocks = Span(min(earlier.start, blocks.start), max(earlier.stop, blocks.stop))
        queue.append(blocks)
        if priority is Priority.READAHEAD and len(queue) > MAX_READAHEADS:
            queue.popleft()

    def drop_hints(self, priority: Priority) -> None:
        """Forget all that was hinted at this priority."""
        self._queues[priority].clear()

    # What the source does

    def next_fetch(self, priorities: Iterable[Priority], most: int) -> Fetch | None:
        """Take the next request, from the first of ``priorities`` that has any work.

        ``most``: blocks that it may ask for. They count as under way until ``end``.
        """
        for priority in priorities:
            blocks = self._next_run(priority, most)
            if blocks is not None:
                fetch = Fetch(blocks, priority)
                for block in range(blocks.start, blocks.stop):
                    self._under_way[block] = fetch
                return fetch
        return None

    def has_work(self, priorities: Iterable[Priority]) -> bool:
        """Whether ``next_fetch`` would find any."""
        return any(self._head(priority) is not None for priority in priorities)

    def arrived(self, fetch: Fetch) -> list[Waiter]:
        """The next block of ``fetch`` is stored; who waited for nothing but that?"""
        block = fetch.next
        fetch.next += 1
        del self._under_way[block]
        self.present.add(block)
        done = []
        for waiter in self._waiters.pop(block, ()):
            waiter.missing.discard(block)
            if not waiter.missing:
                done.append(waiter)
        return done

    def end(self, fetch: Fetch) -> None:
        """The request is over. What it did not bring is fetched again only if somebody waits."""
        for block in range(fetch.next, fetch.blocks.stop):
            del self._under_way[block]
        wanted = [b for b in range(fetch.next, fetch.blocks.stop) if b in self._waiters]
        for block in reversed(wanted):
            self._queues[Priority.DEMAND].appendleft(Span(block, block + 1))

    def fail(self, fetch: Fetch) -> list[Waiter]:
        """The request can never succeed: forget and return all who wait for a block of it."""
        failed: list[Waiter] = []
        for block in range(fetch.next, fetch.blocks.stop):
            for waiter in self._waiters.get(block, ()):
                if waiter not in failed:
                    failed.append(waiter)
        for waiter in failed:
            self.forget(waiter)
        return failed

    @property
    def complete(self) -> bool:
        """Whether every block is present."""
        return self.present.count == self.present.block_count

    @property
    def under_way(self) -> Iterable[int]:
        """The blocks that have been asked for, and have not come."""
        return self._under_way.keys()

    @property
    def quiet(self) -> bool:
        """Whether nobody waits for anything."""
        return not self._waiters

    # What the store says

    def lost(self, blocks: Iterable[int]) -> None:
        """These blocks are no longer there: evicted, or damaged."""
        for block in blocks:
            self.present.discard(block)

    # Choosing

    def _needed(self, block: int, priority: Priority) -> bool:
        """Whether a queue of this priority has any reason to fetch this block now.

        Demand is what somebody still waits for; a hint is good for whatever is missing.
        """
        if block in self._under_way or block in self.present:
            return False
        return priority is not Priority.DEMAND or block in self._waiters

    def _head(self, priority: Priority) -> Span | None:
        """The range whose turn it is, cut so that it begins with a needed block; stale ones go.

        Demand and preloads are first come, first served; of other hints, the last comes first.
        """
        queue, end = self._queues[priority], _end(priority)
        while queue:
            for block in self.present.missing(queue[end]):
                if self._needed(block, priority):
                    queue[end] = Span(block, queue[end].stop)
                    return queue[end]
            del queue[end]
        return None

    def _next_run(self, priority: Priority, most: int) -> Span | None:
        """Cut a run of needed blocks from the head of a queue.

        It goes on into other ranges of the queue where they adjoin (for demand on both sides):
        neighbours that different readers miss become one request.
        """
        head = self._head(priority)
        if head is None:
            return None
        limit = min(head.start + most, self.present.block_count)
        reach = self._reach(head, priority)
        stop = head.start + 1
        while stop < min(reach, limit) and self._needed(stop, priority):
            stop += 1
        start = head.start
        if priority is Priority.DEMAND:
            while start > max(0, stop - most) and self._needed(start - 1, priority):
                start -= 1
        self._queues[priority][_end(priority)] = Span(stop, head.stop)
        return Span(start, stop)

    def _reach(self, head: Span, priority: Priority) -> int:
        """Where the union of ``head`` and the queued ranges that adjoin it ends.

        Of preloads, which may be very many, only the next few are looked at.
        """
        reach = head.stop
        if priority is Priority.PRELOAD:
            for other in islice(self._queues[priority], 1, PRELOADS_JOINED):
                if not other.start <= reach < other.stop:
                    break
                reach = other.stop
            return reach
        for other in sorted(self._queues[priority]):
            if other.start <= reach < other.stop:
                reach = other.stop
        return reach


def _end(priority: Priority) -> int:
    """Which end of a queue is served: the oldest, or the newest."""
    return 0 if priority in (Priority.DEMAND, Priority.PRELOAD) else -1

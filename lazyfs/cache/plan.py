"""The state of blocks (missing, in flight, present), the waiters, and the order of fetches. Pure.

The bitmap, the set of blocks in flight and the order of fetches are one state, kept here: a
separate scheduler would duplicate it. Everything is synchronous, so between two awaits of the shell
(``blockcache.py``) the state is consistent. Invariants after every call:

- a block is never both present and in flight, and never in two fetches: any number of readers of
  one block cause one request;
- a waiter waits for exactly those blocks of its range that were not present when it was added; when
  the last of them arrives it is handed back, once (a block may have been lost by then: the reader
  checks again);
- the blocks of a waiter's range are held, present or not, until it is forgotten: a store that has
  to evict takes other blocks;
- a block that a waiter waits for is in flight or queued at DEMAND.

Queues hold ranges, not blocks: a hint for a whole terabyte costs one entry. The missing blocks of a
range are determined when its turn comes, so an entry may be stale but never wrong.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable
from itertools import islice

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.device import Priority
from lazyfs.core.ranges import Span

PRELOADS_JOINED = 16  # preloads that become one request if they adjoin in their order
MAX_READAHEADS = 32  # queued ranges; the oldest are dropped: their readers have gone elsewhere


class Waiter:
    """One reader waiting for blocks. ``wake`` is called once, with None or with the error."""

    __slots__ = ("blocks", "missing", "wake")

    def __init__(self, wake: Callable[[Exception | None], None]) -> None:
        self.blocks = Span(0, 0)
        self.missing: set[int] = set()
        self.wake = wake


class Fetch:
    """One request in flight, for ``blocks``; those from ``next`` on have not arrived."""

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
        self.held: Counter[int] = Counter()  # blocks of all waiters' ranges, present ones too
        self._queues: dict[Priority, deque[Span]] = {p: deque() for p in Priority}

    # Requests of readers

    def want(self, blocks: Span, waiter: Waiter) -> None:
        """Have ``waiter`` woken when all these blocks are present; at least one must be missing."""
        waiter.blocks = blocks
        self.held.update(range(blocks.start, blocks.stop))
        waiter.missing = set(self.present.missing(blocks))
        for block in waiter.missing:
            self._waiters.setdefault(block, []).append(waiter)
        self._queues[Priority.DEMAND].append(blocks)

    def forget(self, waiter: Waiter) -> None:
        """Remove a waiter; nothing is fetched or held for it any more."""
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
        """Queue blocks that will be wanted, without a waiter.

        A hint that adjoins earlier ones is joined with them. The hint that was given or continued
        last is served first: a reader that continues is worth more than one that may have gone.
        Preloads are given in the order of their use, and keep it.
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
        """Forget all hints of this priority."""
        self._queues[priority].clear()

    # Events of the source

    def next_fetch(self, priorities: Iterable[Priority], most: int) -> Fetch | None:
        """Take the next request, from the first of ``priorities`` that has any work.

        ``most``: the limit in blocks. They count as in flight until ``end``.
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
        """Whether ``next_fetch`` would return a fetch."""
        return any(self._head(priority) is not None for priority in priorities)

    def arrived(self, fetch: Fetch) -> list[Waiter]:
        """Note that the next block of ``fetch`` is stored; returns the waiters it completes."""
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
        """Note that the request is over. Missing blocks with waiters are queued again."""
        for block in range(fetch.next, fetch.blocks.stop):
            del self._under_way[block]
        wanted = [b for b in range(fetch.next, fetch.blocks.stop) if b in self._waiters]
        for block in reversed(wanted):
            self._queues[Priority.DEMAND].appendleft(Span(block, block + 1))

    def fail(self, fetch: Fetch) -> list[Waiter]:
        """Note that the request can never succeed; forgets and returns its waiters."""
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
        """The blocks in flight."""
        return self._under_way.keys()

    @property
    def quiet(self) -> bool:
        """Whether there is no waiter."""
        return not self._waiters

    # Events of the store

    def lost(self, blocks: Iterable[int]) -> None:
        """Mark these blocks, evicted or damaged, as missing."""
        for block in blocks:
            self.present.discard(block)

    # Choosing

    def _needed(self, block: int, priority: Priority) -> bool:
        """Whether a queue of this priority should fetch this block now.

        Demand covers only blocks with a waiter; a hint covers any missing block.
        """
        if block in self._under_way or block in self.present:
            return False
        return priority is not Priority.DEMAND or block in self._waiters

    def _head(self, priority: Priority) -> Span | None:
        """The next range, cut so that it begins with a needed block; drops stale ranges.

        Demand and preloads are first in, first out; other hints are last in, first out.
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

        It extends into adjoining ranges of the queue (for demand on both sides): adjacent blocks
        that different readers miss become one request.
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
        """The end of the union of ``head`` and the queued ranges that adjoin it.

        Of preloads, which may be very many, only the next few are examined.
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
    """The index of the end of a queue that is served: the oldest or the newest."""
    return 0 if priority in (Priority.DEMAND, Priority.PRELOAD) else -1

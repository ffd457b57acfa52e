"""The blocks of one image: the plan, the store and the counts, changed together.

The order is always the same: the bytes are stored, then the block's bit is set, then its waiters
are woken. A bit is never set before its block is stored.
"""

import logging
from collections.abc import Collection

import trio

from lazyfs.cache.counts import Counts
from lazyfs.cache.plan import Fetch, Plan
from lazyfs.cache.store import Store
from lazyfs.core.device import Priority
from lazyfs.core.ranges import Span, bytes_of

log = logging.getLogger(__name__)


class Goal:
    """A span of blocks whose completion is awaited. ``complete``: set while all are complete."""

    def __init__(self, blocks: Span) -> None:
        self.blocks = blocks
        self.complete = trio.Event()


class Blocks:
    """The cached blocks of one image.

    ``whole``: the goal that covers the whole image.
    ``goals``: all goals, ``whole`` among them.
    ``goal_reached``: set when all blocks of a goal seem to be present.
    """

    def __init__(self, name: str, size: int, store: Store) -> None:
        """``name``: the image, for messages. ``size``: in bytes."""
        self.name = name
        self.size = size
        self.block_size = store.block_size
        self.store = store
        self.plan = Plan(store.present)
        self.counts = Counts(store.present.block_count)
        self.whole = Goal(Span(0, store.present.block_count))
        self.goals = [self.whole]
        self.goal_reached = trio.Event()
        self.look_at_goals()

    def bytes_of(self, blocks: Span) -> Span:
        """The byte range of these blocks; the image's last block may be shorter."""
        return bytes_of(blocks, self.block_size, self.size)

    def drop_damaged(self, blocks: Span) -> list[int]:
        """Drop and return those of these present blocks that fail their checksum."""
        damaged = self.store.verify(blocks)
        if damaged:
            self.counts.damaged += len(damaged)
            self.lost(damaged)
            log.warning(
                "%s: %d cached blocks from block %d on were damaged; fetching them again",
                self.name,
                len(damaged),
                damaged[0],
            )
        return damaged

    def keep(self, fetch: Fetch, content: memoryview) -> int:
        """Store the next blocks of ``fetch`` and wake their waiters.

        Returns the number of blocks that were evicted for them.
        """
        self.store.put(fetch.next, content)
        blocks = Span(fetch.next, fetch.next - (-len(content) // self.block_size))
        if fetch.priority is not Priority.DEMAND:
            self.counts.prefetch_arrived(blocks, len(content))
        for _ in range(blocks.length):
            for waiter in self.plan.arrived(fetch):
                waiter.wake(None)
        return self.evict()

    def evict(self) -> int:
        """Let the store enforce its limit; returns the number of evicted blocks."""
        gone = self.store.evict(self.plan.held)
        self.lost(gone)
        self.counts.evicted += len(gone)
        self.look_at_goals()
        return len(gone)

    def goal(self, blocks: Span) -> Goal:
        """The goal for these blocks; created if there is none."""
        for known in self.goals:
            if known.blocks == blocks:
                return known
        self.goals.append(Goal(blocks))
        self.look_at_goals()
        return self.goals[-1]

    def look_at_goals(self) -> None:
        """Set ``goal_reached`` if an incomplete goal may have become complete."""
        if any(self.is_here(g) and not g.complete.is_set() for g in self.goals):
            self.goal_reached.set()

    def is_here(self, goal: Goal) -> bool:
        """Whether the goal's blocks are present and in their final place; not verified."""
        here = self.plan.complete or (
            goal is not self.whole and self.plan.present.covers(goal.blocks)
        )
        return here and self.store.settled

    def lost(self, blocks: Collection[int]) -> None:
        """Mark these blocks as no longer present."""
        self.plan.lost(blocks)
        if blocks:
            self.not_complete_any_more()

    def not_complete_any_more(self) -> None:
        """Have all goals checked again, since blocks were or may have been lost."""
        for goal in self.goals:
            if goal.complete.is_set():
                goal.complete = trio.Event()
        self.look_at_goals()

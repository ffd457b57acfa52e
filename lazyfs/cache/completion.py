"""Saving fetched blocks, and finding out when an image, or a part of it, is complete.

It is complete when every block is present, verified against its checksum and on disk; blocks from
earlier mounts are verified too.
"""

import logging
from collections.abc import Awaitable, Callable

import trio

from lazyfs.cache.blocks import Blocks, Goal
from lazyfs.core.ranges import Span

log = logging.getLogger(__name__)

SYNC_EVERY = 5.0  # seconds: the most that a power cut may cost
VERIFY_STEP = 1 << 20  # bytes verified between two checkpoints of the event loop


class Completion:
    """Saves the blocks of one image, and watches for the last of them."""

    def __init__(
        self,
        blocks: Blocks,
        ready: Callable[[Span], bool],
        fill: Callable[[Span], None],
        completed: Callable[[], Awaitable[None]],
    ) -> None:
        """``ready``: verifies blocks and has damaged ones refetched.
        ``fill``: requests missing blocks.
        ``completed``: called each time the whole image has become complete.
        """
        self._blocks = blocks
        self._ready = ready
        self._fill = fill
        self._completed = completed
        self._unsynced = False

    async def wait(self, blocks: Span) -> None:
        """Wait until these blocks are complete."""
        await self._blocks.goal(blocks).complete.wait()

    async def watch(self) -> None:
        """Mark goals as complete when they become so, until cancelled."""
        blocks = self._blocks
        while True:
            await blocks.goal_reached.wait()
            blocks.goal_reached = trio.Event()
            for goal in blocks.goals.copy():
                if blocks.is_here(goal) and not goal.complete.is_set():
                    await self._complete(goal)

    async def _complete(self, goal: Goal) -> None:
        """Verify the blocks of a goal, refetch damaged ones, and save the rest."""
        blocks, (first, stop) = self._blocks, goal.blocks
        step = max(1, VERIFY_STEP // blocks.block_size)
        for start in range(first, stop, step):
            self._ready(Span(start, min(start + step, stop)))
            await trio.lowlevel.checkpoint()
        self.note_blocks()
        if not await self.sync():
            await trio.sleep(SYNC_EVERY)
            blocks.look_at_goals()
        elif not blocks.is_here(goal):
            self._fill(goal.blocks)
        else:
            if goal is blocks.whole:
                log.info("%s is complete", blocks.name)
                await self._completed()
            if blocks.is_here(goal):  # nothing was lost meanwhile
                goal.complete.set()

    async def save_regularly(self) -> None:
        """Save every few seconds, until cancelled."""
        while True:
            await trio.sleep(SYNC_EVERY)
            self._blocks.evict()
            self.note_blocks()
            await self.sync()

    def note_blocks(self) -> None:
        """Save the bitmap of present blocks. After a failure, a crash costs refetches only."""
        present = self._blocks.plan.present
        pages = present.take_dirty()
        if not pages:
            return
        try:
            self._unsynced = self._blocks.store.note(pages) or self._unsynced
        except OSError as error:
            present.mark_dirty(pages)
            log.error(
                "%s: the cache's bitmap cannot be written: %s", self._blocks.name, error.strerror
            )

    async def sync(self) -> bool:
        """Sync written data to disk; returns whether that succeeded."""
        if not self._unsynced:
            return True
        self._unsynced = False
        try:
            await trio.to_thread.run_sync(self._blocks.store.sync)
        except OSError as error:
            self._unsynced = True
            # Verified blocks may have been dropped from the page cache.
            self._blocks.not_complete_any_more()
            log.error("%s: the cache cannot be synced: %s", self._blocks.name, error.strerror)
            return False
        return True

"""Limiting the concurrent requests to one host, and choosing the next.

A slot is the right to have one request in flight. A host has ``count`` of them, shared by all
images on it: mirrors ban greedy clients. Demand never queues behind prefetch: it is served first,
and prefetch leaves one slot free for it (except on a host with a single slot).
"""

from collections import deque

import trio

from lazyfs.core.device import Priority
from lazyfs.core.options import ServerOptions
from lazyfs.sources.health import Health
from lazyfs.sources.link import LinkEstimate
from lazyfs.sources.stall import HeadPatience


class HostSlot:
    """One acquired slot."""

    def __init__(self, limiter: "HostLimiter", priority: Priority) -> None:
        self._limiter = limiter
        self._priority = priority

    @property
    def last(self) -> bool:
        """Whether no other slot of the host is free."""
        return not self._limiter.free

    def release(self) -> None:
        self._limiter.give_back(self._priority)


class HostLimiter:
    """The slots of one host."""

    def __init__(self, count: int) -> None:
        self.free = count  # slots not in use
        self._free_for_prefetch = max(1, count - 1)
        self._demand: deque[trio.Event] = deque()
        self._prefetch: deque[trio.Event] = deque()

    async def acquire(self, priority: Priority) -> HostSlot:
        """Wait for a slot."""
        await trio.lowlevel.checkpoint_if_cancelled()
        demand = priority is Priority.DEMAND
        turn = trio.Event()
        (self._demand if demand else self._prefetch).append(turn)
        self._hand_out()
        try:
            await turn.wait()
        except trio.Cancelled:
            self._abandon(turn, priority)
            raise
        return HostSlot(self, priority)

    def give_back(self, priority: Priority) -> None:
        self.free += 1
        if priority is not Priority.DEMAND:
            self._free_for_prefetch += 1
        self._hand_out()

    def _hand_out(self) -> None:
        while self.free and self._demand:
            self.free -= 1
            self._demand.popleft().set()
        while self.free and self._free_for_prefetch and self._prefetch:
            self.free -= 1
            self._free_for_prefetch -= 1
            self._prefetch.popleft().set()

    def _abandon(self, turn: trio.Event, priority: Priority) -> None:
        if turn.is_set():
            self.give_back(priority)
        elif priority is Priority.DEMAND:
            self._demand.remove(turn)
        else:
            self._prefetch.remove(turn)


class Host:
    """The state of one host, shared by all images on it.

    That is its slots, link estimate and health, and the patience with its answers.
    """

    def __init__(
        self, name: str, connections: int, patience: float, stall: float = ServerOptions.stall
    ) -> None:
        """``connections``: slots. ``patience``: seconds that a reader waits; 0: no limit.

        ``stall``: seconds to wait for a silent server at first.
        """
        self.name = name
        self.limiter = HostLimiter(connections)
        self.link = LinkEstimate()
        self.health = Health(name, patience)
        self.heads = HeadPatience(stall, patience)

    async def slot(self, priority: Priority) -> HostSlot:
        """Wait for the end of the host's back-off and for a slot."""
        while True:
            await self.health.wait()
            slot = await self.limiter.acquire(priority)
            if self.health.may_ask:
                return slot
            slot.release()  # the host has failed while this was queued

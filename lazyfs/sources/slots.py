"""How many requests one host gets at a time, and who goes next.

A lane is the right to have one request under way. A host has ``count`` of them, shared by all
images on it: mirrors ban the greedy. Demand never queues behind prefetch: it is served first, and
prefetch leaves one lane free for it (a host with one lane has none to spare).
"""

from collections import deque

import trio

from lazyfs.core.device import Priority


class HostLane:
    """One lane in use."""

    def __init__(self, lanes: "Lanes", priority: Priority) -> None:
        self._lanes = lanes
        self._priority = priority

    @property
    def last(self) -> bool:
        return not self._lanes.free

    def release(self) -> None:
        self._lanes.give_back(self._priority)


class Lanes:
    """The lanes of one host."""

    def __init__(self, count: int) -> None:
        self.free = count  # lanes that nobody has
        self._free_for_prefetch = max(1, count - 1)
        self._demand: deque[trio.Event] = deque()
        self._prefetch: deque[trio.Event] = deque()

    async def acquire(self, priority: Priority) -> HostLane:
        """Wait for a lane."""
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
        return HostLane(self, priority)

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

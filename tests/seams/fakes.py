"""Stand-ins for what lies above and below a seam."""

import random
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.disk import open_disk_store
from lazyfs.cache.layout import CacheLock, CachePaths
from lazyfs.cache.overflow import OverflowStore
from lazyfs.cache.quota import Room
from lazyfs.core.device import Identity, Lane, Priority, Statistics
from lazyfs.sources.slots import Lanes


def noise(size: int, seed: int = 0) -> bytes:
    """``size`` bytes of which no two blocks are alike."""
    return random.Random(seed).randbytes(size)


def disk_store(
    directory: Path,
    identity: Identity,
    block_size: int,
    limit: int | None = None,
    min_free: int | None = None,
) -> OverflowStore:
    """The store that a mount uses, with its files in ``directory``."""
    paths = CachePaths.in_directory(directory)
    disk = open_disk_store(paths, CacheLock(paths.lock), "img", identity, block_size)
    return OverflowStore("img", disk, Room(directory, disk.allocated, limit, min_free))


@dataclass
class FakeLink:
    """A Link that knows what it is told."""

    round_trip: float = 0.0
    rate: float = 0.0
    bandwidth_delay: int = 0


class FakeSource:
    """A Source that sends ``content`` as its script says, and writes down what it was asked.

    Failures and gates stand at byte offsets of the image: a stream that comes to one raises the
    next failure there, or waits for the gate to open.
    """

    def __init__(self, content: bytes, *, piece: int = 1000, lanes: int = 4) -> None:
        self.content = content
        self.identity = Identity(len(content), '"v1"')
        self.link = FakeLink()
        self.piece = piece
        self.requests: list[tuple[int, int]] = []  # offset, length
        self.resting = False
        self.times: list[float] = []  # trio time of each request
        self.failures: dict[int, deque[Exception]] = {}
        self.gates: dict[int, trio.Event] = {}
        self.pause = 0.0  # seconds before each piece
        self.at_once = self.most_at_once = 0
        self._lanes = Lanes(lanes)

    def fail_at(self, offset: int, *failures: Exception) -> None:
        self.failures.setdefault(offset, deque()).extend(failures)

    def gate_at(self, offset: int) -> trio.Event:
        return self.gates.setdefault(offset, trio.Event())

    @asynccontextmanager
    async def stream(self, offset: int, length: int) -> AsyncIterator[AsyncIterator[bytes]]:
        self.requests.append((offset, length))
        self.times.append(trio.current_time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            yield self._pieces(offset, offset + length)
        finally:
            self.at_once -= 1

    async def lane(self, priority: Priority) -> Lane:
        return await self._lanes.acquire(priority)

    def streams(
        self, ranges: Sequence[tuple[int, int]]
    ) -> list[AbstractAsyncContextManager[AsyncIterator[bytes]]]:
        return [self.stream(offset, length) for offset, length in ranges]

    async def zeros(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]

    async def rest(self) -> None:
        self.resting = True

    async def _pieces(self, position: int, stop: int) -> AsyncIterator[bytes]:
        while position < stop:
            await trio.sleep(self.pause)
            if position in self.gates:
                await self.gates[position].wait()
            if self.failures.get(position):
                raise self.failures[position].popleft()
            end = min([position + self.piece, stop, *self._stops_after(position)])
            yield self.content[position:end]
            position = end

    def _stops_after(self, position: int) -> list[int]:
        return [place for place in (*self.gates, *self.failures) if place > position]


class RecordingDevice:
    """A Device that answers at once and writes down what came, in order."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.identity = Identity(len(content))
        self.link = FakeLink()
        self.calls: list[tuple[object, ...]] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.calls.append(("read", offset, length))
        return self.content[offset : offset + length]

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        self.calls.append(("ensure", offset, length, priority))

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        self.calls.append(("cached", offset, length))
        yield length, True

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        self.calls.append(("zeros", offset, length))
        return [(length, False)]

    async def wait_complete(self) -> None:
        """It is all here."""

    def statistics(self) -> Statistics:
        return Statistics(size=len(self.content), cached=7)

    async def aclose(self) -> None:
        self.calls.append(("aclose",))


@asynccontextmanager
async def running(cache: BlockCache) -> AsyncIterator[BlockCache]:
    """Run the tasks of a cache; on leaving, end them and close it."""
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.run)
            yield cache
            nursery.cancel_scope.cancel()
    finally:
        await cache.aclose()

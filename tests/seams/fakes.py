"""Stand-ins for what lies above and below a seam."""

import random
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import trio

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.disk import open_disk_store
from lazyfs.cache.layout import CacheLock, Layout
from lazyfs.cache.overflow import OverflowStore
from lazyfs.cache.quota import Quota
from lazyfs.core.device import Identity, Link, Priority, Source, Statistics, Stream, Trouble
from lazyfs.core.errors import TransientError
from lazyfs.core.ranges import clamp
from lazyfs.sources.slots import Host, HostSlot
from lazyfs.testing.memory import KnownLink, MemoryDevice


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
    paths = Layout.in_directory(directory)
    disk = open_disk_store(paths, CacheLock(paths.lock), "img", identity, block_size)
    return OverflowStore("img", disk, Quota(directory, disk.allocated, limit, min_free))


class FakeSource:
    """A Source that sends ``content`` as its script says, and writes down what it was asked.

    Failures and gates stand at byte offsets of the image: a stream that comes to one raises the
    next failure there, or waits for the gate to open.
    """

    opening = b""

    def __init__(self, content: bytes, *, piece: int = 1000, slots: int = 4) -> None:
        self.content = content
        self.identity = Identity(len(content), '"v1"')
        self.link = KnownLink()
        self.piece = piece
        self.requests: list[tuple[int, int]] = []  # offset, length
        self.resting = False
        self.times: list[float] = []  # trio time of each request
        self.failures: dict[int, deque[Exception]] = {}
        self.gates: dict[int, trio.Event] = {}
        self.pause = 0.0  # seconds before each piece
        self.at_once = self.most_at_once = 0
        self.host = Host("host", slots, 0)

    def fail_at(self, offset: int, *failures: Exception) -> None:
        self.failures.setdefault(offset, deque()).extend(failures)

    def gate_at(self, offset: int) -> trio.Event:
        return self.gates.setdefault(offset, trio.Event())

    @asynccontextmanager
    async def stream(
        self, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        self.requests.append((offset, length))
        self.times.append(trio.current_time())
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            async with aclosing(self._pieces(offset, offset + length)) as pieces:
                yield pieces
        finally:
            self.at_once -= 1

    @property
    def trouble(self) -> Trouble | None:
        return self.host.health.trouble

    async def open(self) -> Identity:
        return self.identity

    def expect(self, identity: Identity) -> None:
        self.identity = identity

    async def run(self) -> None:
        await trio.sleep_forever()

    async def slot(self, priority: Priority) -> "FakeSlot":
        return FakeSlot(self, await self.host.slot(priority))

    async def zeros(self, offset: int, length: int) -> list[tuple[int, bool]]:
        here = clamp(offset, length, len(self.content)).length
        return [(here, False)] if here else []

    async def rest(self) -> None:
        self.resting = True

    async def aclose(self) -> None:
        """There is nothing to close."""

    async def _pieces(self, position: int, stop: int) -> AsyncGenerator[bytes, None]:
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


class FakeSlot:
    """A slot of a FakeSource."""

    def __init__(self, source: FakeSource, held: HostSlot) -> None:
        self._source = source
        self._held = held

    @property
    def last(self) -> bool:
        return self._held.last

    @property
    def link(self) -> Link:
        return self._source.link

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return [self._source.stream(offset, length) for offset, length in ranges]

    def failed(self, error: TransientError) -> None:
        self._source.host.health.failed(error)

    def succeeded(self) -> None:
        self._source.host.health.succeeded()

    def release(self) -> None:
        self._held.release()


@asynccontextmanager
async def streams_of(
    source: Source, ranges: Sequence[tuple[int, int]]
) -> AsyncIterator[Sequence[Stream]]:
    """The streams of ranges, on a slot that is given back at the end."""
    slot = await source.slot(Priority.DEMAND)
    try:
        yield slot.streams(ranges)
    finally:
        slot.release()


class RecordingDevice(MemoryDevice):
    """A Device that answers at once and writes down what came, in order."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.calls: list[tuple[object, ...]] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.calls.append(("read", offset, length))
        return await super().read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        self.calls.append(("ensure", offset, length, priority))

    def ready(self, offset: int, length: int) -> bool:
        return all(here for _, here in self.cached(offset, length))

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        self.calls.append(("cached", offset, length))
        return super().cached(offset, length)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        self.calls.append(("zeros", offset, length))
        return await super().zeros(offset, length)

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

"""All Devices and Sources keep the contract; and the check of it sees those that do not."""

import functools
import itertools
import shutil
import ssl
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import trio
from fakes import FakeSource, RecordingDevice, disk_store, noise, running
from sites import Reply, Request, Script, chunked, response, serving

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import (
    Device,
    Identity,
    Priority,
    Slot,
    Source,
    Statistics,
    Stream,
    Trouble,
)
from lazyfs.core.errors import SourceError, TransientError
from lazyfs.core.options import Prefetch, ReadAheadLimit, ServerOptions
from lazyfs.core.ranges import Span, clamp
from lazyfs.core.view import DeviceView
from lazyfs.formats import partition
from lazyfs.formats.slice import SliceDevice
from lazyfs.frontends.nbdserver import Export, NbdServer
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.recorder import Recorder
from lazyfs.sources import httpclient
from lazyfs.sources.file import FileDevice
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient
from lazyfs.sources.nbd import NbdSource
from lazyfs.sources.tls import client_context
from lazyfs.testing.conformance import check_device, check_source
from lazyfs.testing.damage import Faults
from lazyfs.testing.evil import EvilDevice
from lazyfs.testing.memory import MemoryDevice, MemorySource

BLOCK = 4096
SECTOR = 512
CONTENT = noise(5 * BLOCK + 100) + bytes(3 * BLOCK) + noise(BLOCK + 7, seed=1)
SMALL = noise(300, seed=2)
IDENTITY = Identity(len(CONTENT), '"v1"')
EDGES = (BLOCK, 6 * BLOCK)
WINDOW = Span(BLOCK + 5, 7 * BLOCK)
INNER = Span(3, 4 * BLOCK - 1)
PARTITION = Span(9 * SECTOR, 60 * SECTOR)

Announce = Callable[..., None]
Anew = Callable[[Callable[[Path], Any]], Callable[[], Any]]


def mbr(content: bytes) -> bytes:
    """``content`` with a partition table in its first sector."""
    entry = struct.pack("<B3xB3xLL", 0, 0x83, 9, PARTITION.length // SECTOR)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + content[SECTOR:]


@pytest.fixture
def anew(tmp_path: Path) -> Anew:
    """Opens a Device or a Source in a directory of its own each time."""
    numbers = itertools.count()

    def opened_anew(opened: Callable[[Path], Any]) -> Callable[[], Any]:
        def open_it() -> Any:
            place = tmp_path / str(next(numbers))
            place.mkdir()
            return opened(place)

        return open_it

    return opened_anew


# Devices, each with a directory of its own


@asynccontextmanager
async def memory_device(place: Path) -> AsyncIterator[Device]:
    yield MemoryDevice(CONTENT)


@asynccontextmanager
async def file_device(place: Path) -> AsyncIterator[Device]:
    (place / "image").write_bytes(CONTENT)
    device = FileDevice(place / "image")
    yield device
    await device.aclose()


@asynccontextmanager
async def cache_in_memory(
    place: Path, content: bytes = CONTENT, limit: int = 1 << 20
) -> AsyncIterator[BlockCache]:
    store = MemoryStore(len(content), BLOCK, limit)
    async with running(BlockCache("img", FakeSource(content), store, 30.0)) as cache:
        yield cache


@asynccontextmanager
async def small_cache_in_memory(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place, limit=3 * BLOCK) as cache:
        yield cache


@asynccontextmanager
async def cache_on_disk(place: Path, limit: int | None = None) -> AsyncIterator[BlockCache]:
    store = disk_store(place / "image", IDENTITY, BLOCK, limit)
    async with running(BlockCache("img", FakeSource(CONTENT), store, 30.0)) as cache:
        yield cache


@asynccontextmanager
async def small_cache_on_disk(place: Path) -> AsyncIterator[Device]:
    async with cache_on_disk(place, limit=112 << 10) as cache:
        yield cache


@asynccontextmanager
async def complete_cache(place: Path) -> AsyncIterator[Device]:
    """As an earlier mount has left it."""
    full = place.parent / "full"
    if not full.exists():
        full.mkdir()
        async with cache_on_disk(full) as cache:
            await cache.read(0, len(CONTENT))
    shutil.copytree(full, place, dirs_exist_ok=True)
    async with cache_on_disk(place) as cache:
        yield cache


@asynccontextmanager
async def slice_device(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache:
        yield SliceDevice(cache, WINDOW)


@asynccontextmanager
async def slice_of_a_slice(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache:
        yield SliceDevice(SliceDevice(cache, WINDOW), INNER)


@asynccontextmanager
async def partition_device(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place, mbr(CONTENT)) as cache:
        layer = await partition.OPENING.open(cache, "1")
        assert layer.window == PARTITION
        yield layer.device


@asynccontextmanager
async def prefetcher(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache:
        yield Prefetcher(cache, ReadAheadLimit(), Prefetch.AUTO, 4096)


@asynccontextmanager
async def recorder(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache, trio.open_nursery() as nursery:
        device = Recorder(
            Prefetcher(cache, ReadAheadLimit(), Prefetch.AUTO, 4096), "http://host/image"
        )
        await device.record_to(place / "profile")
        nursery.start_soon(device.run)
        yield device
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def evil_device(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache:
        yield EvilDevice(cache, Faults())


@asynccontextmanager
async def late_device(place: Path) -> AsyncIterator[Device]:
    yield EvilDevice(MemoryDevice(CONTENT), Faults(delay=0.0001))


@asynccontextmanager
async def recording_device(place: Path) -> AsyncIterator[Device]:
    yield RecordingDevice(CONTENT)


@asynccontextmanager
async def device_view(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache:
        yield DeviceView(cache)


@dataclass(frozen=True)
class Kind:
    """A Device, and its promises; see ``check_device``."""

    opened: Callable[[Path], AbstractAsyncContextManager[Device]]
    reference: bytes = CONTENT
    remembers: bool = True
    complete: bool = False


KINDS = {
    "memory": Kind(memory_device, complete=True),
    "file": Kind(file_device, complete=True),
    "cache in memory": Kind(cache_in_memory),
    "small cache in memory": Kind(small_cache_in_memory, remembers=False),
    "cache on disk": Kind(cache_on_disk),
    "complete cache on disk": Kind(complete_cache, complete=True),
    "small cache on disk": Kind(small_cache_on_disk, remembers=False),
    "slice": Kind(slice_device, CONTENT[slice(*WINDOW)]),
    "slice of a slice": Kind(slice_of_a_slice, CONTENT[slice(*WINDOW)][slice(*INNER)]),
    "partition": Kind(partition_device, CONTENT[slice(*PARTITION)]),
    "prefetcher": Kind(prefetcher),
    "recorder": Kind(recorder),
    "evil, without faults": Kind(evil_device),
    "evil, late": Kind(late_device, complete=True),
    "fake": Kind(recording_device, complete=True),
    "view": Kind(device_view),
}


@pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))
def test_a_device_keeps_the_contract(kind: Kind, anew: Anew, expected_log: Announce) -> None:
    expected_log("the cache cannot hold all of it; the fill stops", required=False)
    expected_log("the cache takes no more", required=False)
    check_device(
        anew(kind.opened),
        kind.reference,
        edges=EDGES,
        remembers=kind.remembers,
        complete=kind.complete,
    )


# Sources


@functools.cache
def tls_context() -> ssl.SSLContext:
    return client_context(ServerOptions())


@pytest.fixture(autouse=True)
def _one_tls_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read the certificates of the system takes longer than all else here together."""
    monkeypatch.setattr(httpclient, "client_context", lambda _: tls_context())


@asynccontextmanager
async def memory_source(place: Path) -> AsyncIterator[Source]:
    yield MemorySource(CONTENT)


@asynccontextmanager
async def fake_source(place: Path) -> AsyncIterator[Source]:
    yield FakeSource(CONTENT)


@asynccontextmanager
async def http_source(
    place: Path, script: Script = lambda _: None, first: int = 1
) -> AsyncIterator[Source]:
    async with serving(CONTENT) as site:
        site.script = script
        client = HttpClient(ServerOptions(user_agent="lazyfs/test"))
        try:
            yield HttpSource(client, site.url(), first=first)
        finally:
            await client.aclose()


@asynccontextmanager
async def http_source_with_opening(place: Path) -> AsyncIterator[Source]:
    async with http_source(place, first=BLOCK) as source:
        yield source


@asynccontextmanager
async def http_source_by_fallback(place: Path) -> AsyncIterator[Source]:
    """Its server does not count the bytes of its answers."""

    def in_chunks(request: Request) -> Reply:
        first, last = request.span
        return Reply(chunked(CONTENT, first, last))

    async with http_source(place, in_chunks) as source:
        yield source


@asynccontextmanager
async def redirected_source(place: Path) -> AsyncIterator[Source]:
    """The image is on another host than its URL says."""
    async with serving(CONTENT, host="127.0.0.2") as mirror:
        there = response(302, f"Location: {mirror.url()}")
        async with http_source(place, lambda _: Reply(there)) as source:
            yield source


class Holey(MemoryDevice):
    """It knows its blocks of zeros."""

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        found = []
        span = clamp(offset, length, len(CONTENT))
        while span.length:
            stop = min(span.start - span.start % BLOCK + BLOCK, span.stop)
            found.append((stop - span.start, not any(CONTENT[span.start : stop])))
            span = Span(stop, span.stop)
        return found


@asynccontextmanager
async def nbd_source(place: Path) -> AsyncIterator[Source]:
    path = place / "socket"
    server = NbdServer([Export("", "", Holey(CONTENT))])
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.listen, [trio.SocketListener(listener)])
        source = NbdSource(f"nbd+unix:///?socket={path}", "img", ServerOptions(stall=5.0))
        yield source
        await source.aclose()
        nursery.cancel_scope.cancel()


SOURCES = {
    "memory": memory_source,
    "fake": fake_source,
    "HTTP": http_source,
    "HTTP, with its opening": http_source_with_opening,
    "HTTP, behind a redirect": redirected_source,
    "NBD": nbd_source,
}


@pytest.mark.parametrize("opened", SOURCES.values(), ids=list(SOURCES))
def test_a_source_keeps_the_contract(
    opened: Callable[[Path], AbstractAsyncContextManager[Source]], anew: Anew
) -> None:
    check_source(anew(opened), CONTENT, edges=EDGES)


@pytest.mark.filterwarnings("ignore:Async generator 'httpcore.*:ResourceWarning")
def test_the_fallback_path_keeps_the_contract(anew: Anew) -> None:
    check_source(anew(http_source_by_fallback), CONTENT, edges=EDGES)


# The check itself


def device_check_of(device: Callable[[], Device], **promises: Any) -> None:
    """Check a Device that needs nothing."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Device]:
        yield device()

    check_device(opened, SMALL, edges=(100,), **promises)


def source_check_of(source: Callable[[], Source], **promises: Any) -> None:
    """Check a Source that needs nothing."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Source]:
        yield source()

    check_source(opened, SMALL, edges=(100,), **promises)


def patience_for(kind: type) -> float:
    """Seconds: short for what never comes to an end."""
    return 0.5 if kind in (Hanging, NeverComplete, Keeps) else 30.0


class Right(MemoryDevice):
    """To be made wrong."""

    def __init__(self) -> None:
        super().__init__(SMALL)


class Short(Right):
    async def read(self, offset: int, length: int) -> bytes:
        return (await super().read(offset, length))[:200]


class Shifted(Right):
    async def read(self, offset: int, length: int) -> bytes:
        found = await super().read(offset, length)
        return found if offset < 99 else found[1:] + found[:1]


class Mutable(Right):
    async def read(self, offset: int, length: int) -> bytes:
        return bytearray(await super().read(offset, length))  # type: ignore[return-value]


class Failing(Right):
    async def read(self, offset: int, length: int) -> bytes:
        if offset == len(SMALL):
            raise SourceError("there is nothing")
        return await super().read(offset, length)


class Hanging(Right):
    async def read(self, offset: int, length: int) -> bytes:
        if length == 1:
            await trio.sleep_forever()
        return await super().read(offset, length)


class Easily(Right):
    """It does not stand being cancelled."""

    broken = False

    def ready(self, offset: int, length: int) -> bool:
        return False

    async def read(self, offset: int, length: int) -> bytes:
        try:
            await trio.lowlevel.checkpoint()
        except trio.Cancelled:
            self.broken = True
            raise
        return b"" if self.broken else await super().read(offset, length)


class Alone(Right):
    """It does not stand two readers."""

    reading = False

    def ready(self, offset: int, length: int) -> bool:
        return False

    async def read(self, offset: int, length: int) -> bytes:
        if self.reading:
            raise RuntimeError("somebody reads already")
        self.reading = True
        try:
            await trio.lowlevel.checkpoint()
        finally:
            self.reading = False
        return await super().read(offset, length)


class CachedBeyond(Right):
    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        if length:
            yield min(length, 1000), True


class CachedOfNothing(Right):
    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        yield clamp(offset, length, len(SMALL)).length, True


class CachedInPart(Right):
    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return itertools.islice(super().cached(offset, min(length, 250)), 1)


class Forgetful(Right):
    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return ((run, False) for run, _ in super().cached(offset, length))


class ZerosOfOthers(Right):
    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return [(run, True) for run, _ in await super().zeros(offset, length)]


class NoZeros(Right):
    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return []


class NotReady(Right):
    async def read(self, offset: int, length: int) -> bytes:
        await trio.sleep(0.0001)
        return await super().read(offset, length)


class NothingNotReady(Right):
    def ready(self, offset: int, length: int) -> bool:
        return length > 0


class BadHint(Right):
    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        if offset + length > len(SMALL):
            raise ValueError("there is no such range")


class SlowHint(Right):
    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        if priority is Priority.FILL:
            await trio.sleep(0.0001)


class HintChanges(Right):
    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        self.content = bytes(len(SMALL))


class NeverComplete(Right):
    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        await trio.sleep_forever()


class Negative(Right):
    def statistics(self) -> Statistics:
        return replace(super().statistics(), under_way=-1)


class TooMuchCached(Right):
    def statistics(self) -> Statistics:
        return replace(super().statistics(), cached=len(SMALL) + 1)


class CountsDown(Right):
    left = 10_000

    def statistics(self) -> Statistics:
        self.left -= 1
        return replace(super().statistics(), requests=self.left)


class Unsteady(Right):
    async def read(self, offset: int, length: int) -> bytes:
        self.identity = replace(self.identity, etag='"2"')
        return await super().read(offset, length)


class WrongSize(Right):
    def __init__(self) -> None:
        super().__init__()
        self.identity = Identity(5)


class ClosesOnce(Right):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        self.closed = True


BAD_DEVICES: dict[type[Right], str] = {
    Short: r"read\(0, 299\) brought 200 bytes; there are 299",
    Shifted: r"read\(99, 2\) brought wrong bytes: number 0 of them is 0x",
    Mutable: "returned a bytearray",
    Failing: r"read\(300, 0\) raised SourceError\('there is nothing'\)",
    Hanging: r"read\(0, 1\) has not come to an end within 0.5 seconds",
    Easily: r"read\(0, 1\) brought 0 bytes; there are 1",
    Alone: r"read\(\d+, \d+\) raised RuntimeError\('somebody reads already'\)",
    CachedBeyond: r"cached\(0, 301\) speaks of 1 bytes beyond the range, which ends at 300",
    CachedOfNothing: r"cached\(0, 0\) has a run of 0 bytes",
    CachedInPart: r"cached\(0, 299\) says nothing of the last 49 bytes",
    Forgetful: r"after read\(0, 1\), cached\(0, 1\) says that bytes 0 to 1 are not held",
    ZerosOfOthers: r"zeros\(0, 1\) says that bytes 0 to 1 are zeros, and they are not",
    NoZeros: r"zeros\(0, 1\) says nothing, though the range is not empty",
    NotReady: r"read\(0, 0\) waited, and ready\(0, 0\) had said that it would not",
    NothingNotReady: r"ready\(0, 1\) is true, and ready\(0, 0\), of nothing, is not",
    BadHint: r"ensure\(0, 301, Priority.DEMAND\) raised ValueError",
    SlowHint: r"ensure\(0, 0, Priority.FILL\) waited, and must return at once",
    HintChanges: r"read\(0, 300\) brought wrong bytes",
    NeverComplete: r"wait_complete\(0, 0\) has not come to an end",
    Negative: "under_way is -1",
    TooMuchCached: "cached is 301, which is more than size, 300",
    CountsDown: "requests is 9998, and was 9999",
    Unsteady: "identity has become",
    WrongSize: "identity.size is 5; the image has 300 bytes",
    ClosesOnce: r"aclose\(\), called once more, raised OSError",
}


@pytest.mark.parametrize(
    ("device", "says"), BAD_DEVICES.items(), ids=[device.__name__ for device in BAD_DEVICES]
)
def test_a_wrong_device_is_seen(device: type[Right], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        device_check_of(device, remembers=device is Forgetful, patience=patience_for(device))


def test_a_right_device_is_not_blamed() -> None:
    device_check_of(Right, remembers=True, complete=True)


class RightSource(MemorySource):
    """To be made wrong. Its pieces have up to 50 bytes."""

    def __init__(self) -> None:
        super().__init__(SMALL)

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return [self.stream(*wanted) for wanted in ranges]

    @asynccontextmanager
    async def stream(
        self, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        async with aclosing(self.pieces(offset, length)) as pieces:
            yield pieces

    async def pieces(self, offset: int, length: int) -> AsyncGenerator[bytes, None]:
        for start in range(offset, offset + length, 50):
            await trio.lowlevel.checkpoint()
            yield SMALL[start : min(start + 50, offset + length)]


class OneTooMany(RightSource):
    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return super().streams([(offset, length + 1) for offset, length in ranges])


class EndsEarly(RightSource):
    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return super().streams([(offset, min(length, 60)) for offset, length in ranges])


class OneConnection(RightSource):
    """All streams come on one connection, each from where the one before was left."""

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        sent = bytearray()
        for offset, length in ranges:
            sent += SMALL[offset : offset + length]
        return [self.part(sent, length) for _, length in ranges]

    @asynccontextmanager
    async def part(
        self, sent: bytearray, length: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        async with aclosing(self.cut(sent, length)) as pieces:
            yield pieces

    async def cut(self, sent: bytearray, length: int) -> AsyncGenerator[bytes, None]:
        while length:
            await trio.lowlevel.checkpoint()
            piece = bytes(sent[: min(50, length)])
            del sent[: len(piece)]
            length -= len(piece)
            yield piece


class Open(RightSource):
    @asynccontextmanager
    async def stream(
        self, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        pieces = self.pieces(offset, length)
        try:
            yield pieces
        finally:
            self.left.append(pieces)

    left: ClassVar[list[AsyncGenerator[bytes, None]]] = []


class OtherOpening(RightSource):
    opening = b"not how it begins"


class OtherSize(RightSource):
    async def open(self) -> Identity:
        return Identity(5)


class NotPinned(RightSource):
    async def open(self) -> Identity:
        return replace(self.identity, etag=None)


class Restless(RightSource):
    closed = False

    async def rest(self) -> None:
        self.closed = True

    async def slot(self, priority: Priority) -> Slot:
        if self.closed:
            raise SourceError("it has gone to rest")
        return await super().slot(priority)


class RestsOnce(Restless):
    async def rest(self) -> None:
        if self.closed:
            raise RuntimeError("it rests already")
        await super().rest()


class Returns(RightSource):
    async def run(self) -> None:
        pass


class Stubborn(RightSource):
    def expect(self, identity: Identity) -> None:
        pass


class Troubled(RightSource):
    def failed(self, error: TransientError) -> None:
        self.trouble = Trouble(error, trio.current_time())


class Limited(RightSource):
    """It has three slots."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = trio.Semaphore(3)

    @property
    def last(self) -> bool:  # type: ignore[override]
        return not self.slots.value

    async def slot(self, priority: Priority) -> Slot:
        await self.slots.acquire()
        return self

    def release(self) -> None:
        self.slots.release()


class Keeps(Limited):
    def release(self) -> None:
        pass


class SaysLast(Limited):
    @property
    def last(self) -> bool:  # type: ignore[override]
        return self.slots.value <= 1


class ZerosBeyond(RightSource):
    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return [(length, False)] if length else []


class SourceClosesOnce(RightSource):
    closed = False

    async def aclose(self) -> None:
        if self.closed:
            raise OSError(9, "Bad file descriptor")
        self.closed = True


BAD_SOURCES: dict[type[RightSource], str] = {
    OneTooMany: "the stream of 1 bytes at 0 brought 1 bytes more than asked for",
    EndsEarly: "the stream of 300 bytes at 0 brought 60 bytes; there are 300",
    OneConnection: "the stream of 99 bytes at 0 brought wrong bytes",
    Open: "the stream of 1 bytes at 0 was left early, and its generator is still open",
    OtherOpening: "opening is no beginning of the image: b'not how",
    OtherSize: "identity.size is 5; the image has 300 bytes",
    NotPinned: "identity has become",
    Restless: r"slot\(Priority.DEMAND\) raised SourceError\('it has gone to rest'\)",
    RestsOnce: r"rest\(\), called again, raised RuntimeError",
    Returns: r"run\(\) returned, and must run until cancelled",
    Stubborn: r"after expect\(Identity\(size=301.*, identity is Identity\(size=300",
    Troubled: r"after succeeded\(\), trouble is Trouble",
    Keeps: r"slot\(Priority.DEMAND\) has not come to an end within 0.5 seconds",
    SaysLast: "a slot said that it was the last, and another was given",
    ZerosBeyond: r"zeros\(0, 301\) speaks of 1 bytes beyond the range, which ends at 300",
    SourceClosesOnce: r"aclose\(\), called once more, raised OSError",
}


@pytest.mark.parametrize(
    ("source", "says"), BAD_SOURCES.items(), ids=[source.__name__ for source in BAD_SOURCES]
)
def test_a_wrong_source_is_seen(source: type[RightSource], says: str) -> None:
    with pytest.raises(AssertionError, match=says):
        source_check_of(source, patience=patience_for(source))


@pytest.mark.parametrize("source", [RightSource, Limited])
def test_a_right_source_is_not_blamed(source: type[RightSource]) -> None:
    source_check_of(source)


def test_a_drawn_sequence_is_shown_with_its_failure() -> None:
    class Second(Right):
        reads = 0

        async def read(self, offset: int, length: int) -> bytes:
            self.reads += 102 < offset < 149  # no edge lies there
            return b"" if self.reads > 1 else await super().read(offset, length)

    with pytest.raises(AssertionError, match="brought 0 bytes") as caught:
        device_check_of(Second, examples=500)
    assert "verb='read" in "".join(caught.value.__notes__)


def test_a_failure_that_does_not_come_again_is_said() -> None:
    class Once(Right):
        failed: ClassVar[list[int]] = []

        async def read(self, offset: int, length: int) -> bytes:
            if 102 < offset < 149 and not self.failed:
                self.failed.append(offset)
                return b""
            return await super().read(offset, length)

    with pytest.raises(AssertionError, match="fail now and then only"):
        device_check_of(Once, examples=500)


def test_an_empty_image_cannot_be_checked() -> None:
    with pytest.raises(ValueError, match="an empty image shows nothing"):
        check_device(lambda: memory_device(Path()), b"")


def test_a_device_whose_task_fails_is_seen() -> None:
    @asynccontextmanager
    async def opened() -> AsyncIterator[Device]:
        async with trio.open_nursery() as nursery:

            async def fail() -> None:
                raise RuntimeError("a defect")

            nursery.start_soon(fail)
            yield Right()

    with pytest.raises(AssertionError, match=r"running its tasks.*RuntimeError\('a defect"):
        check_device(opened, SMALL)

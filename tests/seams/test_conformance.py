"""All Devices and Sources keep the contract; and the check of it sees those that do not."""

import itertools
import shutil
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path

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
from lazyfs.core.options import ReadAheadLimit, ServerOptions
from lazyfs.core.ranges import Span, clamp
from lazyfs.core.view import DeviceView
from lazyfs.formats import partition
from lazyfs.formats.slice import SliceDevice
from lazyfs.frontends.nbdserver import Export, NbdServer
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.recorder import Recorder
from lazyfs.sources.file import FileDevice
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient
from lazyfs.sources.nbd import NbdSource
from lazyfs.testing.conformance import check_device, check_source
from lazyfs.testing.damage import Faults
from lazyfs.testing.evil import EvilDevice
from lazyfs.testing.memory import MemoryDevice, MemorySource

BLOCK = 4096
SECTOR = 512
CONTENT = noise(5 * BLOCK + 100) + bytes(3 * BLOCK) + noise(BLOCK + 7, seed=1)
IDENTITY = Identity(len(CONTENT), '"v1"')
EDGES = (BLOCK, 6 * BLOCK)
WINDOW = Span(BLOCK + 5, 7 * BLOCK)
INNER = Span(3, 4 * BLOCK - 1)
PARTITION = Span(9 * SECTOR, 60 * SECTOR)

Announce = Callable[..., None]


def mbr(content: bytes) -> bytes:
    """``content`` with a partition table in its first sector."""
    entry = struct.pack("<B3xB3xLL", 0, 0x83, 9, PARTITION.length // SECTOR)
    return bytes(446) + entry + bytes(48) + b"\x55\xaa" + content[SECTOR:]


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
        yield Prefetcher(cache, ReadAheadLimit())


@asynccontextmanager
async def recorder(place: Path) -> AsyncIterator[Device]:
    async with cache_in_memory(place) as cache, trio.open_nursery() as nursery:
        device = Recorder(Prefetcher(cache, ReadAheadLimit()), "http://host/image")
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
def test_a_device_keeps_the_contract(kind: Kind, tmp_path: Path, expected_log: Announce) -> None:
    expected_log("the cache cannot hold all of it; the fill stops", required=False)
    expected_log("the cache takes no more", required=False)
    numbers = itertools.count()

    def opened() -> AbstractAsyncContextManager[Device]:
        place = tmp_path / str(next(numbers))
        place.mkdir()
        return kind.opened(place)

    check_device(
        opened, kind.reference, edges=EDGES, remembers=kind.remembers, complete=kind.complete
    )


# Sources


@pytest.fixture(autouse=True)
def _no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@asynccontextmanager
async def memory_source(place: Path) -> AsyncIterator[Source]:
    yield MemorySource(CONTENT)


@asynccontextmanager
async def fake_source(place: Path) -> AsyncIterator[Source]:
    yield FakeSource(CONTENT)


class Clamped(HttpSource):
    """As it should be: HttpSource speaks of bytes beyond the end, and of nothing as a run."""

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        here = clamp(offset, length, self.identity.size).length
        return await super().zeros(offset, here) if here else []


@asynccontextmanager
async def http_source(
    place: Path, script: Script = lambda _: None, first: int = 1
) -> AsyncIterator[Source]:
    async with serving(CONTENT) as site:
        site.script = script
        client = HttpClient(ServerOptions(user_agent="lazyfs/test"))
        yield Clamped(client, site.url(), first=first)
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
    "HTTP, by the fallback path": http_source_by_fallback,
    "HTTP, behind a redirect": redirected_source,
    "NBD": nbd_source,
}


@pytest.mark.parametrize("opened", SOURCES.values(), ids=list(SOURCES))
def test_a_source_keeps_the_contract(
    opened: Callable[[Path], AbstractAsyncContextManager[Source]], tmp_path: Path
) -> None:
    numbers = itertools.count()

    def opened_anew() -> AbstractAsyncContextManager[Source]:
        place = tmp_path / str(next(numbers))
        place.mkdir()
        return opened(place)

    check_source(opened_anew, CONTENT, edges=EDGES)

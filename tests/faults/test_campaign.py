"""Random walks of a whole stack in this process, against the bytes of each version of its image.

A walk reads, is cancelled, is killed, mounts again; meanwhile its server fails in every way that
``server.py`` knows, goes away, comes back, and changes the image; between two mounts cache files
are damaged. What holds at every step:

- a read gives exactly the bytes of the version that was opened, or a LazyfsError;
- it ends by its deadline;
- what was read before a kill can be read after it, also without the server;
- when server and image are well again, so are the reads.

A kill is a copy of the cache as it lies on the disk between two steps of the event loop; the stack
that was killed ends with its old cache. (Kills in the midst of everything: ``test_crashes.py``.)
"""

import contextlib
import random
import shutil
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
from real.servers import Request
from real.test_fill import connections_to
from seams.fakes import FakeSource, running
from trio.testing import MockClock

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Device
from lazyfs.core.errors import LazyfsError
from lazyfs.core.options import CacheOptions, MountOptions
from lazyfs.core.ranges import Span, blocks_of

from .figures import Figures
from .model import NAME, Announce, Reader, running_stack, stack_options
from .server import Fault, FaultServer, Status
from .trouble import FAILURES, LIES

BLOCK = 16 << 10
SIZE = 6 * (1 << 20) + 77
LIMIT = 4 << 20  # bytes of a cache that cannot hold the image
TIMEOUT = 1.0  # seconds until a read fails
MARGIN = 3.0  # seconds by which a busy machine may be late
RECOVERY = 30.0  # seconds in which reads are well again after the server is
KINDS = ("plain", "limited", "filled", "in memory")  # of mounts


class Walk:
    """One image, its server, its cache and its reader, on a way that a seed decides."""

    def __init__(self, seed: int, directory: Path, figures: Figures) -> None:
        self._random = random.Random(seed)
        self._directory = directory
        self._figures = figures
        self._cache = directory / "0"
        self._kind = KINDS[seed % len(KINDS)]
        content = self._random.randbytes(SIZE)
        self._server = FaultServer(**{NAME: content})
        self._server.script = self._script
        self._faults: deque[Fault] = deque()  # of the next requests
        self._up = True
        self._versions = {'"v1"': content}  # by entity tag
        self._kept: set[int] = set()  # blocks that must be in the cache whatever happens
        self._cached_version: str | None = None
        self._copies = 0
        self.trail: deque[str] = deque(maxlen=40)  # what was done last

    def _script(self, request: Request) -> Fault | None:
        opening = request.opens
        if not self._faults or (opening and self._faults[0] in LIES):
            return None
        return self._faults.popleft()

    async def run(self, steps: int) -> None:
        with self._server:
            while steps > 0:
                steps -= await self._mount(self._random.randint(1, steps))
                self._between_mounts()
            await self._recover()
        self._figures.add(walks=1, faults_injected=self._server.faults)

    # Mounts

    async def _mount(self, steps: int) -> int:
        """Mount and go on for so many steps; returns how many were taken."""
        try:
            async with running_stack(self._options()) as device:
                self._figures.add(mounts=1)
                return await self._session(device, steps)
        except LazyfsError as error:
            self.trail.append(f"not mounted: {error}")
            await self._come_back()
            return 1

    def _options(self) -> MountOptions:
        cache = CacheOptions(
            self._cache,
            memory_only=self._kind == "in memory",
            block_size=BLOCK,
            limit=LIMIT if self._kind == "limited" else None,
        )
        options = stack_options(self._server.url(NAME), cache, TIMEOUT)
        return replace(options, fill=self._kind == "filled")

    async def _session(self, device: Device, steps: int) -> int:
        version = device.identity.etag
        assert version in self._versions, f"{version} was never on the server"
        self.trail.append(f"mounted {version}")
        if version != self._cached_version:
            self._kept.clear()
        self._cached_version = version
        reader = Reader(device, self._versions[version], self._figures, TIMEOUT + MARGIN)
        await self._look_for_what_was_kept(reader)
        cache = self._cache
        for step in range(steps):
            action = self._random.choices(*zip(*ACTIONS, strict=True))[0]
            self.trail.append(action.__name__)
            await action(self, device, reader)
            if self._cache != cache:
                return step + 1
        return steps

    async def _look_for_what_was_kept(self, reader: Reader) -> None:
        """Blocks that were read before the last mount ended are there still."""
        some = self._random.sample(sorted(self._kept), min(len(self._kept), 20))
        good = await reader.read_together([(block * BLOCK, BLOCK) for block in some])
        lost = len(some) - len(good)
        self._figures.add(blocks_looked_for=len(some), blocks_lost=lost)
        assert lost == 0, f"{lost} of {len(some)} blocks that had been read are gone"

    async def _recover(self) -> None:
        """All is well again: so is every byte of the image."""
        await self._come_back()
        self._faults.clear()
        options = CacheOptions(self._cache, block_size=BLOCK)
        url = self._server.url(NAME)
        async with running_stack(stack_options(url, options, RECOVERY)) as device:
            content = self._versions[device.identity.etag or ""]
            assert content == self._server.files[f"/{NAME}"].content
            reader = Reader(device, content, self._figures, RECOVERY + MARGIN)
            assert await reader.read(0, SIZE)

    # Steps of a session

    async def read(self, device: Device, reader: Reader) -> None:
        await self._read(device, reader, [self._range()])

    async def read_at_once(self, device: Device, reader: Reader) -> None:
        await self._read(device, reader, [self._range() for _ in range(8)])

    async def _read(self, device: Device, reader: Reader, ranges: list[tuple[int, int]]) -> None:
        good = await reader.read_together(ranges)
        if device.statistics().under_way == 0 and self._kind in ("plain", "filled"):
            for offset, length in good:
                span = Span(offset, min(offset + length, SIZE))
                self._kept.update(range(*blocks_of(span, BLOCK)))

    async def cancel_readers(self, device: Device, reader: Reader) -> None:
        with trio.move_on_after(self._random.random() * 0.05):
            await reader.read_together([self._range() for _ in range(4)])
        self._figures.add(cancelled_readers=4)

    async def fail(self, device: Device, reader: Reader) -> None:
        for _ in range(self._random.randint(1, 4)):
            self._faults.append(self._random.choice((*LIES, *FAILURES)))

    async def get_well(self, device: Device, reader: Reader) -> None:
        """The server has no fault any more; sooner or later that is noticed."""
        await self._come_back()
        self._faults.clear()
        version = self._server.files[f"/{NAME}"].etag
        with trio.fail_after(RECOVERY):
            while version == device.identity.etag and not await reader.read(*self._range()):
                pass
        self._figures.add(recoveries=1)

    async def go_away(self, device: Device, reader: Reader) -> None:
        if self._up:
            self._up = False
            await trio.to_thread.run_sync(self._server.stop)
            self._figures.add(outages=1)

    async def come_back(self, device: Device, reader: Reader) -> None:
        await self._come_back()

    async def _come_back(self) -> None:
        if not self._up:
            self._up = True
            await trio.to_thread.run_sync(self._server.start)

    async def change_the_image(self, device: Device, reader: Reader) -> None:
        content = self._random.randbytes(SIZE)
        self._server.replace(NAME, content)
        self._versions[self._server.files[f"/{NAME}"].etag or ""] = content
        self._figures.add(versions=1)

    async def kill(self, device: Device, reader: Reader) -> None:
        """What is on the disk now is all that the next mount gets."""
        self._copies += 1
        copy = self._directory / str(self._copies)
        if self._cache.exists():
            shutil.copytree(self._cache, copy)
        self._cache = copy
        self._figures.add(kills=1)

    # Between two mounts

    def _between_mounts(self) -> None:
        if self._random.random() < 0.2:
            self._damage_a_file()

    def _damage_a_file(self) -> None:
        """Overwrite a part of a file; what was kept may be gone then."""
        files = sorted(self._cache.glob(f"{NAME}-*/*"))
        files = [path for path in files if path.name in ("data", "bitmap", "sums", "meta.json")]
        if not files:
            return
        path = self._random.choice(files)
        content = bytearray(path.read_bytes())
        for _ in range(self._random.randint(1, 5)):
            start = self._random.randrange(len(content))
            length = min(self._random.choice((1, 8, 512, 5000)), len(content) - start)
            content[start : start + length] = self._random.randbytes(length)
        path.write_bytes(content)
        self._kept.clear()
        self._cached_version = None
        self._figures.add(damaged_files=1)
        self.trail.append(f"damaged {path.name}")

    def _range(self) -> tuple[int, int]:
        length = self._random.choice((1, 100, BLOCK, 5 * BLOCK + 1, 30 * BLOCK))
        return self._random.randrange(SIZE), length


Action = Callable[[Walk, Device, Reader], Awaitable[None]]

ACTIONS: list[tuple[Action, int]] = [
    (Walk.read, 20),
    (Walk.read_at_once, 10),
    (Walk.cancel_readers, 5),
    (Walk.fail, 10),
    (Walk.go_away, 2),
    (Walk.come_back, 6),
    (Walk.change_the_image, 1),
    (Walk.get_well, 3),
    (Walk.kill, 3),
]


async def _walk(seed: int, directory: Path, figures: Figures, steps: int) -> None:
    walk = Walk(seed, directory, figures)
    try:
        await walk.run(steps)
    except BaseException as error:
        error.add_note(f"walk {seed}, its last steps: {', '.join(walk.trail)}")
        raise


async def _walk_all(seeds: range, directory: Path, figures: Figures, steps: int) -> None:
    """Several walks beside each other: each mostly waits."""
    async with trio.open_nursery() as nursery:
        for seed in seeds:
            nursery.start_soon(_walk, seed, directory / str(seed), figures, steps)


def test_random_walks(tmp_path: Path, figures: Figures, long: bool, expected_log: Announce) -> None:
    expected_log("^(?!.*unforeseen)", required=False)  # anything but a defect may be said
    for first in range(0, 32 if long else 8, 8):
        directory = tmp_path / str(first)
        directory.mkdir()
        trio.run(_walk_all, range(first, first + 8), directory, figures, 60)


# Several caches in one directory

SHARED_LIMIT = 8 << 20  # bytes of a directory in which four images of 6 MiB take turns


def test_caches_that_make_room_for_each_other(
    tmp_path: Path, figures: Figures, long: bool, expected_log: Announce
) -> None:
    """Each mount removes caches that nobody uses; none may lose what it uses, or pass the limit."""
    expected_log("the cache takes no more", required=False)
    names = [f"{number}.raw" for number in range(4)]
    contents = {name: random.Random(name).randbytes(SIZE) for name in names}
    rounds = 40 if long else 8

    async def use(server: FaultServer, name: str) -> None:
        chance = random.Random(name)
        cache = CacheOptions(tmp_path, block_size=BLOCK, limit=SHARED_LIMIT)
        for _ in range(rounds):
            async with running_stack(stack_options(server.url(name), cache, RECOVERY)) as device:
                reader = Reader(device, contents[name], figures, RECOVERY + MARGIN)
                for _ in range(10):
                    ranges = [(chance.randrange(SIZE), 5 * BLOCK) for _ in range(4)]
                    assert len(await reader.read_together(ranges)) == len(ranges)
                    now = taken(tmp_path)
                    figures.most(most_KiB_of_a_limit_of_8192=now >> 10)
                    assert now <= SHARED_LIMIT
            await trio.sleep(chance.random() * 0.1)  # so that some caches are in use by nobody

    async def use_all(server: FaultServer) -> None:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(use, server, name)

    with FaultServer(**contents) as server:
        trio.run(use_all, server)


def taken(directory: Path) -> int:
    """Bytes on the disk of all that lies in a directory."""
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(FileNotFoundError):  # removed by another mount just now
            total += path.stat().st_blocks * 512
    return total


# What walks have found


@pytest.mark.parametrize("refusal", [404, 503])
def test_requests_that_were_sent_with_a_refused_one_leave_no_connection_open(
    tmp_path: Path, figures: Figures, expected_log: Announce, refusal: int
) -> None:
    """Their answers are on their way on a connection that nobody will read any more."""
    expected_log("status", required=False)
    content = random.Random(1).randbytes(64 * BLOCK)
    apart = [(block * BLOCK, BLOCK) for block in (1, 20, 30, 40)]

    async def read_while_one_is_refused(server: FaultServer) -> None:
        cache = CacheOptions(tmp_path, block_size=BLOCK)
        options = stack_options(server.url(NAME), cache, timeout=5.0, connections=1)
        async with running_stack(options) as device:
            failures = iter([Status(refusal)])
            server.script = lambda _: next(failures, None)
            await Reader(device, content, figures).read_together(apart)
            assert connections_to(server.port) <= 1
        assert connections_to(server.port) == 0
        assert server.faults == 1

    with FaultServer(**{NAME: content}) as server:
        trio.run(read_while_one_is_refused, server)


def test_the_largest_blocks_fit_into_the_smallest_cache(tmp_path: Path, figures: Figures) -> None:
    """One of them is more than the step by which such a cache grows."""
    content = random.Random(2).randbytes(20 << 20)
    block = 1 << 20

    async def read_all(url: str) -> None:
        cache = CacheOptions(tmp_path, block_size=block, limit=16 << 20)
        async with running_stack(stack_options(url, cache, RECOVERY)) as device:
            reader = Reader(device, content, figures, RECOVERY + MARGIN)
            for offset in range(0, len(content), block):
                assert await reader.read(offset, block)
            assert 8 << 20 < taken(tmp_path) <= 16 << 20

    with FaultServer(**{NAME: content}) as server:
        trio.run(read_all, server.url(NAME))


class Clinging(MemoryStore):
    """Keeps hold of what it was given, as the traceback of an error does."""

    def put(self, block: int, content: bytes | memoryview) -> None:
        super().put(block, content)
        self.last = content


async def test_content_that_somebody_still_holds_does_not_end_a_fetch(
    autojump_clock: MockClock,
) -> None:
    content = random.Random(3).randbytes(8 * BLOCK)
    store = Clinging(len(content), BLOCK, len(content))
    async with running(BlockCache(NAME, FakeSource(content), store, 5.0)) as cache:
        assert await cache.read(0, len(content)) == content

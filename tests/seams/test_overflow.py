"""The store within its limit, on disks that are full or fail; and the room it is given."""

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from fakes import FakeSource, disk_store, noise, running
from trio.testing import MockClock

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.directory import Entry, entries, remove
from lazyfs.cache.disk import DiskStore, open_disk_store
from lazyfs.cache.files import File
from lazyfs.cache.layout import CacheLock, Layout
from lazyfs.cache.overflow import TRY_AGAIN, OverflowStore
from lazyfs.cache.quota import Quota
from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import CacheBusy, CacheError
from lazyfs.core.ranges import Span

MIB = 1 << 20
BLOCK = 32 << 10
SIZE = 40 * MIB + 5
CONTENT = noise(SIZE)
IDENTITY = Identity(SIZE, '"v1"')
LIMIT = 16 * MIB

Announce = Callable[..., None]


def key(number: int) -> str:
    return f"image-{number:016x}"


def taken(directory: Path) -> int:
    """Bytes that a directory takes on the disk, as du has it."""
    return sum(path.lstat().st_blocks * 512 for path in [directory, *directory.rglob("*")])


def directories(place: Path) -> set[str]:
    return {path.name for path in place.iterdir() if path.is_dir()}


class FailingFile(File):
    """A file on a disk that can be told to fail."""

    failing: dict[str, int] = {}  # noqa: RUF012  # what fails -> errno; set by the fixture

    def write(self, content: bytes | memoryview, offset: int) -> None:
        self._fail("write")
        super().write(content, offset)

    def read(self, span: Span) -> bytes:
        self._fail("read")
        return super().read(span)

    def sync(self) -> None:
        self._fail("sync")
        super().sync()

    def _fail(self, what: str) -> None:
        number = self.failing.get(what)
        if number is not None and self.path.name == "data":
            raise OSError(number, os.strerror(number))


class Now:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def failing() -> Iterator[dict[str, int]]:
    """What fails of the disk, by errno."""
    FailingFile.failing = {}
    yield FailingFile.failing
    FailingFile.failing = {}


@pytest.fixture
def now() -> Now:
    return Now()


@pytest.fixture
def store(tmp_path: Path, failing: dict[str, int], now: Now) -> Iterator[OverflowStore]:
    """A store without a limit on a disk that can fail."""
    opened = OverflowStore("img", disk(tmp_path), Quota(tmp_path, lambda: 0), now)
    yield opened
    opened.close()


def disk(directory: Path) -> DiskStore:
    paths = Layout.in_directory(directory)
    lock = CacheLock(paths.lock)
    return open_disk_store(paths, lock, "img", IDENTITY, BLOCK, open_file=FailingFile)


def span(first: int, stop: int) -> Span:
    return Span(first * BLOCK, min(stop * BLOCK, SIZE))


def put(store: OverflowStore, first: int, stop: int) -> None:
    """Put blocks, and count them as present, as the plan does."""
    store.put(first, CONTENT[slice(*span(first, stop))])
    for block in range(first, stop):
        store.present.add(block)


def save(store: OverflowStore) -> None:
    store.note(store.present.take_dirty())


def on_disk(directory: Path) -> set[int]:
    """The blocks that the next mount would find."""
    again = disk(directory)
    try:
        blocks = set(again.present.within(Span(0, again.present.block_count)))
        assert not [b for b in blocks if again.verify(Span(b, b + 1))]
        return blocks
    finally:
        again.close()


# A disk that fails


def test_what_a_full_disk_does_not_take_is_served_from_memory(
    store: OverflowStore, failing: dict[str, int], tmp_path: Path, expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache takes no more .No space left on device.")
    put(store, 0, 2)
    failing["write"] = errno.ENOSPC
    put(store, 2, 4)
    put(store, 4, 5)  # and this is not said twice
    assert not store.settled
    assert store.verify(Span(0, 5)) == []
    assert store.read(Span(10, 5 * BLOCK - 10)) == CONTENT[10 : 5 * BLOCK - 10]
    save(store)
    store.close()
    assert on_disk(tmp_path) == {0, 1}


def test_memory_is_bounded_and_prefetch_with_it(
    store: OverflowStore, failing: dict[str, int], expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache takes no more")
    assert store.prefetch_limit is None
    failing["write"] = errno.ENOSPC
    gone: list[int] = []
    for block in range(1000):
        put(store, block, block + 1)
        gone += store.evict(())
    assert gone == list(range(1000 - 512))
    assert store.prefetch_limit == 8 * MIB


def test_the_disk_is_tried_again_and_gets_what_it_missed(
    store: OverflowStore, failing: dict[str, int], now: Now, tmp_path: Path, expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache takes no more")
    failing["write"] = errno.EDQUOT
    put(store, 0, 3)
    save(store)
    failing.clear()
    now.seconds = TRY_AGAIN - 1
    assert store.evict(()) == []
    assert not store.settled
    now.seconds = TRY_AGAIN
    assert store.evict(()) == []
    assert store.settled
    assert store.prefetch_limit is None
    save(store)
    store.close()
    assert on_disk(tmp_path) == {0, 1, 2}


def test_a_place_that_cannot_be_read_is_not_used_again(
    store: OverflowStore, failing: dict[str, int]
) -> None:
    put(store, 0, 2)
    failing["read"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.read(span(1, 2))
    put(store, 1, 2)  # fetched anew
    assert store.verify(Span(1, 2)) == []
    assert store.read(span(1, 2)) == CONTENT[slice(*span(1, 2))]
    assert store.evict(()) == []
    assert not store.settled, "it went back to where it cannot be read"


async def test_reads_go_on_over_a_disk_that_cannot_be_read(
    store: OverflowStore, failing: dict[str, int], autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache cannot be read: Input/output error")
    async with running(BlockCache("img", FakeSource(CONTENT), store, 60)) as cache:
        assert await cache.read(0, 100) == CONTENT[:100]
        failing["read"] = errno.EIO
        assert await cache.read(0, 100) == CONTENT[:100]
        assert await cache.read(5, 100) == CONTENT[5:105]


def test_after_a_failed_sync_blocks_are_compared_again(
    store: OverflowStore, failing: dict[str, int], tmp_path: Path
) -> None:
    """The kernel may have forgotten what it could not write."""
    put(store, 0, 2)
    assert store.verify(Span(0, 2)) == []
    failing["sync"] = errno.EIO
    with pytest.raises(OSError, match="Input/output"):
        store.sync()
    with (tmp_path / "data").open("r+b") as file:
        file.write(bytes(100))
    assert store.verify(Span(0, 2)) == [0]


# A limit


async def read_all(cache: BlockCache, step: int = MIB) -> None:
    for offset in range(0, SIZE, step):
        assert await cache.read(offset, step) == CONTENT[offset : offset + step]


async def test_the_limit_is_never_passed(tmp_path: Path, autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT, piece=100_000)
    store = disk_store(tmp_path / key(1), IDENTITY, BLOCK, LIMIT)
    most = 0
    async with running(BlockCache("img", source, store, 60)) as cache:
        for _ in range(2):
            for offset in range(0, SIZE, MIB):
                assert await cache.read(offset, MIB) == CONTENT[offset : offset + MIB]
                most = max(most, taken(tmp_path))
        assert cache.statistics().evicted > 500
        assert cache.statistics().cached <= LIMIT
    assert LIMIT * 0.8 < most <= LIMIT


async def test_what_is_used_again_and_again_stays(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = FakeSource(CONTENT, piece=100_000)
    store = disk_store(tmp_path / key(1), IDENTITY, BLOCK, LIMIT)
    async with running(BlockCache("img", source, store, 60)) as cache:
        for offset in range(0, SIZE, MIB // 4):
            await cache.read(offset, MIB // 4)
            await cache.read(17 * BLOCK, 1)
        fetches_of_17 = [s for s in source.requests if s[0] <= 17 * BLOCK < s[0] + s[1]]
        assert len(fetches_of_17) == 1


async def test_a_limit_that_was_lowered_holds_from_the_start(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = FakeSource(CONTENT, piece=100_000)
    place = tmp_path / key(1)
    async with running(BlockCache("img", source, disk_store(place, IDENTITY, BLOCK), 60)) as cache:
        await read_all(cache)
    assert taken(tmp_path) > SIZE
    store = disk_store(place, IDENTITY, BLOCK, LIMIT)
    assert taken(tmp_path) <= LIMIT
    async with running(BlockCache("img", source, store, 60)) as cache:
        await read_all(cache)
        assert taken(tmp_path) <= LIMIT


async def test_caches_that_nobody_uses_go_first_the_oldest_before_the_others(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    source = FakeSource(CONTENT, piece=100_000)
    for number in (1, 2, 3):
        store = disk_store(tmp_path / key(number), IDENTITY, BLOCK)
        async with running(BlockCache("img", source, store, 60)) as cache:
            await cache.read(0, 5 * MIB)
        os.utime(tmp_path / key(number) / "lock", (1000 - number, 1000 - number))
    (tmp_path / "not a cache").mkdir()
    store = disk_store(tmp_path / key(4), IDENTITY, BLOCK, LIMIT)
    async with running(BlockCache("img", source, store, 60)) as cache:
        await cache.read(0, 4 * MIB)
        assert directories(tmp_path) == {key(1), key(2), key(4), "not a cache"}
        assert cache.statistics().evicted == 0


async def test_the_caches_of_others_in_use_count_with_what_they_may_take(
    tmp_path: Path, autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache takes no more .--cache-size leaves it nothing.")
    source = FakeSource(CONTENT, piece=100_000)
    first = disk_store(tmp_path / key(1), IDENTITY, BLOCK, LIMIT)
    async with running(BlockCache("img", source, first, 60)) as one:
        await read_all(one)
        second = disk_store(tmp_path / key(2), IDENTITY, BLOCK, LIMIT)
        async with running(BlockCache("img", source, second, 60)) as other:
            await read_all(other)
            assert taken(tmp_path) <= LIMIT
            await read_all(one)
            assert taken(tmp_path) <= LIMIT


async def test_fill_stops_when_the_limit_leaves_no_room_for_all(
    tmp_path: Path, autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: img: the cache cannot hold all of it; the fill stops")
    source = FakeSource(CONTENT, piece=100_000)
    store = disk_store(tmp_path / key(1), IDENTITY, BLOCK, LIMIT)
    async with running(BlockCache("img", source, store, 60)) as cache:
        await cache.ensure(0, SIZE, Priority.FILL)
        await trio.sleep(1000)
        assert 0 < cache.statistics().evicted < 100
        await read_all(cache)
        before = cache.statistics().fetched
        await trio.sleep(1000)
        assert cache.statistics().fetched == before


async def test_min_free_stops_the_cache_and_not_the_reads(
    tmp_path: Path, autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log(
        "WARNING: img: the cache takes no more .its disk has no more than --min-free left."
    )
    store = disk_store(tmp_path / key(1), IDENTITY, BLOCK, min_free=1 << 60)
    async with running(BlockCache("img", FakeSource(CONTENT, piece=100_000), store, 60)) as cache:
        await read_all(cache)
        assert cache.statistics().cached <= 16 * MIB
    assert taken(tmp_path) < MIB


# Caches of a directory


def only(directory: Path) -> Entry:
    (entry,) = entries(directory)
    return entry


def test_a_cache_in_use_names_its_user_and_stays(tmp_path: Path) -> None:
    store = disk_store(tmp_path / key(1), IDENTITY, BLOCK)
    entry = only(tmp_path)
    assert entry.holder == f"process {os.getpid()}"
    with pytest.raises(CacheBusy):
        remove(entry)
    store.close()
    assert only(tmp_path).holder is None
    remove(entry)
    assert not entry.directory.exists()


def test_what_somebody_put_into_a_cache_is_not_removed(tmp_path: Path) -> None:
    disk_store(tmp_path / key(1), IDENTITY, BLOCK).close()
    (tmp_path / key(1) / "thesis.txt").write_text("x")
    with pytest.raises(CacheError, match="cannot be removed: Directory not empty"):
        remove(only(tmp_path))
    assert (tmp_path / key(1) / "thesis.txt").exists()


def test_a_lock_that_was_removed_while_it_was_waited_for_is_not_the_lock(tmp_path: Path) -> None:
    paths = Layout.in_directory(tmp_path / key(1))
    first = CacheLock(paths.lock)
    paths.lock.unlink()
    second = CacheLock(paths.lock, patience=0)
    with pytest.raises(CacheBusy):
        CacheLock(paths.lock, patience=0)
    first.close()
    second.close()

"""The background fill of the block cache, in virtual time: last in line, complete at the end."""

import contextlib
import itertools
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import trio
from fakes import FakeSource, disk_store, noise, running
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.fill import CALM, SHORTEST
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Priority
from lazyfs.core.errors import Unreachable

BLOCK = 32 << 10
COUNT = 256
SIZE = (COUNT - 1) * BLOCK + 100  # the last block is short
CONTENT = noise(SIZE)
MIB = 1 << 20
PACE = 0.001  # seconds for each piece that the source sends
PIECE = 16 << 10

Announce = Callable[..., None]


def slow_source(slots: int = 4) -> FakeSource:
    source = FakeSource(CONTENT, piece=PIECE, slots=slots)
    source.pause = PACE
    return source


def new_cache(source: FakeSource, rate: float | None = None) -> BlockCache:
    return BlockCache("img", source, MemoryStore(SIZE, BLOCK, SIZE + BLOCK), 0, rate)


def spoil(path: Path, blocks: list[int]) -> None:
    """Change a few bytes of these blocks behind the cache's back."""
    with open(path, "r+b") as data:
        for block in blocks:
            data.seek(block * BLOCK + 50)
            data.write(b"rotten")


@contextlib.asynccontextmanager
async def filling(cache: BlockCache) -> AsyncIterator[BlockCache]:
    async with running(cache):
        await cache.ensure(0, SIZE, Priority.FILL)
        yield cache


def covered(source: FakeSource) -> list[tuple[int, int]]:
    """The requests in the order of the image."""
    return sorted(source.requests)


def each_byte_once(source: FakeSource) -> bool:
    ends = [0, *(offset + length for offset, length in covered(source))]
    starts = [*(offset for offset, _ in covered(source)), SIZE]
    return starts == ends


# Completion


@pytest.mark.parametrize("slots", [1, 2, 4])
async def test_an_image_is_completed_in_order(autojump_clock: MockClock, slots: int) -> None:
    source = slow_source(slots)
    async with filling(new_cache(source)) as cache:
        await cache.wait_complete()
        assert source.resting
        assert cache.statistics().cached == SIZE
        assert await cache.read(0, SIZE) == CONTENT
    assert each_byte_once(source)
    assert source.requests == covered(source)
    assert source.most_at_once == max(1, slots - 1)


async def test_nobody_is_told_before_the_last_block(autojump_clock: MockClock) -> None:
    source = slow_source()
    gate = source.gate_at((COUNT - 1) * BLOCK)
    async with filling(new_cache(source)) as cache:
        with trio.move_on_after(1000) as waiting:
            await cache.wait_complete()
        assert waiting.cancelled_caught
        assert not source.resting
        gate.set()
        await cache.wait_complete()
        assert source.resting


async def test_readers_complete_an_image_too(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await cache.read(0, SIZE)
        with trio.fail_after(10):
            await cache.wait_complete()
        assert source.resting


async def test_without_fill_nothing_is_fetched(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await trio.sleep(1000)
        assert cache.statistics().cached == 0
    assert source.requests == []


async def test_a_failure_delays_but_does_not_end_it(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    """Nobody waits for it: the blocks of a broken request are to be asked for all the same."""
    expected_log("WARNING: .*broke", required=False)
    source = slow_source()
    source.fail_at(40 * BLOCK, Unreachable("broke"), Unreachable("broke"))
    async with filling(new_cache(source)) as cache:
        with trio.fail_after(100):
            await cache.wait_complete()
        assert cache.statistics().cached == SIZE


# Parts of an image


async def test_a_part_is_complete_before_the_whole_is(autojump_clock: MockClock) -> None:
    """Only the part is fetched, and whoever waits for it is woken; the image is not complete."""
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await cache.ensure(10 * BLOCK + 7, 20 * BLOCK, Priority.FILL)
        assert cache.state().filling
        with trio.fail_after(100):
            await cache.wait_complete(10 * BLOCK + 7, 20 * BLOCK)
        await trio.sleep(100)
        assert cache.statistics().cached == 21 * BLOCK
        assert not cache.state().filling
        assert not cache.state().complete
        with pytest.raises(trio.TooSlowError), trio.fail_after(10):
            await cache.wait_complete(9 * BLOCK, 2 * BLOCK)


async def test_a_damaged_part_is_fetched_again_before_it_is_complete(
    autojump_clock: MockClock, tmp_path: Path, expected_log: Announce
) -> None:
    autojump_clock.autojump_threshold = 0.005  # the disk is synced in a thread, in real time
    expected_log("WARNING: .*damaged")
    first = slow_source()
    async with running(
        BlockCache("img", first, disk_store(tmp_path, first.identity, BLOCK), 0)
    ) as cache:
        await cache.read(0, 40 * BLOCK)
    spoil(tmp_path / "data", [12, 35])
    second = slow_source()
    async with running(
        BlockCache("img", second, disk_store(tmp_path, second.identity, BLOCK), 0)
    ) as cache:
        with trio.fail_after(100):
            await cache.wait_complete(10 * BLOCK, 10 * BLOCK)
        assert second.requests == [(12 * BLOCK, BLOCK)]
        assert await cache.read(10 * BLOCK, 10 * BLOCK) == CONTENT[10 * BLOCK : 20 * BLOCK]


# Earlier mounts


async def test_what_an_earlier_mount_brought_is_not_fetched_again(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    first = slow_source()
    async with running(
        BlockCache("img", first, disk_store(tmp_path, first.identity, BLOCK), 0)
    ) as cache:
        await cache.read(30 * BLOCK, 100 * BLOCK)
    second = slow_source()
    async with filling(
        BlockCache("img", second, disk_store(tmp_path, second.identity, BLOCK), 0)
    ) as cache:
        await cache.wait_complete()
        assert cache.statistics().fetched == SIZE - 100 * BLOCK
        assert await cache.read(0, SIZE) == CONTENT


async def test_a_complete_cache_is_complete_without_a_request(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    first = slow_source()
    async with filling(
        BlockCache("img", first, disk_store(tmp_path, first.identity, BLOCK), 0)
    ) as cache:
        await cache.wait_complete()
    second = slow_source()
    async with running(
        BlockCache("img", second, disk_store(tmp_path, second.identity, BLOCK), 0)
    ) as cache:
        with trio.fail_after(10):
            await cache.wait_complete()
    assert second.requests == []
    assert second.resting


@pytest.mark.parametrize("damaged", [[0], [COUNT - 1], [3, 4, 200]])
async def test_damaged_blocks_are_fetched_before_it_is_complete(
    autojump_clock: MockClock, tmp_path: Path, expected_log: Announce, damaged: list[int]
) -> None:
    autojump_clock.autojump_threshold = 0.005  # the disk is synced in a thread, in real time
    first = slow_source()
    async with filling(
        BlockCache("img", first, disk_store(tmp_path, first.identity, BLOCK), 0)
    ) as cache:
        await cache.wait_complete()
    spoil(tmp_path / "data", damaged)
    expected_log("WARNING: .*damaged")
    second = slow_source()
    # Without --fill: an image once said to be whole is made whole again.
    async with running(
        BlockCache("img", second, disk_store(tmp_path, second.identity, BLOCK), 0)
    ) as cache:
        with trio.fail_after(1000):
            await cache.wait_complete()
        assert cache.statistics().damaged == len(damaged)
    assert (tmp_path / "data").read_bytes() == CONTENT
    asked = {
        n for at, size in second.requests for n in range(at // BLOCK, -(-(at + size) // BLOCK))
    }
    assert asked == set(damaged)


# Readers go first


async def test_a_reader_is_not_behind_the_fill(autojump_clock: MockClock) -> None:
    """His read takes as long as without a fill: a slot is kept for him."""
    source = slow_source()
    async with filling(new_cache(source)) as cache:
        await wait_all_tasks_blocked()
        assert source.at_once == 3
        began = trio.current_time()
        await cache.read(200 * BLOCK, BLOCK)
        assert trio.current_time() - began == pytest.approx(2 * PACE)


async def test_without_calm_one_fill_request_at_a_time(autojump_clock: MockClock) -> None:
    """Each beside a reader's, or when he has not come back for a while."""
    source = slow_source()
    source.pause = 0.05  # so slow that what is under way would pile up
    most = 0
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        await cache.read(0, 1)
        await cache.ensure(0, SIZE, Priority.FILL)

        async def watch() -> None:
            nonlocal most
            while True:
                await trio.sleep(0.01)
                most = max(most, source.at_once)

        nursery.start_soon(watch)
        for block in range(2, 120, 7):
            await cache.read(block * BLOCK, BLOCK)
            await trio.sleep(CALM / 4)
        nursery.cancel_scope.cancel()
    fills = [length for _, length in source.requests if length > BLOCK]
    assert len(fills) > 5, "the pauses were not used"
    assert most == 2  # the reader's and the fill's
    assert max(fills) <= SHORTEST  # of a link of which nothing is known


async def test_a_fill_request_follows_a_readers_at_once(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await cache.read(100 * BLOCK, BLOCK)
        await cache.ensure(0, SIZE, Priority.FILL)
        await wait_all_tasks_blocked()
        assert len(source.requests) == 1, "he may be back at once"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cache.read, 110 * BLOCK, BLOCK)
            await wait_all_tasks_blocked()
            assert source.requests[1:] == [(110 * BLOCK, BLOCK), (0, SHORTEST)]


async def test_calm_brings_it_to_full_speed(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await cache.read(200 * BLOCK, BLOCK)
        await cache.ensure(0, SIZE, Priority.FILL)
        gates = [source.gate_at(n * BLOCK) for n in range(0, COUNT, 32)]
        await trio.sleep(3 * CALM)
        short = len([length for _, length in source.requests if length <= SHORTEST])
        gates[0].set()
        await trio.sleep(CALM)
        assert source.at_once == 3
        assert max(length for _, length in source.requests[short:]) >= MIB
        for gate in gates:
            gate.set()
        await cache.wait_complete()


# Rate


@pytest.mark.parametrize("rate", [256 << 10, MIB, 4 * MIB])
async def test_the_rate_is_kept(autojump_clock: MockClock, rate: int) -> None:
    source = slow_source()
    began = trio.current_time()
    async with filling(new_cache(source, float(rate))) as cache:
        await cache.wait_complete()
        took = trio.current_time() - began
    longest = max(length for _, length in source.requests)
    assert SIZE / rate - longest / rate <= took <= 1.2 * SIZE / rate + 1
    sent = itertools.accumulate(length for _, length in source.requests)
    for at, total in zip(source.times, sent, strict=True):
        assert total <= rate * (at - began) + longest + 1
    assert each_byte_once(source)


async def test_the_rate_is_not_for_readers(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with filling(new_cache(source, rate=1000.0)) as cache:
        began = trio.current_time()
        assert await cache.read(0, SIZE) == CONTENT
        assert trio.current_time() - began < 10


# Counting


async def test_what_fill_brought_counts_as_prefetched(autojump_clock: MockClock) -> None:
    source = slow_source()
    async with running(new_cache(source)) as cache:
        await cache.read(0, 3 * BLOCK)
        await cache.ensure(0, SIZE, Priority.FILL)
        await cache.wait_complete()
        now = cache.statistics()
        assert (now.fetched, now.prefetched) == (SIZE, SIZE - 3 * BLOCK)
        assert now.prefetched <= now.unused < now.prefetched + BLOCK  # whole blocks
        await cache.read(3 * BLOCK, 10 * BLOCK)
        after = cache.statistics()
        assert after.unused == now.unused - 10 * BLOCK
        assert (after.hits, after.misses, after.wanted) == (1, 1, 13 * BLOCK)
        assert after.requests == len(source.requests)
        assert after.under_way == 0


# Pausing


@pytest.mark.parametrize("rate", [None, BLOCK / 10])
async def test_what_is_paused_asks_for_nothing_until_it_is_resumed(
    autojump_clock: MockClock, rate: float | None
) -> None:
    """Also when it was resting for its rate."""
    source = slow_source()
    async with filling(new_cache(source, rate)) as cache:
        await trio.sleep(0.05)
        cache.pause()
        await trio.sleep(1)  # what was under way has come
        asked, here = len(source.requests), cache.statistics().cached
        assert 0 < here < SIZE
        await trio.sleep(24 * 3600)
        assert (len(source.requests), cache.statistics().cached) == (asked, here)
        assert cache.state().paused
        cache.limit_rate(None)
        cache.resume()
        await cache.wait_complete()
        assert not cache.state().paused


async def test_a_pause_holds_preloads_and_no_reader(autojump_clock: MockClock) -> None:
    source = slow_source()
    cache = new_cache(source)
    async with running(cache):
        cache.pause()
        await cache.ensure(0, 20 * BLOCK, Priority.PRELOAD)
        assert await cache.read(40 * BLOCK, 10) == CONTENT[40 * BLOCK :][:10]
        await trio.sleep(3600)
        assert cache.statistics().cached < 20 * BLOCK
        cache.resume()
        await trio.sleep(10)
        assert all(here for _, here in cache.cached(0, 20 * BLOCK))


async def test_another_rate_counts_at_once(autojump_clock: MockClock) -> None:
    async with filling(new_cache(slow_source(), rate=1.0)) as cache:  # a day for each block
        await trio.sleep(5)
        assert cache.statistics().cached < SIZE
        cache.limit_rate(None)
        began = trio.current_time()
        await cache.wait_complete()
        assert trio.current_time() - began < 60


@pytest.mark.parametrize("size", [1, 100, BLOCK, 3 * BLOCK, SIZE])
async def test_what_came_with_the_opening_is_kept(autojump_clock: MockClock, size: int) -> None:
    """Whole blocks of it; and all, if that is the image."""
    source = slow_source()
    cache = new_cache(source)
    async with running(cache):
        cache.begin_with(CONTENT[:size])
        kept = SIZE if size == SIZE else size - size % BLOCK
        assert cache.statistics().cached == kept
        assert cache.statistics().fetched == kept
        cache.begin_with(CONTENT[:size])
        assert cache.statistics().fetched == kept, "what is here is not taken twice"
        assert await cache.read(0, SIZE) == CONTENT
        assert sum(length for _, length in source.requests) == SIZE - kept

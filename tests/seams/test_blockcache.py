"""The block cache between a scripted source and a real store, in virtual time."""

import contextlib
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
from fakes import FakeSource, disk_store, noise, running
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.fetcher import LARGEST_FETCH, SMALLEST_FETCH
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Priority, Statistics
from lazyfs.core.errors import (
    LazyfsError,
    NotFound,
    ReadTimeout,
    ServerBusy,
    Unreachable,
)

BLOCK = 4096
COUNT = 64
CONTENT = noise((COUNT - 1) * BLOCK + 100)  # the last block is short
SIZE = len(CONTENT)

Announce = Callable[..., None]


def memory(blocks: int = COUNT) -> MemoryStore:
    return MemoryStore(SIZE, BLOCK, blocks * BLOCK)


def new_cache(
    source: FakeSource, timeout: float = 0, store: MemoryStore | None = None
) -> BlockCache:
    return BlockCache("img", source, store or memory(), timeout)


def blocks(start: int, stop: int) -> tuple[int, int]:
    """Offset and length of these blocks."""
    return start * BLOCK, min(stop * BLOCK, SIZE) - start * BLOCK


def spoil(path: Path, *numbers: int) -> None:
    """Change a few bytes of these blocks behind the cache's back."""
    with path.open("r+b") as file:
        for number in numbers:
            file.seek(number * BLOCK + 9)
            file.write(b"rotten")


class Reader:
    """One read in a task of its own, and what came of it when."""

    def __init__(self, cache: BlockCache, offset: int, length: int) -> None:
        self._cache = cache
        self._range = offset, length
        self.scope = trio.CancelScope()
        self.content: bytes | None = None
        self.error: LazyfsError | None = None
        self.ended_at = math.nan

    async def run(self) -> None:
        with self.scope:
            try:
                self.content = await self._cache.read(*self._range)
            except LazyfsError as error:
                self.error = error
            self.ended_at = trio.current_time()

    @property
    def right(self) -> bool:
        offset, length = self._range
        return self.content == CONTENT[offset : offset + length]


def start(nursery: trio.Nursery, cache: BlockCache, *ranges: tuple[int, int]) -> list[Reader]:
    readers = [Reader(cache, offset, length) for offset, length in ranges]
    for reader in readers:
        nursery.start_soon(reader.run)
    return readers


async def read_all(cache: BlockCache, *ranges: tuple[int, int]) -> list[Reader]:
    """Read all these ranges at the same time."""
    async with trio.open_nursery() as nursery:
        return start(nursery, cache, *ranges)


# What is read, and what it costs


@pytest.mark.parametrize(
    ("offset", "length"),
    [
        (0, 1),
        (0, BLOCK),
        (BLOCK - 1, 2),
        (5, 10 * BLOCK),
        (0, SIZE),
        (SIZE - 1, 1),
        (SIZE - 1, 10 * BLOCK),
        (SIZE, 1),
        (SIZE + BLOCK, BLOCK),
        (7, 0),
        ((COUNT - 1) * BLOCK, BLOCK),
    ],
)
async def test_any_part_is_right_and_then_costs_no_more(
    autojump_clock: MockClock, offset: int, length: int
) -> None:
    source = FakeSource(CONTENT)
    async with running(new_cache(source)) as cache:
        for _ in range(2):
            assert await cache.read(offset, length) == CONTENT[offset : offset + length]
        assert len(source.requests) <= 1


async def test_many_readers_of_one_block_cause_one_request(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT)
    source.pause = 1
    async with running(new_cache(source)) as cache:
        readers = await read_all(cache, *[(3 * BLOCK + n, 50) for n in range(40)])
        assert all(reader.right for reader in readers)
    assert source.requests == [blocks(3, 4)]


async def test_neighbouring_readers_share_a_request(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT, slots=1)
    gate = source.gate_at(0)
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        readers = []
        for span in ((0, 1), (2, 4), (4, 7), (6, 9)):  # the first takes the only slot
            readers += start(nursery, cache, blocks(*span))
            await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert all(reader.right for reader in readers)
    assert source.requests == [blocks(0, 1), blocks(2, 9)]


@pytest.mark.parametrize(
    ("bandwidth_delay", "longest"),
    [
        (0, SMALLEST_FETCH),
        (SMALLEST_FETCH // 4, SMALLEST_FETCH),
        (SMALLEST_FETCH, 2 * SMALLEST_FETCH),
        (100 * LARGEST_FETCH, LARGEST_FETCH),
    ],
)
async def test_a_long_read_is_cut_into_requests_that_fit_the_link(
    autojump_clock: MockClock, bandwidth_delay: int, longest: int
) -> None:
    content = noise(2 * longest + 5)
    source = FakeSource(content, piece=256 << 10)
    source.link.bandwidth_delay = bandwidth_delay
    store = MemoryStore(len(content), BLOCK, 2 * len(content))
    async with running(BlockCache("img", source, store, 0)) as cache:
        assert cache.link is source.link
        assert await cache.read(0, len(content)) == content
    assert source.requests == [(0, longest), (longest, longest), (2 * longest, 5)]


async def test_a_reader_is_woken_when_its_blocks_are_there_not_when_the_range_is(
    autojump_clock: MockClock,
) -> None:
    source = FakeSource(CONTENT)
    gate = source.gate_at(5 * BLOCK)
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        (long,) = start(nursery, cache, blocks(0, 10))
        await wait_all_tasks_blocked()
        (early, late) = start(nursery, cache, blocks(1, 4), blocks(6, 7))
        await wait_all_tasks_blocked()
        assert early.right
        assert (long.content, late.content) == (None, None)
        gate.set()
        await wait_all_tasks_blocked()
        assert long.right
        assert late.right
    assert source.requests == [blocks(0, 10)]


@pytest.mark.parametrize("piece", [1, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK, SIZE])
async def test_pieces_of_any_length_make_blocks(autojump_clock: MockClock, piece: int) -> None:
    source = FakeSource(CONTENT, piece=piece)
    async with running(new_cache(source)) as cache:
        offset = (COUNT - 4) * BLOCK
        assert await cache.read(offset, SIZE) == CONTENT[offset:]


# Hints


async def test_a_hint_is_fetched_though_nobody_waits(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT)
    async with running(new_cache(source)) as cache:
        await cache.ensure(10 * BLOCK + 1, 4 * BLOCK, Priority.READAHEAD)
        await wait_all_tasks_blocked()
        assert source.requests == [blocks(10, 15)]
        await cache.ensure(*blocks(10, 15), Priority.READAHEAD)
        await cache.ensure(SIZE, BLOCK, Priority.READAHEAD)
        assert await cache.read(*blocks(11, 13)) == CONTENT[11 * BLOCK : 13 * BLOCK]
        await wait_all_tasks_blocked()
    assert len(source.requests) == 1


async def test_hints_leave_a_lane_to_readers(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT, slots=3)
    hinted = (0, 10, 20, 30)
    gates = [source.gate_at(n * BLOCK) for n in hinted]
    async with running(new_cache(source)) as cache:
        for n in hinted:
            await cache.ensure(*blocks(n, n + 2), Priority.READAHEAD)
        await wait_all_tasks_blocked()
        assert len(source.requests) == 2
        assert await cache.read(*blocks(50, 51)) == CONTENT[50 * BLOCK : 51 * BLOCK]
        for gate in gates:
            gate.set()
        await wait_all_tasks_blocked()
        assert len(source.requests) == 5
    assert source.most_at_once == 3


async def test_a_hint_that_fails_is_dropped(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*gone")
    source = FakeSource(CONTENT)
    source.fail_at(0, NotFound("gone"))
    async with running(new_cache(source)) as cache:
        await cache.ensure(*blocks(0, 2), Priority.READAHEAD)
        await wait_all_tasks_blocked()
        assert await cache.read(*blocks(1, 2)) == CONTENT[BLOCK : 2 * BLOCK]


# Failures


async def test_a_transient_failure_is_retried_where_it_broke_off(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: .*broke.*; retrying")
    source = FakeSource(CONTENT)
    source.fail_at(2 * BLOCK + 500, Unreachable("broke"))
    source.fail_at(2 * BLOCK, Unreachable("broke"))
    async with running(new_cache(source, timeout=60)) as cache:
        readers = await read_all(cache, blocks(0, 4))
        assert readers[0].right
        assert cache.statistics().failures == 2
    assert source.requests == [blocks(0, 4), blocks(2, 4), blocks(2, 4)]


async def test_the_first_retry_is_immediate_and_silent(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT)
    source.fail_at(0, Unreachable("a kept-alive connection was closed"))
    async with running(new_cache(source)) as cache:
        await cache.read(0, 1)
    assert source.times[1] == source.times[0]


async def test_delays_grow_and_the_trouble_is_logged_once(
    autojump_clock: MockClock, expected_log: Announce, caplog: pytest.LogCaptureFixture
) -> None:
    expected_log("WARNING: .*no.*; retrying")
    source = FakeSource(CONTENT)
    source.fail_at(0, *[Unreachable("no")] * 20)
    async with running(new_cache(source)) as cache:
        await cache.read(0, 1)
    delays = [b - a for a, b in zip(source.times, source.times[1:], strict=False)]
    assert delays[0] == 0
    assert all(delay >= 0.05 for delay in delays[1:])
    assert all(5 - 1e-6 <= delay <= 10 + 1e-6 for delay in delays[-5:])
    assert len([r for r in caplog.records if "retrying" in r.getMessage()]) == 1


@pytest.mark.parametrize("other", [Unreachable("broke"), ServerBusy("full", retry_after=1.0)])
async def test_retry_after_is_not_undercut_by_another_failure(
    autojump_clock: MockClock, expected_log: Announce, other: Exception
) -> None:
    expected_log("WARNING: .*retrying")
    source = FakeSource(CONTENT)
    gates = [source.gate_at(0), source.gate_at(20 * BLOCK)]
    source.fail_at(0, ServerBusy("busy", retry_after=100.0))
    source.fail_at(20 * BLOCK, other)
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        gone, _ = start(nursery, cache, blocks(0, 1), blocks(20, 21))
        await wait_all_tasks_blocked()
        gone.scope.cancel()  # so that nothing is to be fetched between the two failures
        for gate in gates:
            gate.set()
            await wait_all_tasks_blocked()
    assert len(source.times) == 3
    assert source.times[2] - source.times[0] >= 100


async def test_a_permanent_failure_reaches_exactly_those_who_wait_for_it(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*gone")
    source = FakeSource(CONTENT)
    gate = source.gate_at(2 * BLOCK)
    error = NotFound("gone")
    source.fail_at(2 * BLOCK, error)
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        readers = []
        for span in ((0, 4), (0, 2), (3, 4), (10, 12)):  # one after another: the first asks for all
            readers += start(nursery, cache, blocks(*span))
            await wait_all_tasks_blocked()
        gate.set()
        await wait_all_tasks_blocked()
        assert [reader.error for reader in readers] == [error, None, error, None]
        assert readers[1].right
        assert readers[3].right
        assert await cache.read(*blocks(0, 4)) == CONTENT[: 4 * BLOCK]  # it may be asked again


async def test_a_fetch_that_dies_of_a_defect_is_retried_and_logged_once(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*unforeseen")
    expected_log("WARNING: .*oops.*please report it; retrying")
    source = FakeSource(CONTENT)
    source.fail_at(0, *[ValueError("oops")] * 4)
    async with running(new_cache(source)) as cache:
        assert await cache.read(0, 10) == CONTENT[:10]
        assert len(source.requests) == 5


async def test_a_defect_that_stays_ends_reads_at_their_deadline_with_its_name(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("unforeseen|ValueError|retrying|no data within")
    source = FakeSource(CONTENT)
    source.fail_at(0, *[ValueError("oops")] * 1000)
    async with running(new_cache(source, timeout=60)) as cache:
        with pytest.raises(ReadTimeout, match=r"img.*oops"):
            await cache.read(0, 1)


# Deadlines


async def test_a_read_ends_at_its_deadline_exactly(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*no data within")
    source = FakeSource(CONTENT)
    source.gate_at(0)
    async with running(new_cache(source, timeout=7)) as cache:
        began = trio.current_time()
        with pytest.raises(ReadTimeout, match="img: no data within 7 seconds"):
            await cache.read(0, 1)
        assert trio.current_time() == began + 7
        assert cache._blocks.plan.quiet


async def test_a_deadline_tells_the_last_failure(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*no data within")
    expected_log("WARNING: .*retrying")
    source = FakeSource(CONTENT)
    source.fail_at(0, *[Unreachable("cannot connect", "check the network")] * 100)
    async with running(new_cache(source, timeout=30)) as cache:
        began = trio.current_time()
        with pytest.raises(ReadTimeout, match="last failure: cannot connect"):
            await cache.read(0, 1)
        assert trio.current_time() == began + 30


async def test_each_reader_has_its_own_deadline(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*no data within")
    source = FakeSource(CONTENT)
    source.gate_at(0)
    async with running(new_cache(source, timeout=10)) as cache, trio.open_nursery() as nursery:
        began = trio.current_time()
        (first,) = start(nursery, cache, (0, 1))
        await trio.sleep(4)
        (second,) = start(nursery, cache, (0, 1))
        await trio.sleep(20)
        assert (first.ended_at, second.ended_at) == (began + 10, began + 14)


async def test_without_a_deadline_a_read_waits_as_long_as_it_takes(
    autojump_clock: MockClock,
) -> None:
    source = FakeSource(CONTENT)
    gate = source.gate_at(0)
    async with running(new_cache(source, timeout=0)) as cache, trio.open_nursery() as nursery:
        (reader,) = start(nursery, cache, (0, 1))
        await trio.sleep(10_000)
        assert math.isnan(reader.ended_at)
        gate.set()
    assert reader.right


async def test_nobody_waits_for_more_than_the_deadline_when_nothing_runs(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*no data within")
    cache = new_cache(FakeSource(CONTENT), timeout=3)
    with pytest.raises(ReadTimeout):
        await cache.read(0, 1)
    await cache.aclose()


# Readers that leave


async def test_a_cancelled_reader_leaves_no_trace(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT)
    gate = source.gate_at(0)
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        gone, stays = start(nursery, cache, blocks(0, 8), blocks(0, 1))
        await wait_all_tasks_blocked()
        gone.scope.cancel()
        await wait_all_tasks_blocked()
        assert not cache._blocks.plan.quiet
        gate.set()
        await wait_all_tasks_blocked()
        assert stays.right
        assert cache._blocks.plan.quiet


async def test_a_failed_request_is_not_repeated_for_one_who_left(
    autojump_clock: MockClock,
) -> None:
    source = FakeSource(CONTENT)
    gate = source.gate_at(0)
    source.fail_at(0, Unreachable("broke"))
    async with running(new_cache(source)) as cache, trio.open_nursery() as nursery:
        (gone,) = start(nursery, cache, blocks(0, 8))
        await wait_all_tasks_blocked()
        gone.scope.cancel()
        gate.set()
        await trio.sleep(100)
    assert len(source.requests) == 1


async def test_lanes_come_back_when_the_cache_is_cancelled(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("ERROR: .*no data within")
    source = FakeSource(CONTENT, slots=2)
    source.gate_at(0)
    source.gate_at(10 * BLOCK)
    async with trio.open_nursery() as nursery:
        async with running(new_cache(source, timeout=1)) as cache:
            start(nursery, cache, blocks(0, 1), blocks(10, 11))
            await wait_all_tasks_blocked()
            assert source.at_once == 2
        assert source.at_once == 0
        with trio.fail_after(1):
            for _ in range(2):
                await source.slot(Priority.DEMAND)


# Blocks that go


async def test_evicted_blocks_are_fetched_again(autojump_clock: MockClock) -> None:
    source = FakeSource(CONTENT)
    async with running(new_cache(source, store=memory(blocks=2))) as cache:
        for block in (0, 1, 2, 0):
            assert await cache.read(block * BLOCK, 10) == CONTENT[block * BLOCK :][:10]
        assert cache.statistics().cached == 2 * BLOCK
    assert source.requests == [blocks(n, n + 1) for n in (0, 1, 2, 0)]


async def test_more_readers_than_memory_holds_all_get_their_bytes(
    autojump_clock: MockClock,
) -> None:
    source = FakeSource(CONTENT)
    source.pause = 0.01  # so that going round in circles ends at the deadline
    async with running(new_cache(source, timeout=10, store=memory(blocks=4))) as cache:
        readers = await read_all(cache, *[blocks(n, n + 2) for n in range(0, 40, 3)])
        assert all(reader.right for reader in readers)


async def test_damaged_blocks_are_fetched_again(
    autojump_clock: MockClock, tmp_path: Path, expected_log: Announce
) -> None:
    expected_log("WARNING: img: 2 cached blocks from block 3 on were damaged")
    source = FakeSource(CONTENT)
    async with running(
        BlockCache("img", source, disk_store(tmp_path, source.identity, BLOCK), 60)
    ) as cache:
        assert await cache.read(0, SIZE) == CONTENT
    spoil(tmp_path / "data", 3, 7)
    source.requests.clear()
    async with running(
        BlockCache("img", source, disk_store(tmp_path, source.identity, BLOCK), 60)
    ) as cache:
        assert await cache.read(0, SIZE) == CONTENT
        assert cache.statistics().damaged == 2
    assert source.requests == [blocks(3, 4), blocks(7, 8)]


async def test_what_was_fetched_outlives_the_cache(
    autojump_clock: MockClock, tmp_path: Path
) -> None:
    source = FakeSource(CONTENT)
    async with running(
        BlockCache("img", source, disk_store(tmp_path, source.identity, BLOCK), 60)
    ) as cache:
        await cache.read(*blocks(4, 9))
    async with running(
        BlockCache("img", source, disk_store(tmp_path, source.identity, BLOCK), 60)
    ) as cache:
        assert await cache.read(*blocks(4, 9)) == CONTENT[4 * BLOCK : 9 * BLOCK]
    assert source.requests == [blocks(4, 9)]


# Counting


async def test_statistics(autojump_clock: MockClock, expected_log: Announce) -> None:
    expected_log("ERROR: .*gone")
    source = FakeSource(CONTENT)
    async with running(new_cache(source)) as cache:
        assert cache.statistics() == Statistics(size=SIZE)
        await cache.read(10, 20)
        await cache.read(10, 20)
        await cache.read(SIZE - 5, 1000)
        assert cache.statistics() == Statistics(
            size=SIZE,
            cached=BLOCK + 100,
            wanted=45,
            hits=1,
            misses=2,
            fetched=BLOCK + 100,
            requests=2,
        )
        source.fail_at(5 * BLOCK + 7, NotFound("gone"))
        with contextlib.suppress(NotFound):
            await cache.read(*blocks(5, 6))
        assert cache.statistics() == Statistics(
            size=SIZE,
            cached=BLOCK + 100,
            wanted=45 + BLOCK,
            hits=1,
            misses=3,
            fetched=BLOCK + 107,
            requests=3,
            failures=1,
        )
        await cache.read(0, SIZE)
        assert cache.statistics().cached == SIZE


# All at once

RANGES = st.tuples(st.integers(0, SIZE + 10), st.integers(0, 12 * BLOCK))


@given(
    reads=st.lists(st.tuples(RANGES, st.floats(0, 3), st.booleans()), min_size=1, max_size=25),
    trouble=st.lists(st.integers(0, SIZE - 1), max_size=8, unique=True),
    slots_and_room=st.sampled_from([(1, 30), (1, COUNT), (2, COUNT), (4, COUNT)]),
    piece=st.sampled_from([700, BLOCK, 20_000]),
)
@settings(max_examples=80, deadline=None)
def test_random_readers_read_the_truth(
    reads: list[tuple[tuple[int, int], float, bool]],
    trouble: list[int],
    slots_and_room: tuple[int, int],
    piece: int,
) -> None:
    """Readers, cancellations, failures and evictions together: every byte is right."""
    slots, room = slots_and_room

    async def scenario() -> None:
        source = FakeSource(CONTENT, piece=piece, slots=slots)
        source.pause = 0.01
        for offset in trouble:
            source.fail_at(offset, Unreachable("broke"))
        cache = new_cache(source, timeout=600, store=memory(room))
        async with running(cache):
            async with trio.open_nursery() as nursery:
                readers = [(Reader(cache, *span), delay, leaves) for span, delay, leaves in reads]
                for reader, delay, leaves in readers:
                    nursery.start_soon(read_later, reader, delay, leaves)
            for reader, _, leaves in readers:
                assert reader.right or (leaves and reader.content is None)
            assert cache._blocks.plan.quiet
        assert source.most_at_once <= slots

    async def read_later(reader: Reader, delay: float, leaves: bool) -> None:
        await trio.sleep(delay)
        if leaves:
            reader.scope.deadline = trio.current_time() + 0.05
        await reader.run()

    trio.run(scenario, clock=MockClock(autojump_threshold=0))


@pytest.fixture(autouse=True)
def _retries_may_be_logged(expected_log: Announce, request: pytest.FixtureRequest) -> None:
    """How many failures meet in the random test is chance, and so is whether one is logged."""
    if request.node.name.startswith("test_random"):
        expected_log("WARNING: .*broke.*; retrying", required=False)

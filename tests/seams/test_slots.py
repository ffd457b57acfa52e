"""Who gets a slot, and when."""

from collections.abc import Sequence

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from lazyfs.core.device import Priority
from lazyfs.sources.slots import HostLimiter, HostSlot

DEMAND, AHEAD = Priority.DEMAND, Priority.READAHEAD


class Askers:
    """Tasks that each take one slot and hold it until told to give it back."""

    def __init__(self, slots: HostLimiter, nursery: trio.Nursery) -> None:
        self._slots = slots
        self._nursery = nursery
        self.scopes: dict[str, trio.CancelScope] = {}
        self.held: dict[str, HostSlot] = {}

    async def ask(self, *names_and_priorities: tuple[str, Priority]) -> None:
        for name, priority in names_and_priorities:
            self.scopes[name] = trio.CancelScope()
            self._nursery.start_soon(self._take, name, priority)
            await wait_all_tasks_blocked()

    async def release(self, *names: str) -> None:
        for name in names:
            self.held.pop(name).release()
        await wait_all_tasks_blocked()

    async def cancel(self, *names: str) -> None:
        for name in names:
            self.scopes[name].cancel()
        await wait_all_tasks_blocked()

    def holding(self) -> str:
        return "".join(self.held)

    async def _take(self, name: str, priority: Priority) -> None:
        with self.scopes[name]:
            self.held[name] = await self._slots.acquire(priority)


def many(names: str, priority: Priority) -> Sequence[tuple[str, Priority]]:
    return [(name, priority) for name in names]


@pytest.mark.parametrize(("count", "for_demand", "for_prefetch"), [(1, 1, 1), (2, 2, 1), (4, 4, 3)])
async def test_prefetch_leaves_one_lane_free(
    count: int, for_demand: int, for_prefetch: int
) -> None:
    for priority, most in ((DEMAND, for_demand), (AHEAD, for_prefetch)):
        async with trio.open_nursery() as nursery:
            askers = Askers(HostLimiter(count), nursery)
            await askers.ask(*many("abcdef", priority))
            assert len(askers.held) == most
            nursery.cancel_scope.cancel()


async def test_the_free_lane_is_for_demand() -> None:
    async with trio.open_nursery() as nursery:
        askers = Askers(HostLimiter(3), nursery)
        await askers.ask(*many("abc", AHEAD), ("D", DEMAND))
        assert askers.holding() == "abD"
        await askers.release("D")
        assert askers.holding() == "ab"  # c still waits: the slot is kept free
        await askers.release("a")
        assert askers.holding() == "bc"
        nursery.cancel_scope.cancel()


async def test_demand_goes_first_and_else_in_order() -> None:
    async with trio.open_nursery() as nursery:
        askers = Askers(HostLimiter(1), nursery)
        await askers.ask(("x", DEMAND), ("a", AHEAD), ("b", AHEAD), ("D", DEMAND), ("E", DEMAND))
        order = ""
        while askers.held:
            order += askers.holding()
            await askers.release(askers.holding())
        assert order == "xDEab"


@pytest.mark.parametrize("priority", [DEMAND, AHEAD])
async def test_one_who_gives_up_waiting_loses_its_turn_and_nothing_else(
    priority: Priority,
) -> None:
    async with trio.open_nursery() as nursery:
        askers = Askers(HostLimiter(1), nursery)
        await askers.ask(*many("abc", priority))
        await askers.cancel("b")
        await askers.release("a")
        assert askers.holding() == "c"


@pytest.mark.parametrize("priority", [DEMAND, AHEAD])
async def test_one_who_is_cancelled_as_its_lane_comes_gives_it_back(priority: Priority) -> None:
    async with trio.open_nursery() as nursery:
        askers = Askers(HostLimiter(1), nursery)
        await askers.ask(*many("abc", priority))
        askers.scopes["b"].cancel()
        askers.held.pop("a").release()
        await wait_all_tasks_blocked()
        assert askers.holding() == "c"


async def test_a_cancelled_task_takes_nothing() -> None:
    slots = HostLimiter(1)
    with trio.CancelScope() as scope:
        scope.cancel()
        await slots.acquire(DEMAND)
    with trio.fail_after(1):
        await slots.acquire(DEMAND)


@given(
    count=st.integers(1, 4),
    steps=st.lists(
        st.tuples(st.sampled_from("dprrc"), st.integers(0, 30)), min_size=1, max_size=40
    ),
)
def test_no_lane_is_lost_or_made(count: int, steps: list[tuple[str, int]]) -> None:
    """Whatever comes, at most ``count`` are held, and in the end all are free again."""

    async def scenario() -> None:
        slots = HostLimiter(count)
        async with trio.open_nursery() as nursery:
            askers = Askers(slots, nursery)
            for number, (step, pick) in enumerate(steps):
                name = chr(0x4E00 + number)
                waiting = [n for n in askers.scopes if n not in askers.held]
                if step in "dp":
                    await askers.ask((name, DEMAND if step == "d" else AHEAD))
                elif step == "r" and askers.held:
                    await askers.release(sorted(askers.held)[pick % len(askers.held)])
                elif step == "c" and waiting:
                    await askers.cancel(waiting[pick % len(waiting)])
                assert len(askers.held) <= count
            nursery.cancel_scope.cancel()
        for slot in askers.held.values():
            slot.release()
        with trio.fail_after(1):
            for _ in range(count):
                await slots.acquire(DEMAND)

    trio.run(scenario, clock=MockClock(autojump_threshold=0))

"""The plan against a model made of sets, and the rules of its docstring after every step."""

from collections.abc import Iterable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.plan import Fetch, Plan, Waiter
from lazyfs.core.device import Priority
from lazyfs.core.ranges import Span

BLOCKS = 24
MAX_FETCH = 5
HINTS = [priority for priority in Priority if priority is not Priority.DEMAND]
ORDERS = [(Priority.DEMAND,), *((hint,) for hint in HINTS), tuple(HINTS), tuple(Priority)]


def numbers(span: Span) -> set[int]:
    return set(range(span.start, span.stop))


@st.composite
def spans(draw: st.DrawFn) -> Span:
    start = draw(st.integers(0, BLOCKS - 1))
    return Span(start, draw(st.integers(start + 1, BLOCKS)))


class PlanAgainstSets(RuleBasedStateMachine):
    """Readers, hints, fetches and losses in any order."""

    def __init__(self) -> None:
        super().__init__()
        self.plan = Plan(Bitmap(BLOCKS))
        self.present: set[int] = set()
        self.waiters: dict[Waiter, set[int]] = {}  # what each still waits for
        self.fetches: list[Fetch] = []
        # Hinted at least once; and hinted when missing, and not under way since.
        self.hinted: dict[Priority, set[int]] = {priority: set() for priority in HINTS}
        self.owed: dict[Priority, set[int]] = {priority: set() for priority in HINTS}

    # Readers

    @rule(blocks=spans())
    def want(self, blocks: Span) -> None:
        missing = numbers(blocks) - self.present
        if not missing:
            return
        waiter = Waiter(self._never)
        self.plan.want(blocks, waiter)
        self.waiters[waiter] = missing

    @precondition(lambda self: self.waiters)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        waiter = data.draw(st.sampled_from(list(self.waiters)))
        self.plan.forget(waiter)
        del self.waiters[waiter]
        self.plan.forget(waiter)  # a reader that was woken forgets once more: no harm

    @rule(blocks=spans(), priority=st.sampled_from(HINTS))
    def hint(self, blocks: Span, priority: Priority) -> None:
        self.plan.hint(blocks, priority)
        self.hinted[priority] |= numbers(blocks)
        self.owed[priority] |= numbers(blocks) - self.present - self.under_way()

    # The source

    @rule(order=st.sampled_from(ORDERS))
    def ask_whether_there_is_work(self, order: tuple[Priority, ...]) -> None:
        has_work = self.plan.has_work(order)
        assert has_work or not any(self.due(priority) for priority in order)
        if order == (Priority.DEMAND,):
            assert has_work == bool(self.due(Priority.DEMAND))

    @rule(order=st.sampled_from(ORDERS), most=st.integers(1, MAX_FETCH))
    def next_fetch(self, order: tuple[Priority, ...], most: int) -> None:
        self.take(order, most)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data(), count=st.integers(1, MAX_FETCH))
    def arrive(self, data: st.DataObject, count: int) -> None:
        fetch = data.draw(st.sampled_from(self.fetches))
        for _ in range(min(count, fetch.blocks.stop - fetch.next)):
            self.arrive_one(fetch)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        fetch = data.draw(st.sampled_from(self.fetches))
        self.plan.end(fetch)
        self.fetches.remove(fetch)

    @precondition(lambda self: self.fetches)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        fetch = data.draw(st.sampled_from(self.fetches))
        rest = set(range(fetch.next, fetch.blocks.stop))
        hit = {w for w, missing in self.waiters.items() if missing & rest}
        failed = self.plan.fail(fetch)
        assert len(failed) == len(set(failed))
        assert set(failed) == hit
        for waiter in failed:
            del self.waiters[waiter]
        self.plan.end(fetch)
        self.fetches.remove(fetch)

    # The store

    @precondition(lambda self: self.present)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        gone = data.draw(st.sets(st.sampled_from(sorted(self.present)), min_size=1))
        self.plan.lost(sorted(gone))
        self.present -= gone

    # What holds after every step

    @invariant()
    def present_is_what_came_and_was_not_lost(self) -> None:
        assert {b for b in range(BLOCKS) if b in self.plan.present} == self.present

    @invariant()
    def a_block_is_in_one_place_at_most(self) -> None:
        under_way = [b for fetch in self.fetches for b in range(fetch.next, fetch.blocks.stop)]
        assert len(under_way) == len(set(under_way))
        assert not set(under_way) & self.present
        # The plan's own book of it, since a stale entry there would block a fetch for ever.
        assert set(self.plan._under_way) == set(under_way)

    @invariant()
    def waiters_wait_for_what_has_not_come(self) -> None:
        assert {w for ws in self.plan._waiters.values() for w in ws} == set(self.waiters)
        assert self.plan.quiet == (not self.waiters)
        for waiter, missing in self.waiters.items():
            assert waiter.missing == missing
            assert missing
            assert not missing & self.present

    @invariant()
    def what_is_waited_for_is_under_way_or_queued(self) -> None:
        # Read from the queue and not asked of has_work, which would tidy it up on the way.
        queued = {b for span in self.plan._queues[Priority.DEMAND] for b in numbers(span)}
        assert self.waited() <= self.under_way() | queued

    def teardown(self) -> None:
        """Whatever happened: once everything under way ended well, nobody waits any more."""
        for _ in range(3 * BLOCKS):
            while self.fetches:
                fetch = self.fetches[0]
                while fetch.next < fetch.blocks.stop:
                    self.arrive_one(fetch)
                self.plan.end(self.fetches.pop(0))
            if not self.plan.has_work(Priority):
                break
            self.take(tuple(Priority), MAX_FETCH)
        assert not self.plan.has_work(Priority)
        assert self.plan.quiet
        assert not self.waiters
        assert not any(self.owed.values())

    # Helpers

    def under_way(self) -> set[int]:
        return {b for fetch in self.fetches for b in range(fetch.next, fetch.blocks.stop)}

    def waited(self) -> set[int]:
        return set().union(*self.waiters.values())

    def due(self, priority: Priority) -> set[int]:
        """The blocks that a request of this priority has to bring."""
        if priority is Priority.DEMAND:
            return self.waited() - self.under_way()
        return self.owed[priority]

    def take(self, order: tuple[Priority, ...], most: int) -> None:
        due = {priority: set(self.due(priority)) for priority in order}
        fetch = self.plan.next_fetch(order, most)
        if fetch is None:
            assert not any(due.values())
            return
        blocks = numbers(fetch.blocks)
        assert fetch.next == fetch.blocks.start
        assert 1 <= len(blocks) <= most
        assert not blocks & (self.present | self.under_way())
        assert fetch.priority in order
        assert not any(due[more_urgent] for more_urgent in order[: order.index(fetch.priority)])
        if fetch.priority is Priority.DEMAND:
            assert blocks <= due[Priority.DEMAND]
        else:
            assert blocks <= self.hinted[fetch.priority]
        if len(blocks) < most and fetch.priority is not Priority.PRELOAD:
            assert fetch.blocks.stop not in due[fetch.priority], "a neighbour was left out"
        for owed in self.owed.values():
            owed -= blocks
        self.fetches.append(fetch)

    def arrive_one(self, fetch: Fetch) -> None:
        block = fetch.next
        expected = {w for w, missing in self.waiters.items() if missing == {block}}
        for missing in self.waiters.values():
            missing.discard(block)
        self.present.add(block)
        done = self.plan.arrived(fetch)
        assert len(done) == len(set(done))
        assert set(done) == expected
        for waiter in done:
            del self.waiters[waiter]

    @staticmethod
    def _never(error: Exception | None) -> None:
        raise AssertionError("the plan hands waiters back; waking them is the shell's")


PlanAgainstSets.TestCase.settings = settings(
    max_examples=250, stateful_step_count=40, deadline=None
)
TestPlanAgainstSets = PlanAgainstSets.TestCase


def new_plan(present: Iterable[int] = ()) -> Plan:
    bitmap = Bitmap(100)
    for block in present:
        bitmap.add(block)
    return Plan(bitmap)


def wanted(plan: Plan, start: int, stop: int) -> Waiter:
    waiter = Waiter(lambda error: None)
    plan.want(Span(start, stop), waiter)
    return waiter


def drained(plan: Plan, most: int = 100) -> list[tuple[int, int]]:
    """Every request that the plan names now, in order, as plain pairs."""
    fetches = []
    while (fetch := plan.next_fetch(Priority, most)) is not None:
        fetches.append(tuple(fetch.blocks))
    return fetches


@pytest.mark.parametrize(
    ("present", "asked", "most", "fetches"),
    [
        ([], [(3, 7)], 100, [(3, 7)]),
        ([5], [(3, 7)], 100, [(3, 5), (6, 7)]),
        ([], [(0, 10)], 4, [(0, 4), (4, 8), (8, 10)]),
        ([], [(3, 7), (3, 7)], 100, [(3, 7)]),
        ([], [(3, 7), (5, 9)], 100, [(3, 9)]),
        ([], [(3, 7), (7, 9)], 100, [(3, 9)]),
        ([], [(3, 7), (8, 9)], 100, [(3, 7), (8, 9)]),
        ([], [(3, 5), (7, 9), (5, 7)], 100, [(3, 9)]),
        ([], [(3, 5), (5, 20)], 4, [(3, 7), (7, 11), (11, 15), (15, 19), (19, 20)]),
        ([], [(98, 100)], 100, [(98, 100)]),
        ([], [(50, 51), (3, 4)], 100, [(50, 51), (3, 4)]),
    ],
)
def test_requests_are_cut_from_what_readers_miss(
    present: list[int],
    asked: list[tuple[int, int]],
    most: int,
    fetches: list[tuple[int, int]],
) -> None:
    plan = new_plan(present)
    for start, stop in asked:
        wanted(plan, start, stop)
    assert drained(plan, most) == fetches


def test_a_reader_that_left_is_not_fetched_for() -> None:
    plan = new_plan()
    gone = wanted(plan, 0, 10)
    wanted(plan, 4, 6)
    plan.forget(gone)
    assert drained(plan) == [(4, 6)]


def test_demand_goes_before_hints_that_came_earlier() -> None:
    plan = new_plan()
    plan.hint(Span(50, 60), Priority.READAHEAD)
    wanted(plan, 0, 2)
    assert drained(plan) == [(0, 2), (50, 60)]


def test_a_hint_for_what_a_reader_has_under_way_is_not_fetched_twice() -> None:
    plan = new_plan()
    wanted(plan, 0, 4)
    assert plan.next_fetch([Priority.DEMAND], 100) is not None
    plan.hint(Span(2, 6), Priority.READAHEAD)
    assert drained(plan) == [(4, 6)]


def test_a_reader_joins_a_hint_under_way_and_gets_it_again_when_that_ends_early() -> None:
    plan = new_plan()
    plan.hint(Span(0, 8), Priority.READAHEAD)
    fetch = plan.next_fetch([Priority.READAHEAD], 100)
    assert fetch is not None
    wanted(plan, 3, 5)
    assert not plan.has_work([Priority.DEMAND])
    plan.arrived(fetch)
    plan.end(fetch)
    again = plan.next_fetch([Priority.DEMAND], 100)
    assert again is not None
    assert again.blocks == (3, 5)
    assert drained(plan) == []


def test_hints_that_adjoin_become_one_request() -> None:
    plan = new_plan()
    for start in range(0, 40, 10):
        plan.hint(Span(start, start + 10), Priority.READAHEAD)
    assert drained(plan) == [(0, 40)]


def test_a_hint_for_sixteen_million_blocks_is_cheap() -> None:
    plan = Plan(Bitmap(1 << 24))
    plan.hint(Span(0, 1 << 24), Priority.READAHEAD)
    assert sum(map(len, plan._queues.values())) == 1
    assert drain_some(plan, 3) == [(0, 16), (16, 32), (32, 48)]
    assert sum(map(len, plan._queues.values())) == 1


def drain_some(plan: Plan, count: int) -> list[tuple[int, int]]:
    fetches = [plan.next_fetch(Priority, 16) for _ in range(count)]
    return [tuple(fetch.blocks) for fetch in fetches if fetch]


def test_evicted_while_another_block_is_awaited() -> None:
    """The waiter is handed back when the rest has come; its shell looks again, and asks again."""
    plan = new_plan(present=[0])
    waiter = wanted(plan, 0, 2)
    plan.lost([0])
    fetch = plan.next_fetch(Priority, 100)
    assert fetch is not None
    assert plan.arrived(fetch) == [waiter]
    assert plan.quiet


def test_preloads_keep_their_order_and_join_where_they_adjoin_in_it() -> None:
    plan = Plan(Bitmap(BLOCKS))
    for span in (Span(8, 9), Span(3, 5), Span(5, 6), Span(1, 2), Span(0, 1)):
        plan.hint(span, Priority.PRELOAD)
    taken = []
    while (fetch := plan.next_fetch([Priority.PRELOAD], 100)) is not None:
        taken.append(fetch.blocks)
    assert taken == [Span(8, 9), Span(3, 6), Span(1, 2), Span(0, 1)]

"""The clock against a model that writes every use down."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache import clock
from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.clock import Clock
from lazyfs.core.ranges import Span

COUNT = 3 * clock.WINDOW + 5
BLOCKS = st.integers(0, COUNT - 1)


def bitmap(*blocks: int) -> Bitmap:
    made = Bitmap(COUNT)
    for block in blocks:
        made.add(block)
    return made


def use(a_clock: Clock, *blocks: int) -> None:
    for block in blocks:
        a_clock.read(Span(block, block + 1))


def test_what_was_not_used_goes_first() -> None:
    present = bitmap(1, 2, 3, 70_000)
    a_clock = Clock(present)
    use(a_clock, 1, 3)
    assert a_clock.choose(2, ()) == [2, 70_000]


def test_what_was_used_goes_when_nothing_else_is_left() -> None:
    a_clock = Clock(bitmap(1, 2))
    use(a_clock, 1, 2)
    assert a_clock.choose(1, ()) == [1]


def test_a_use_spares_a_block_once() -> None:
    present = bitmap(1, 2, 3)
    a_clock = Clock(present)
    use(a_clock, 1, 2, 3)
    (first,) = a_clock.choose(1, ())
    present.discard(first)
    use(a_clock, 2)
    assert a_clock.choose(1, ()) == [3]


def test_the_read_that_a_block_came_in_for_does_not_count() -> None:
    present = bitmap(1, 2, 3)
    a_clock = Clock(present)
    a_clock.came(Span(1, 4))
    use(a_clock, 1, 1, 2, 3)
    assert a_clock.choose(1, ()) == [2]


def test_what_came_in_and_was_not_read_yet_is_spared_once() -> None:
    present = bitmap(1, 2)
    a_clock = Clock(present)
    a_clock.came(Span(1, 2))
    assert a_clock.choose(1, ()) == [2]
    present.discard(2)
    assert a_clock.choose(1, ()) == [1]


def test_held_blocks_stay() -> None:
    a_clock = Clock(bitmap(4, 5))
    assert a_clock.choose(2, {4}) == [5]
    assert a_clock.choose(2, {4, 5}) == []


@given(st.sets(BLOCKS, max_size=40), st.sets(BLOCKS), st.sets(BLOCKS), st.integers(1, 50))
def test_as_many_as_asked_for_of_those_that_may_go(
    present: set[int], used: set[int], held: set[int], count: int
) -> None:
    a_clock = Clock(bitmap(*present))
    use(a_clock, *used)
    chosen = a_clock.choose(count, held)
    may_go = present - held
    assert len(set(chosen)) == len(chosen) == min(count, len(may_go))
    assert set(chosen) <= may_go
    if not set(chosen) <= used:  # one of those that were used only when the others are all gone
        assert len(may_go - used) >= len(set(chosen) - used)
    if set(chosen) & used:
        assert may_go - used <= set(chosen)


@given(st.lists(st.tuples(st.booleans(), BLOCKS), max_size=60))
def test_all_go_in_the_end_and_none_twice(steps: list[tuple[bool, int]]) -> None:
    present = bitmap()
    a_clock = Clock(present)
    model: set[int] = set()
    for add, block in steps:
        if add:
            present.add(block)
            model.add(block)
            use(a_clock, block)
        elif model:
            (gone,) = a_clock.choose(1, ())
            present.discard(gone)
            model.remove(gone)
    assert set(a_clock.choose(COUNT, ())) == model

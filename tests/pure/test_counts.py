"""The flow of bytes, as it is shown to people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.counts import Counts, Flow, Slowest
from lazyfs.cache.state import cells_of
from lazyfs.core.ranges import Span


def test_a_steady_stream_shows_as_what_it_is() -> None:
    flow = Flow()
    for tick in range(200):
        flow.received(tick / 10, 1_000_000)
    assert flow.rate(20.0) == pytest.approx(10_000_000, rel=0.1)


def test_it_fades_when_nothing_comes() -> None:
    flow = Flow()
    flow.received(5.0, 1_000_000)
    at_once = flow.rate(5.0)
    assert at_once > flow.rate(6.0) > flow.rate(10.0) > 0
    assert flow.rate(60.0) < 1


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 20))))
def test_it_is_never_more_than_all_came_at_once(pieces: list[tuple[float, int]]) -> None:
    flow, now = Flow(), 100.0
    for pause, length in pieces:
        now += pause
        flow.received(now, length)
    assert 0 <= flow.rate(now) <= sum(length for _, length in pieces)


def test_the_slowest_reads_of_the_last_minute_are_remembered() -> None:
    slowest = Slowest()
    for number in range(20):
        slowest.note(float(number), number * 4096, 4096, number % 7 / 10)
    found = slowest.lately(20.0)
    assert [read.seconds for read in found] == [0.6, 0.6, 0.5, 0.5, 0.5]
    assert slowest.lately(200.0) == []
    slowest.note(200.0, 0, 1, 0.1)
    assert [read.at for read in slowest.lately(200.0)] == [200.0]


@given(
    st.integers(1, 200),
    st.integers(1, 300),
    st.sets(st.integers(0, 199)),
    st.sets(st.integers(0, 199)),
)
def test_cells_are_the_blocks_that_they_cover(
    blocks: int, count: int, present: set[int], coming: set[int]
) -> None:
    present, coming = ({b for b in found if b < blocks} for found in (present, coming))
    bitmap, counts = Bitmap(blocks), Counts(blocks)
    for block in present:
        bitmap.add(block)
        if block % 2:
            counts.prefetch_arrived(Span(block, block + 1), 1)
    cells = cells_of(count, bitmap, counts, coming)
    assert len(cells) == min(count, blocks)
    lengths = [(n + 1) * blocks // len(cells) - n * blocks // len(cells) for n in range(len(cells))]
    ahead = {block for block in present if block % 2}
    for number, wanted in enumerate((present, ahead, coming)):
        shares = [cell[number] for cell in cells]
        total = sum(share * length for share, length in zip(shares, lengths, strict=True))
        assert total == pytest.approx(len(wanted), abs=0.001 * blocks)
        assert all(0 <= share <= 1 for share in shares)

"""Neighbourhoods of misses: where they lie, and how their width follows what came of them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.ranges import Span
from lazyfs.prefetch.neighbourhood import CREDIT, REGION, SMALLEST, Neighbourhoods

KIB, MIB = 1 << 10, 1 << 20
GRAIN = 32 * KIB
MOST = 512 * KIB
SIZE = 512 * MIB


def widths(found: list[Span]) -> int:
    return sum(span.length for span in found)


def used_up(around: Neighbourhoods, read: float, misses: int = 200) -> int:
    """Bytes fetched for misses at random places, when a share of each neighbourhood is read."""
    dice, fetched = random.Random(1), 0
    for _ in range(misses):
        offset = dice.randrange(SIZE // GRAIN) * GRAIN
        for part in around.missed(Span(offset, offset + 4096), MOST):
            fetched += part.length
            around.read(Span(part.start, part.start + int(read * part.length)))
    return fetched


def test_neighbourhood_lies_mostly_behind_the_miss_and_leaves_out_its_own_blocks() -> None:
    around = Neighbourhoods(SIZE, GRAIN)
    ahead, behind = around.missed(Span(100 * MIB + 5000, 100 * MIB + 9000), MOST)
    assert ahead == Span(100 * MIB + GRAIN, 100 * MIB + GRAIN + 384 * KIB)
    assert behind == Span(100 * MIB - 128 * KIB, 100 * MIB)


def test_neighbourhood_ends_with_the_image() -> None:
    around = Neighbourhoods(MIB + 5, GRAIN)
    assert around.missed(Span(0, 10), MOST) == [Span(GRAIN, GRAIN + 384 * KIB)]
    around = Neighbourhoods(MIB + 5, GRAIN)
    assert around.missed(Span(MIB, MIB + 5), MOST) == [Span(MIB - 128 * KIB, MIB)]


def test_neighbourhoods_that_nobody_reads_cost_a_few_megabytes_once() -> None:
    around = Neighbourhoods(SIZE, GRAIN)
    first = used_up(around, read=0.0)
    assert first < 4 * CREDIT
    later = used_up(around, read=0.0)
    assert later < first / 2
    assert used_up(around, read=0.0, misses=1600) <= 101 * SMALLEST


def test_neighbourhoods_that_are_read_stay_wide() -> None:
    around = Neighbourhoods(SIZE, GRAIN)
    assert used_up(around, read=0.5) > 0.95 * 200 * MOST


def test_neighbourhoods_open_again_when_they_are_read_again() -> None:
    around = Neighbourhoods(SIZE, GRAIN)
    used_up(around, read=0.0, misses=1000)
    used_up(around, read=1.0, misses=1000)
    assert used_up(around, read=1.0) > 0.9 * 200 * MOST


def test_a_region_is_judged_by_itself() -> None:
    """One is read densely, as a squashfs's tables are; of another, nothing but the misses."""
    around = Neighbourhoods(SIZE, GRAIN)
    dense = wide = narrow = 0
    for number in range(300):
        dense = number * 40 * KIB % (REGION - MIB)
        wide = widths(good := around.missed(Span(dense, dense + 4096), MOST))
        for part in good:
            around.read(part)
        place = 10 * REGION + number * 7919 * GRAIN % (REGION - MIB)
        narrow = max(
            narrow if number > 250 else 0, widths(around.missed(Span(place, place + 1), MOST))
        )
    assert wide >= 0.9 * MOST
    assert narrow <= MOST / 2


@pytest.mark.parametrize("most", [0, SMALLEST - 1])
def test_on_a_short_link_nothing_is_fetched_around_a_miss(most: int) -> None:
    around = Neighbourhoods(SIZE, GRAIN)
    assert [around.missed(Span(n * MIB, n * MIB + 1), most) for n in range(100)] == [[]] * 100


@given(
    st.integers(1, 3 * MIB),
    st.sampled_from([4 * KIB, 32 * KIB, MIB]),
    st.lists(st.tuples(st.booleans(), st.integers(0, 3 * MIB), st.integers(0, 2 * MIB))),
    st.integers(0, 2 * MIB),
)
def test_neighbourhoods_are_within_the_image_and_the_window(
    size: int, grain: int, steps: list[tuple[bool, int, int]], most: int
) -> None:
    around = Neighbourhoods(size, grain)
    for missed, start, length in steps:
        span = Span(min(start, size), min(start + length, size))
        if not missed:
            around.read(span)
            continue
        found = around.missed(span, most)
        assert widths(found) <= max(most, SMALLEST if most >= SMALLEST else 0)
        for part in found:
            assert 0 <= part.start < part.stop <= size
            assert part.start >= span.stop or part.stop <= span.start

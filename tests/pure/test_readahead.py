"""From accesses to the ranges worth having."""

import itertools
import random
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.ranges import Span
from lazyfs.prefetch.readahead import (
    FIRST_WINDOW,
    MAX_STREAMS,
    MEMORY,
    SLACK,
    ReadAhead,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30
READ = 128 * KIB
LIMIT = 8 * MIB  # how far ahead of the reader


def noted(size: int, reads: Iterable[tuple[int, int]], limit: int = LIMIT) -> list[Span]:
    """What is asked for, read by read."""
    ahead = ReadAhead(size)
    return [span for offset, length in reads if (span := ahead.note(offset, length, limit))]


def sequence(start: int, count: int, length: int = READ) -> list[tuple[int, int]]:
    return [(start + n * length, length) for n in range(count)]


def assert_ascending(spans: list[Span]) -> None:
    """One stream: each range begins where the last ended or later, so nothing is asked twice."""
    for before, after in itertools.pairwise(spans):
        assert after.start >= before.stop


def test_a_single_read_asks_for_nothing() -> None:
    assert noted(GIB, [(0, READ)]) == []


def test_the_second_read_in_sequence_opens_the_window() -> None:
    assert noted(GIB, sequence(0, 2)) == [Span(2 * READ, 2 * READ + FIRST_WINDOW)]


@pytest.mark.parametrize("length", [4 * KIB, 128 * KIB, MIB, 3 * MIB])
@pytest.mark.parametrize("start", [0, 5 * MIB + 512])
def test_a_sequential_reader_is_kept_ahead_of(start: int, length: int) -> None:
    ahead = ReadAhead(GIB)
    spans: list[Span] = []
    for offset, _ in sequence(start, 300, length):
        if spans and spans[-1].length == LIMIT:
            assert offset + length <= spans[-1].stop, "the reader came upon what nobody asked for"
        span = ahead.note(offset, length, LIMIT)
        if span:
            spans.append(span)
    assert_ascending(spans)
    assert spans[0].start == start + 2 * length
    assert max(span.length for span in spans) <= LIMIT
    if 300 * length > 4 * LIMIT:
        assert spans[-1].stop - (start + 300 * length) >= LIMIT // 2


def test_the_window_doubles_up_to_the_largest() -> None:
    ahead = ReadAhead(GIB)
    reaches = []
    for offset, length in sequence(0, 2000, 64 * KIB):
        span = ahead.note(offset, length, LIMIT)
        if span:
            reaches.append(span.stop - offset - length)
    doubling = []
    window = FIRST_WINDOW
    while window <= LIMIT:
        doubling.append(window)
        window *= 2
    assert reaches[: len(doubling)] == doubling
    assert set(reaches[len(doubling) :]) == {LIMIT}


def test_two_interleaved_readers_each_get_what_they_would_get_alone() -> None:
    first, second = sequence(0, 40), sequence(500 * MIB, 40)
    alone = [set(noted(GIB, reads)) for reads in (first, second)]
    turns = [read for pair in zip(first, second, strict=True) for read in pair]
    together = noted(GIB, turns, 2 * LIMIT)  # which they share
    assert set(together) == alone[0] | alone[1]
    assert len(together) == len(set(together))


def test_as_many_readers_as_there_are_streams() -> None:
    readers = [sequence(n * 50 * MIB, 3) for n in range(MAX_STREAMS)]
    turns = [read for turn in zip(*readers, strict=True) for read in turn]
    assert {span.start // (50 * MIB) for span in noted(GIB, turns)} == set(range(MAX_STREAMS))


def test_one_reader_too_many_forgets_the_one_that_was_idle_longest() -> None:
    ahead = ReadAhead(GIB)
    for n in range(MAX_STREAMS + 1):
        ahead.note(n * 50 * MIB, READ, LIMIT)
    assert ahead.note(READ, READ, LIMIT) is None  # reader 0 begins anew, at the expense of reader 1
    assert ahead.note(2 * 50 * MIB + READ, READ, LIMIT) is not None


def test_random_reads_ask_for_nothing() -> None:
    picks = random.Random(1)
    places = picks.sample(range(0, 1 << 40, 16 * MIB), 500)
    assert noted(1 << 40, [(place, 4 * KIB) for place in places]) == []


@pytest.mark.parametrize("stride", [SLACK + READ + 1, 4 * MIB, 64 * MIB])
def test_reads_with_wide_gaps_ask_for_nothing(stride: int) -> None:
    assert noted(GIB, [(n * stride, READ) for n in range(GIB // stride)]) == []


@pytest.mark.parametrize("stride", [128 * KIB, 512 * KIB, MIB])
@pytest.mark.parametrize("part", [32, 16, 4, 3])
def test_reads_that_leave_out_most_ask_for_nothing(stride: int, part: int) -> None:
    assert noted(GIB, [(n * stride, stride // part) for n in range(500)]) == []


def test_a_reader_that_leaves_out_little_is_kept_ahead_of() -> None:
    spans = noted(GIB, [read for n, read in enumerate(sequence(0, 2000)) if n % 5])
    assert spans[-1].stop > 2000 * READ


def test_a_reader_that_stops_leaving_out_is_sequential_again() -> None:
    strided = [(n * MIB, 4 * KIB) for n in range(100)]
    spans = noted(GIB, [*strided, *sequence(100 * MIB, 200)])
    assert spans
    assert spans[0].start <= 100 * MIB + 2 * MEMORY


def test_streams_in_turn_share_the_limit() -> None:
    readers = [sequence(n * 200 * MIB, 800) for n in range(4)]
    turns = [read for turn in zip(*readers, strict=True) for read in turn]
    reach = 0
    ahead = ReadAhead(GIB)
    for number, (offset, length) in enumerate(turns):
        span = ahead.note(offset, length, LIMIT)
        if span and number > 4 * 10:
            reach = max(reach, span.stop - offset - length)
    assert reach == LIMIT // 4


def test_a_stream_that_has_ended_has_no_share() -> None:
    spans = noted(GIB, [*sequence(500 * MIB, 800), *sequence(0, 800)])
    assert spans[-1].stop - 800 * READ > LIMIT // 2


@pytest.mark.parametrize("length", [4 * KIB, 128 * KIB, MIB])
def test_a_backward_reader_asks_for_nothing(length: int) -> None:
    assert noted(GIB, reversed(sequence(0, 100, length))) == []


@pytest.mark.parametrize("reach", [2, 4, 8])
def test_reads_reordered_within_the_slack_are_one_stream(reach: int) -> None:
    reads = sequence(0, 400)
    picks = random.Random(reach)
    for n in range(0, len(reads), reach):
        group = reads[n : n + reach]
        picks.shuffle(group)
        reads[n : n + reach] = group
    spans = noted(GIB, reads)
    assert_ascending(spans)
    assert spans[-1].stop >= 400 * READ


def test_a_read_twice_asks_for_nothing_more() -> None:
    assert noted(GIB, [(0, READ)] * 20) == []


@pytest.mark.parametrize("size", [1, READ, 2 * READ, 2 * READ + 1, 10 * MIB + 777])
def test_nothing_beyond_the_end(size: int) -> None:
    spans = noted(size, sequence(0, -(-size // READ) + 5))
    assert_ascending(spans)
    assert all(span.length > 0 for span in spans)
    assert all(span.stop <= size for span in spans)
    if size > 2 * READ:
        assert spans[-1].stop == size


@given(
    size=st.integers(1, 64 * MIB),
    steps=st.lists(
        st.tuples(
            st.sampled_from([-4 * MIB, -MIB, -READ, 0, READ, MIB, 4 * MIB]) | st.integers(0, GIB),
            st.integers(1, MIB),
        ),
        max_size=60,
    ),
)
def test_any_reads_ask_only_for_sound_ranges(size: int, steps: list[tuple[int, int]]) -> None:
    ahead = ReadAhead(size)
    position = 0
    for step, length in steps:
        position = max(0, position + step) % size
        span = ahead.note(position, length, LIMIT)
        if span is not None:
            assert position < span.start < span.stop <= size
            assert span.length <= LIMIT

"""Spans against sets of numbers."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.ranges import Span, blocks_of, bytes_of, clamp, merged

NUMBER = st.integers(0, 100)


@pytest.mark.parametrize(
    ("span", "length"), [(Span(3, 7), 4), (Span(3, 3), 0), (Span(7, 3), 0), (Span(0, 1), 1)]
)
def test_length_is_never_negative(span: Span, length: int) -> None:
    assert span.length == length


@given(offset=st.integers(-50, 150), length=st.integers(0, 100), size=NUMBER)
def test_clamp_keeps_what_lies_in_the_file(offset: int, length: int, size: int) -> None:
    span = clamp(offset, length, size)
    assert 0 <= span.start <= span.stop <= size
    if offset >= 0:
        assert set(range(*span)) == set(range(offset, offset + length)) & set(range(size))


@given(start=NUMBER, length=NUMBER, block_size=st.integers(1, 20))
def test_blocks_of_are_those_that_hold_a_byte(start: int, length: int, block_size: int) -> None:
    blocks = blocks_of(Span(start, start + length), block_size)
    assert set(range(*blocks)) == {byte // block_size for byte in range(start, start + length)}


@given(size=st.integers(1, 200), block_size=st.integers(1, 20), data=st.data())
def test_bytes_of_blocks_end_with_the_file(size: int, block_size: int, data: st.DataObject) -> None:
    count = -(-size // block_size)
    start = data.draw(st.integers(0, count - 1))
    stop = data.draw(st.integers(start + 1, count))
    span = bytes_of(Span(start, stop), block_size, size)
    assert set(range(*span)) == {b for b in range(size) if start <= b // block_size < stop}
    assert blocks_of(span, block_size) == (start, stop)


@given(st.lists(st.tuples(st.integers(0, 200), st.integers(-5, 30))), st.integers(0, 10))
def test_merged_spans_are_the_same_bytes_sorted_and_apart(
    pairs: list[tuple[int, int]], gap: int
) -> None:
    spans = [Span(start, start + length) for start, length in pairs]
    runs = merged(spans, gap)
    wanted = {byte for span in spans for byte in range(*span)}
    found = {byte for run in runs for byte in range(*run)}
    assert wanted <= found
    assert gap or wanted == found
    assert all(a.stop + gap < b.start for a, b in pairwise(runs))
    assert all(run.start in wanted and run.stop - 1 in wanted for run in runs)

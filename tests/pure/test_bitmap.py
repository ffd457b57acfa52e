"""The bitmap against a set, and its bytes on disk."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.bitmap import PAGE, Bitmap, padded_bytes, page_without
from lazyfs.core.ranges import Span

BLOCKS_PER_PAGE = 32768


def filled(count: int, blocks: set[int]) -> Bitmap:
    bitmap = Bitmap(count)
    for block in blocks:
        bitmap.add(block)
    return bitmap


@st.composite
def counts_and_blocks(draw: st.DrawFn) -> tuple[int, set[int]]:
    """A number of blocks, mostly near a page's edge, and a set of some of them."""
    count = draw(
        st.one_of(
            st.integers(1, 70),
            st.integers(BLOCKS_PER_PAGE - 9, BLOCKS_PER_PAGE + 9),
            st.integers(3 * BLOCKS_PER_PAGE - 9, 3 * BLOCKS_PER_PAGE + 9),
        )
    )
    edges = st.integers(max(0, count - 20), count - 1)
    return count, draw(st.sets(st.one_of(st.integers(0, count - 1), edges), max_size=40))


@given(
    count=st.integers(1, 100),
    steps=st.lists(st.tuples(st.booleans(), st.integers(0, 99)), max_size=60),
    start=st.integers(0, 100),
    length=st.integers(0, 100),
)
def test_it_is_a_set(count: int, steps: list[tuple[bool, int]], start: int, length: int) -> None:
    bitmap, model = Bitmap(count), set[int]()
    for add, number in steps:
        block = number % count
        (bitmap.add if add else bitmap.discard)(block)
        (model.add if add else model.discard)(block)
        assert bitmap.count == len(model)
    assert {b for b in range(count) if b in bitmap} == model
    start = min(start, count)
    blocks = Span(start, min(start + length, count))
    missing = [b for b in range(*blocks) if b not in model]
    assert list(bitmap.missing(blocks)) == missing
    assert bitmap.covers(blocks) == (not missing)


def test_missing_follows_changes_between_its_steps() -> None:
    bitmap = Bitmap(10)
    seen = []
    for block in bitmap.missing(Span(0, 10)):
        seen.append(block)
        bitmap.add(block + 1)
    assert seen == [0, 2, 4, 6, 8]


@pytest.mark.parametrize(
    ("count", "length"),
    [
        (0, 4096),
        (1, 4096),
        (BLOCKS_PER_PAGE, 4096),
        (BLOCKS_PER_PAGE + 1, 8192),
        (10 * BLOCKS_PER_PAGE, 40960),
    ],
)
def test_the_file_is_padded_to_pages(count: int, length: int) -> None:
    assert padded_bytes(count) == length


@pytest.mark.parametrize(
    ("blocks", "pages"),
    [
        ({0}, {0: b"\x01" + bytes(4095)}),
        ({7}, {0: b"\x80" + bytes(4095)}),
        ({8}, {0: b"\x00\x01" + bytes(4094)}),
        ({0, 1, 2, 9, 16}, {0: b"\x07\x02\x01" + bytes(4093)}),
        (set(range(12)), {0: b"\xff\x0f" + bytes(4094)}),
        ({32767}, {0: bytes(4095) + b"\x80"}),
        ({32768}, {1: b"\x01" + bytes(4095)}),
        ({1, 32770}, {0: b"\x02" + bytes(4095), 1: b"\x04" + bytes(4095)}),
    ],
)
def test_the_layout_on_disk(blocks: set[int], pages: dict[int, bytes]) -> None:
    assert dict(filled(40000, blocks).take_dirty()) == pages


@given(counts_and_blocks())
def test_what_was_saved_is_loaded(case: tuple[int, set[int]]) -> None:
    count, blocks = case
    loaded = Bitmap(count)
    for number, content in filled(count, blocks).take_dirty():
        loaded.load(number, content)
    assert loaded.count == len(blocks)
    assert set(loaded.missing(Span(0, count))) == set(range(count)) - blocks
    assert loaded.take_dirty() == []


@pytest.mark.parametrize("count", [1, 5, 8, 32767, 32768, 32769, 40000])
def test_bits_beyond_the_end_are_dropped(count: int) -> None:
    bitmap = Bitmap(count)
    for page in range(padded_bytes(count) // PAGE):
        bitmap.load(page, b"\xff" * PAGE)
        bitmap.load(page, b"\xff" * PAGE)  # a second time changes nothing
    assert bitmap.count == count
    assert bitmap.covers(Span(0, count))
    bitmap.discard(count - 1)
    bitmap.add(count - 1)
    (saved,) = bitmap.take_dirty()
    assert int.from_bytes(saved[1], "little").bit_length() == (count - 1) % BLOCKS_PER_PAGE + 1


def test_only_changed_pages_are_dirty_and_only_once() -> None:
    bitmap = Bitmap(3 * BLOCKS_PER_PAGE)
    bitmap.discard(0)
    assert bitmap.take_dirty() == []
    bitmap.add(2 * BLOCKS_PER_PAGE)
    bitmap.add(5)
    bitmap.add(6)
    pages = bitmap.take_dirty()
    assert [number for number, _ in pages] == [0, 2]
    assert bitmap.take_dirty() == []
    bitmap.add(5)
    assert bitmap.take_dirty() == []
    bitmap.discard(5)
    assert bitmap.take_dirty() == [(0, b"\x40" + bytes(4095))]


def test_pages_that_could_not_be_saved_come_again_as_they_are_then() -> None:
    bitmap = filled(100, {0})
    pages = bitmap.take_dirty()
    bitmap.add(1)
    bitmap.mark_dirty(pages)
    assert bitmap.take_dirty() == [(0, b"\x03" + bytes(4095))]


@given(
    st.sets(st.integers(0, 99_999)),
    st.sets(st.integers(0, 99_999)),
    st.integers(0, 99_999),
    st.integers(0, 100_000),
)
def test_difference_and_clear(ours: set[int], theirs: set[int], start: int, length: int) -> None:
    one, other = Bitmap(100_000), Bitmap(100_000)
    for block in ours:
        one.add(block)
    for block in theirs:
        other.add(block)
    one.take_dirty()
    span = Span(start, min(start + length, 100_000))
    inside = {block for block in ours if span.start <= block < span.stop}
    assert list(one.difference((other,), span)) == sorted(inside - theirs)
    one.clear(span)
    assert list(one.within(Span(0, 100_000))) == sorted(ours - inside)
    assert one.count == len(ours - inside)
    changed = {block // 32768 for block in inside}
    assert changed <= {number for number, _ in one.take_dirty()}


@given(st.sets(st.integers(0, 99_999), max_size=50), st.sets(st.integers(0, 99_999), max_size=50))
def test_a_page_is_saved_without_some_blocks(present: set[int], elsewhere: set[int]) -> None:
    bitmap, saved = Bitmap(100_000), Bitmap(100_000)
    for block in present:
        bitmap.add(block)
    for number, content in bitmap.take_dirty():
        saved.load(number, page_without(number, content, elsewhere))
    assert list(saved.within(Span(0, 100_000))) == sorted(present - elsewhere)


def test_a_touched_block_is_saved_again() -> None:
    bitmap = Bitmap(100_000)
    bitmap.touch(40_000)
    assert [number for number, _ in bitmap.take_dirty()] == [1]

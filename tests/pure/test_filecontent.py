"""The content of a file in pieces, against the same bytes in one."""

from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.device import Priority
from lazyfs.formats.filecontent import STEP, Content
from lazyfs.formats.tree import HOLE, Extent
from lazyfs.testing.memory import MemoryDevice

IMAGE = bytes(n * 7 % 251 for n in range(2000))

extents = st.lists(
    st.builds(
        Extent,
        st.one_of(st.just(HOLE), st.integers(0, len(IMAGE) - 60)),
        st.integers(0, 60),
    ),
    max_size=8,
)


class Memory(MemoryDevice):
    """A Device that holds ``content``, and writes down what came, in order."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.reads: list[Extent] = []
        self.hints: list[tuple[Extent, Priority]] = []

    async def read(self, offset: int, length: int) -> bytes:
        self.reads.append(Extent(offset, length))
        return await super().read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        self.hints.append((Extent(offset, length), priority))


def joined(where: list[Extent], image: bytes = IMAGE) -> bytes:
    """The file, in the plainest way."""
    parts = (bytes(n) if at == HOLE else image[at : at + n] for at, n in where)
    return b"".join(parts)


@given(extents, st.integers(0, 600), st.integers(0, 600))
async def test_any_range_reads_as_a_slice_does(
    where: list[Extent], offset: int, length: int
) -> None:
    content = Content(Memory(IMAGE), where)
    assert content.size == sum(extent.length for extent in where)
    assert await content.read(offset, length) == joined(where)[offset : offset + length]


@given(extents, st.integers(0, 600), st.integers(0, 600))
def test_pieces_are_the_range_and_keep_to_the_extents(
    where: list[Extent], offset: int, length: int
) -> None:
    found = list(Content(Memory(IMAGE), where).pieces(offset, length))
    assert joined(found) == joined(where)[offset : offset + length]
    ends = set(accumulate(extent.length for extent in where))
    reached = list(accumulate((piece.length for piece in found), initial=offset))
    assert all(end in ends for end in reached[1:-1])


@given(extents)
async def test_the_whole_is_all_of_it_in_order(where: list[Extent]) -> None:
    device = Memory(IMAGE)
    pieces = [piece async for piece in Content(device, where).whole()]
    assert b"".join(pieces) == joined(where)


async def test_the_whole_comes_in_steps() -> None:
    image = bytes(3 * STEP)
    device = Memory(image)
    where = [Extent(100, STEP), Extent(2 * STEP, STEP // 2)]
    sizes = [len(piece) async for piece in Content(device, where).whole()]
    assert sizes == [STEP, STEP // 2]


@pytest.mark.parametrize("length", [1, STEP, 5 * STEP + 1])
async def test_holes_read_as_zeros_and_nothing_is_asked_of_the_image(length: int) -> None:
    device = Memory(b"")
    pieces = [piece async for piece in Content(device, [Extent(HOLE, length)]).whole()]
    assert b"".join(pieces) == bytes(length)
    assert not device.reads
    assert not device.hints


async def test_an_empty_file_is_empty() -> None:
    content = Content(Memory(IMAGE), [])
    assert (content.size, await content.read(0, 100)) == (0, b"")
    assert [piece async for piece in content.whole()] == []

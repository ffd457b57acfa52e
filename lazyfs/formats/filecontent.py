"""Reading the content of files in an ISO image, directly from their extents."""

from bisect import bisect_right
from collections.abc import AsyncGenerator, Iterator, Sequence
from itertools import accumulate

from lazyfs.core.device import Device, Priority
from lazyfs.core.ranges import Span, clamp
from lazyfs.formats.tree import HOLE, Extent

STEP = 1 << 20  # bytes that ``whole`` yields at a time


class Content:
    """A file whose content is in ``extents`` of the image ``device``."""

    def __init__(self, device: Device, extents: Sequence[Extent]) -> None:
        self._device = device
        self._extents = extents
        self._ends = list(accumulate(extent.length for extent in extents))  # in the file
        self.size = self._ends[-1] if self._ends else 0

    async def read(self, offset: int, length: int) -> bytes:
        """Read at ``offset`` of the file; fewer bytes only at its end. Raises a LazyfsError."""
        pieces = [await self._read(piece) for piece in self.pieces(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    async def whole(self) -> AsyncGenerator[bytes, None]:
        """The whole content, in order. All of its extents are hinted first."""
        for extent in self._extents:
            if extent.offset != HOLE:
                await self._device.ensure(extent.offset, extent.length, Priority.READAHEAD)
        for offset in range(0, self.size, STEP):
            yield await self.read(offset, STEP)

    def pieces(self, offset: int, length: int) -> Iterator[Extent]:
        """The extents of these bytes of the file."""
        wanted = clamp(offset, length, self.size)
        position = wanted.start
        number = bisect_right(self._ends, position)
        while position < wanted.stop:
            extent, end = self._extents[number], self._ends[number]
            skipped = position - (end - extent.length)
            part = Span(position, min(end, wanted.stop))
            start = HOLE if extent.offset == HOLE else extent.offset + skipped
            yield Extent(start, part.length)
            position, number = part.stop, number + 1

    async def _read(self, piece: Extent) -> bytes:
        if piece.offset == HOLE:
            return bytes(piece.length)
        return await self._device.read(piece.offset, piece.length)

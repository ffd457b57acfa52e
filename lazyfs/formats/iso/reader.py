"""Reading an image in few and large pieces.

A tree is read level by level: all directories of a level are known before the first of them is
read. So their bytes are gathered in one step, adjacent ones in one read, and then parsed from
memory. A read may cost a round trip to a server, whatever its length.

The amount to gather is limited. No two structures of a valid image share bytes, so together they
are no larger than the image, and no part is read more than twice: an image that needs more contains
a loop. For large images there are limits that no valid one comes near.
"""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from typing import BinaryIO, TypeVar

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span, merged

MAX_TOTAL = 256 << 20  # bytes to gather from one image
MAX_SPAN = 64 << 20  # bytes in one structure: a directory of a million entries
BATCH = 4 << 20  # bytes to gather at a time, usually: they are held in memory
CHUNK = 8192  # directory entries to process together: they are larger in memory

T = TypeVar("T")

# Gaps (bytes) between two pieces that are read along, which is faster than two requests: they take
# 5 ms at 200 Mbit/s. If that would read much more than BATCH, the small gap is used: about a block
# of the cache, which is fetched as a whole.
_GAP, _SMALL_GAP = 128 << 10, 32 << 10


class Reader:
    """The structures of one image. ``file`` is used by one thread at a time."""

    def __init__(self, file: BinaryIO) -> None:
        """Raises OSError if ``file`` cannot be read."""
        self._file = file
        self.size = file.seek(0, 2)
        self._left = min(2 * self.size, MAX_TOTAL)
        self._starts: list[int] = []
        self._pieces: list[bytes] = []

    def head(self, length: int) -> bytes:
        """The image's first bytes, which do not count towards the limit."""
        return self._read(Span(0, min(length, self.size)))

    def gather(self, spans: Iterable[Span]) -> None:
        """Read these spans, replacing those gathered before. Raises ImageError or OSError."""
        wanted = [Span(max(0, span.start), min(span.stop, self.size)) for span in spans]
        self._left -= sum(span.length for span in wanted)
        if self._left < 0 or any(span.length > MAX_SPAN for span in wanted):
            raise ImageError("the image's directories are larger than they can sensibly be")
        wide = merged(wanted, _GAP)
        if sum(span.length for span in wide) > 2 * BATCH:
            wide = merged(wanted, _SMALL_GAP)
        self._starts = [span.start for span in wide]
        self._pieces = [self._read(span) for span in wide]

    def bytes_at(self, span: Span) -> bytes:
        """Gathered bytes; fewer at the end of the image."""
        number = bisect_right(self._starts, span.start) - 1
        if number < 0:
            return b""
        start = span.start - self._starts[number]
        return self._pieces[number][start : start + span.length]

    def _read(self, span: Span) -> bytes:
        self._file.seek(span.start)
        data = self._file.read(span.length)
        while len(data) < span.length:
            more = self._file.read(span.length - len(data))
            if not more:
                raise ImageError("the image ends before the place where its size says it does")
            data += more
        return data


def batches(items: Iterable[T], length: Callable[[T], int]) -> Iterator[list[T]]:
    """``items`` in order, in lots of up to BATCH bytes, or of a single longer item."""
    lot: list[T] = []
    total = 0
    for item in items:
        if lot and total + length(item) > BATCH:
            yield lot
            lot, total = [], 0
        lot.append(item)
        total += length(item)
    if lot:
        yield lot


def chunks(items: Iterable[T]) -> Iterator[list[T]]:
    """``items`` in order, in lots of CHUNK or fewer."""
    waiting = iter(items)
    while lot := list(islice(waiting, CHUNK)):
        yield lot

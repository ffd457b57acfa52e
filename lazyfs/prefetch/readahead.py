"""Sequential read-ahead: from accesses to the ranges worth having. Pure.

A stream is a reader that goes forward through the image. Its window opens with the second read in
sequence, doubles each time the reader has used half of it, and dies with the stream. Several
streams are followed at once; the one that was used longest ago makes room for a new one. Reads come
out of order within a stream (the kernel keeps two in flight), so "next" has some slack.

A reader that leaves out most of what it passes is no sequential one, and opens no window. But where
what it leaves out costs less to fetch than another round trip, that much is fetched along.

How far ahead may be read is a property of the link, so streams that take turns share it.
"""

from lazyfs.core.ranges import Span

FIRST_WINDOW = 128 << 10  # bytes
SLACK = 1 << 20  # the kernel's largest read: how far out of order a read may come
MAX_STREAMS = 16
DENSE = 0.5  # the part of what a stream has lately passed that it must have read
MEMORY = 4 * SLACK  # bytes: how long ago "lately" is
RECENT = 64  # reads of the image: a stream that none of them belonged to has no share of the limit


class _Stream:
    __slots__ = ("ahead", "gap", "passed", "position", "read", "used_at", "window")

    def __init__(self, offset: int, length: int) -> None:
        self.position = offset + length  # where the reader is: the end of its furthest read
        self.ahead = self.position  # up to where data were asked for
        self.window = 0
        self.used_at = 0  # the number of its last read
        self.passed = self.read = float(length)  # bytes, of late
        self.gap = 0.0  # bytes left out between two reads, on average, of late

    @property
    def dense(self) -> bool:
        return self.read >= DENSE * self.passed

    def continues_at(self, offset: int) -> bool:
        return abs(offset - self.position) <= SLACK

    def move(self, offset: int, length: int) -> bool:
        """Take note of a read; returns whether it brought the reader forward."""
        forward = max(0, offset + length - self.position)
        if forward:
            self.gap += (max(0, offset - self.position) - self.gap) / 4
        self.position += forward
        self.ahead = max(self.ahead, self.position)
        self.passed += forward
        self.read = min(self.read + length, self.passed)
        if self.passed > MEMORY:
            self.passed, self.read = self.passed / 2, self.read / 2
        return forward > 0


class ReadAhead:
    """The streams of one image of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams: list[_Stream] = []  # the most recently used last
        self._reads = 0

    def note(self, offset: int, length: int, limit: int, cheap: int = 0) -> Span | None:
        """A read happened; returns the bytes to have next, if any are not asked for already.

        ``limit``: how far ahead of all its readers, in bytes. ``cheap``: bytes that take less time
        to fetch than a round trip.
        """
        self._reads += 1
        stream = self._find(offset)
        if stream is None:
            self._streams.append(_Stream(offset, length))
            del self._streams[:-MAX_STREAMS]
            return None
        self._streams.remove(stream)
        self._streams.append(stream)
        stream.used_at = self._reads
        if not stream.move(offset, length):
            return None
        return self._widen(stream, limit // max(1, self._active()), cheap)

    def _find(self, offset: int) -> _Stream | None:
        return next((s for s in reversed(self._streams) if s.continues_at(offset)), None)

    def _active(self) -> int:
        """How many streams are read ahead of at present."""
        since = self._reads - RECENT
        return sum(1 for stream in self._streams if stream.window and stream.used_at > since)

    def _widen(self, stream: _Stream, limit: int, cheap: int) -> Span | None:
        """Open the window further, once half of it is used."""
        if not stream.dense:
            stream.window = min(cheap, limit) if stream.gap <= cheap else 0
        if stream.ahead - stream.position > stream.window // 2:
            return None
        if stream.dense:
            stream.window = min(max(FIRST_WINDOW, 2 * stream.window), limit)
        start, stop = stream.ahead, min(stream.position + stream.window, self._size)
        if stop <= start:
            return None
        stream.ahead = stop
        return Span(start, stop)

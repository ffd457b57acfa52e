"""Sequential read-ahead: from accesses to the ranges worth prefetching. Pure.

A stream is a reader that goes forward through the image. Its window opens with the second
sequential read, doubles each time the reader has used half of it, and ends with the stream. Several
streams are followed at once; a new one replaces the least recently used. Reads arrive out of order
within a stream (the kernel keeps two in flight), so "next" has some slack.

A reader that skips most of the bytes it passes is not sequential, and opens no window. But if its
gaps cost less to fetch than another round trip, it gets a window of that many bytes.

The read-ahead limit is a property of the link, so concurrent streams share it.
"""

from lazyfs.core.ranges import Span

FIRST_WINDOW = 128 << 10  # bytes
SLACK = 1 << 20  # bytes: how far out of order a read may come; the kernel's largest read
MAX_STREAMS = 16
DENSE = 0.5  # the share of recently passed bytes that a sequential stream must have read
MEMORY = 4 * SLACK  # bytes passed that count as recent
RECENT = 64  # reads of the image: a stream without one of them has no share of the limit


class _Stream:
    __slots__ = ("ahead", "gap", "passed", "position", "read", "used_at", "window")

    def __init__(self, offset: int, length: int) -> None:
        self.position = offset + length  # the end of the reader's furthest read
        self.ahead = self.position  # the end of the requested data
        self.window = 0
        self.used_at = 0  # the number of its last read
        self.passed = self.read = float(length)  # bytes, recently
        self.gap = 0.0  # bytes skipped between two reads, recent average

    @property
    def dense(self) -> bool:
        return self.read >= DENSE * self.passed

    def continues_at(self, offset: int) -> bool:
        return abs(offset - self.position) <= SLACK

    def move(self, offset: int, length: int) -> bool:
        """Note a read; returns whether it moved the reader forward."""
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
        """Note a read; returns the range to prefetch, if any is not requested yet.

        ``limit``: bytes ahead of all readers together.
        ``cheap``: bytes that take less time to fetch than a round trip.
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
        """The number of streams that have a window and a recent read."""
        since = self._reads - RECENT
        return sum(1 for stream in self._streams if stream.window and stream.used_at > since)

    def _widen(self, stream: _Stream, limit: int, cheap: int) -> Span | None:
        """Widen the window once half of it is used; returns the range to prefetch."""
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

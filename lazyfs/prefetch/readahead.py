"""Sequential read-ahead: from accesses to the ranges worth having. Pure.

A stream is a reader that goes forward through the image. Its window opens with the second read in
sequence, doubles each time the reader has used half of it, and dies with the stream. Several
streams are followed at once; the one that was used longest ago makes room for a new one. Reads come
out of order within a stream (the kernel keeps two in flight), so "next" has some slack.
"""

from lazyfs.ranges import Span

FIRST_WINDOW = 128 << 10  # bytes
SLACK = 1 << 20  # the kernel's largest read: how far out of order a read may come
MAX_STREAMS = 16


class _Stream:
    __slots__ = ("ahead", "position", "window")

    def __init__(self, position: int) -> None:
        self.position = position  # where the reader is: the end of its furthest read
        self.ahead = position  # up to where data were asked for
        self.window = 0

    def continues_at(self, offset: int) -> bool:
        return self.position - SLACK <= offset <= max(self.position + SLACK, self.ahead)


class ReadAhead:
    """The streams of one image of ``size`` bytes."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._streams: list[_Stream] = []  # the most recently used last

    def note(self, offset: int, length: int, limit: int) -> Span | None:
        """A read happened; returns the bytes to have next, if any are not asked for already.

        ``limit``: how far ahead of the reader, in bytes.
        """
        stream = self._find(offset)
        if stream is None:
            self._streams.append(_Stream(offset + length))
            del self._streams[:-MAX_STREAMS]
            return None
        self._streams.remove(stream)
        self._streams.append(stream)
        return self._advance(stream, offset + length, limit)

    def _find(self, offset: int) -> _Stream | None:
        return next((s for s in reversed(self._streams) if s.continues_at(offset)), None)

    def _advance(self, stream: _Stream, position: int, limit: int) -> Span | None:
        if position <= stream.position:
            return None
        stream.position = position
        stream.ahead = max(stream.ahead, position)
        if stream.ahead - position > stream.window // 2:
            return None
        stream.window = min(max(FIRST_WINDOW, 2 * stream.window), limit)
        start, stop = stream.ahead, min(position + stream.window, self._size)
        if stop <= start:
            return None
        stream.ahead = stop
        return Span(start, stop)

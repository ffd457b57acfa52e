"""The neighbourhood of a miss: fetched along, as far as that has been worth it lately. Pure.

Programs, directories and files that are used together lie together. A read that has to wait for the
server costs a round trip whatever its length, and most of the link is idle meanwhile; so a miss
brings its neighbourhood, as a hint of lower priority. How much adapts to what came of earlier ones:
the share of their bytes that was read since, for the region (16 MiB) and, where that says too
little, for the image. Much of it read: the whole window. Hardly anything: none, but for one miss in
sixteen, so that the window opens again when the access pattern changes.

The counts forget by halves, and begin with a modest credit: random reads use that up with some
megabytes, once, and program starts profit at once.

Tried on the reads of six program starts out of a squashfs (20 ms, 200 Mbit/s; simulated): a fixed
window of 512 KiB, 6.9 s and 98 MB; of 1 MiB, 5.9 s and 115 MB; aligned chunks of 1 MiB, 6.6 s and
117 MB; none, 19.9 s and 68 MB. Judging each neighbourhood by itself, after a fixed number of
misses, closed windows that were used later.
"""

from lazyfs.core.ranges import Span

SMALLEST = 64 << 10  # bytes: a smaller window is not worth a request
REGION = 16 << 20  # bytes
MOST_REGIONS = 4096
MEMORY = 16 << 20  # bytes of neighbourhoods after which the counts are halved
CREDIT = 2 << 20  # bytes: what is assumed to have been fetched at the beginning
CREDITED = 0.25  # the share of it that is assumed to have been read
REGION_CREDIT = 1 << 20  # bytes: how much a region has to say before it counts as much as the image
FULL, NONE = 0.20, 0.06  # shares read at which the window is the whole, and nothing
PROBE_EVERY = 16  # misses
BEHIND = 4  # a quarter of the window lies in front of the miss
MOST_UNREAD = 1 << 16  # grains that are remembered; the oldest count as not read


class _Counts:
    """Bytes that were fetched as neighbourhoods, and those of them that were read since."""

    __slots__ = ("fetched", "read")

    def __init__(self, fetched: float = 0.0, read: float = 0.0) -> None:
        self.fetched = fetched
        self.read = read

    def fetch(self, length: int) -> None:
        self.fetched += length
        if self.fetched > MEMORY:
            self.fetched, self.read = self.fetched / 2, self.read / 2


class Neighbourhoods:
    """The neighbourhoods of one image of ``size`` bytes."""

    def __init__(self, size: int, grain: int) -> None:
        """``grain``: bytes that are fetched together; neighbourhoods consist of whole ones."""
        self._size = size
        self._grain = grain
        self._image = _Counts(CREDIT, CREDITED * CREDIT)
        self._regions: dict[int, _Counts] = {}
        self._unread: dict[int, None] = {}  # grains of neighbourhoods, the oldest first
        self._misses = 0

    def read(self, span: Span) -> None:
        """Note a read, whether it had to wait or not."""
        if not self._unread or not span.length:
            return
        for grain in range(span.start // self._grain, -(-span.stop // self._grain)):
            if grain in self._unread:
                del self._unread[grain]
                self._image.read += self._grain
                self._region(grain * self._grain).read += self._grain

    def missed(self, span: Span, most: int) -> list[Span]:
        """Note a read that has to wait; returns what to fetch around it, the part behind it first.

        ``most``: bytes of a neighbourhood at its best.
        """
        self._misses += 1
        window = int(most * self._worth(span.start))
        if window < SMALLEST:
            if self._misses % PROBE_EVERY or most < SMALLEST:
                return []
            window = SMALLEST
        behind = self._floor(window // BEHIND)
        start, stop = self._whole(span)
        found = [
            Span(stop, min(self._size, stop + self._floor(window - behind))),
            Span(max(0, start - behind), start),
        ]
        self._note(found, span.start)
        return [part for part in found if part.length]

    def _worth(self, offset: int) -> float:
        """How much of the window is worth fetching here, from 0 to 1."""
        region = self._region(offset)
        share = self._image.read / self._image.fetched
        share = (region.read + share * REGION_CREDIT) / (region.fetched + REGION_CREDIT)
        return min(1.0, max(0.0, (share - NONE) / (FULL - NONE)))

    def _whole(self, span: Span) -> Span:
        """The span, widened to whole grains: its own are fetched for the read itself."""
        grain = self._grain
        return Span(
            span.start - span.start % grain, min(self._size, -(-span.stop // grain) * grain)
        )

    def _floor(self, length: int) -> int:
        return length - length % self._grain

    def _region(self, offset: int) -> _Counts:
        if len(self._regions) > MOST_REGIONS:
            self._regions.clear()
        return self._regions.setdefault(offset // REGION, _Counts())

    def _note(self, parts: list[Span], offset: int) -> None:
        """Count what is fetched, and remember it until it is read."""
        grain = self._grain
        for part in parts:
            for number in range(-(-part.start // grain), part.stop // grain):
                if number not in self._unread:
                    self._unread[number] = None
                    self._image.fetch(grain)
                    self._region(offset).fetch(grain)
        while len(self._unread) > MOST_UNREAD:
            del self._unread[next(iter(self._unread))]

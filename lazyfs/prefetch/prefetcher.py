"""A Device that watches reads and passes hints for expected ones to the Device below."""

import trio

from lazyfs.core.device import Device, Priority
from lazyfs.core.options import Prefetch, ReadAheadLimit
from lazyfs.core.ranges import clamp
from lazyfs.core.view import DeviceView
from lazyfs.prefetch.covered import Covered
from lazyfs.prefetch.neighbourhood import Neighbourhoods
from lazyfs.prefetch.readahead import ReadAhead

_AROUND = 1.5  # bandwidth-delay products around a miss
_EAGER = 4.0  # the same, if the user wants more
_MOST_AROUND = 4 << 20  # bytes


class Prefetcher(DeviceView):
    """Read-ahead, and neighbourhoods of misses, in front of another Device.

    Reads of preloaded ranges trigger neither: the ranges that follow are preloaded too.
    """

    def __init__(
        self, below: Device, limit: ReadAheadLimit, prefetch: Prefetch, block_size: int
    ) -> None:
        """``block_size``: bytes that are fetched together for any byte of them."""
        super().__init__(below)
        size = below.identity.size
        self._limit = limit
        self._prefetch = prefetch
        self._readahead = ReadAhead(size)
        self._neighbourhoods = Neighbourhoods(size, block_size)
        self._preloaded = Covered()
        self.used = trio.Event()  # set by the first read

    async def read(self, offset: int, length: int) -> bytes:
        self.used.set()
        if self._prefetch is not Prefetch.NONE:
            await self._look_ahead(offset, length)
        return await super().read(offset, length)

    async def _look_ahead(self, offset: int, length: int) -> None:
        """Pass hints for what this read makes likely."""
        link, span = self.link, clamp(offset, length, self.identity.size)
        preloaded = self._preloaded.covers(span)
        limit = 0 if preloaded else self._limit.bytes_at(link.rate, link.bandwidth_delay)
        ahead = self._readahead.note(offset, length, limit, link.bandwidth_delay)
        if ahead is not None:
            await super().ensure(ahead.start, ahead.length, Priority.READAHEAD)
        self._neighbourhoods.read(span)
        wide = self._prefetch in (Prefetch.AUTO, Prefetch.EAGER)
        if wide and ahead is None and not preloaded and not self.ready(offset, length):
            times = _EAGER if self._prefetch is Prefetch.EAGER else _AROUND
            most = min(_MOST_AROUND, int(times * link.bandwidth_delay))
            for part in self._neighbourhoods.missed(span, most):
                await super().ensure(part.start, part.length, Priority.READAHEAD)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        if priority is Priority.PRELOAD:
            self._preloaded.add(clamp(offset, length, self.identity.size))
        await super().ensure(offset, length, priority)

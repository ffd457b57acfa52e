"""A Device that watches reads and passes hints for expected ones to the Device below."""

from lazyfs.core.device import Device, Priority
from lazyfs.core.options import ReadAheadLimit
from lazyfs.core.ranges import clamp
from lazyfs.core.view import DeviceView
from lazyfs.prefetch.covered import Covered
from lazyfs.prefetch.readahead import ReadAhead


class Prefetcher(DeviceView):
    """Read-ahead in front of another Device.

    Reads of preloaded ranges trigger no read-ahead: the ranges that follow are preloaded too.
    """

    def __init__(self, below: Device, limit: ReadAheadLimit) -> None:
        super().__init__(below)
        self._limit = limit
        self._readahead = ReadAhead(below.identity.size)
        self._preloaded = Covered()

    async def read(self, offset: int, length: int) -> bytes:
        link = self.link
        told = self._preloaded.covers(clamp(offset, length, self.identity.size))
        limit = 0 if told else self._limit.bytes_at(link.rate)
        ahead = self._readahead.note(offset, length, limit, link.bandwidth_delay)
        if ahead is not None:
            await super().ensure(ahead.start, ahead.length, Priority.READAHEAD)
        return await super().read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        if priority is Priority.PRELOAD:
            self._preloaded.add(clamp(offset, length, self.identity.size))
        await super().ensure(offset, length, priority)

"""A Device that watches reads and sends hints down for those that will follow."""

from lazyfs.device import Device, Identity, Link, Priority, Statistics
from lazyfs.options import ReadAheadLimit
from lazyfs.prefetch.readahead import ReadAhead


class Prefetcher:
    """Read-ahead in front of another Device."""

    def __init__(self, below: Device, limit: ReadAheadLimit) -> None:
        self._below = below
        self._limit = limit
        self._readahead = ReadAhead(below.identity.size)

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        link = self._below.link
        limit = self._limit.bytes_at(link.rate)
        ahead = self._readahead.note(offset, length, limit, link.bandwidth_delay)
        if ahead is not None:
            await self._below.ensure(ahead.start, ahead.length, Priority.READAHEAD)
        return await self._below.read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        await self._below.ensure(offset, length, priority)

    async def wait_complete(self) -> None:
        await self._below.wait_complete()

    def statistics(self) -> Statistics:
        return self._below.statistics()

    async def aclose(self) -> None:
        await self._below.aclose()

"""A Device that watches reads and sends hints down for those that will follow."""

from collections.abc import Iterator, Sequence

from lazyfs.device import Device, Identity, Link, Priority, Statistics
from lazyfs.options import ReadAheadLimit
from lazyfs.prefetch.covered import Covered
from lazyfs.prefetch.readahead import ReadAhead
from lazyfs.ranges import clamp


class Prefetcher:
    """Read-ahead in front of another Device.

    Who reads what was told beforehand is not read ahead of: what he wants next was told as well.
    """

    def __init__(self, below: Device, limit: ReadAheadLimit) -> None:
        self._below = below
        self._limit = limit
        self._readahead = ReadAhead(below.identity.size)
        self._told = Covered()

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        link = self._below.link
        told = self._told.covers(clamp(offset, length, self.identity.size))
        limit = 0 if told else self._limit.bytes_at(link.rate)
        ahead = self._readahead.note(offset, length, limit, link.bandwidth_delay)
        if ahead is not None:
            await self._below.ensure(ahead.start, ahead.length, Priority.READAHEAD)
        return await self._below.read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        if priority is Priority.PRELOAD:
            self._told.add(clamp(offset, length, self.identity.size))
        await self._below.ensure(offset, length, priority)

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._below.cached(offset, length)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return await self._below.zeros(offset, length)

    async def wait_complete(self) -> None:
        await self._below.wait_complete()

    def statistics(self) -> Statistics:
        return self._below.statistics()

    async def aclose(self) -> None:
        await self._below.aclose()

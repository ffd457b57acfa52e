"""A Device that damages, fails and delays what another Device reads."""

from collections.abc import Iterator, Sequence

import trio

from lazyfs.device import Device, Identity, Link, Priority, Statistics
from lazyfs.errors import SourceError, Unreachable
from lazyfs.ranges import clamp
from lazyfs.testing.damage import Faults


class EvilDevice:
    """``below``, with ``faults``. Places that cannot be read give a SourceError, reads that fail
    by chance an Unreachable: the next one may be better.
    """

    def __init__(self, below: Device, faults: Faults) -> None:
        self._below = below
        self._faults = faults
        self._reads = 0

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        number = self._reads
        self._reads += 1
        await trio.sleep(self._faults.wait(number))
        if self._faults.unreadable_in(span):
            raise SourceError(f"bytes {span.start} to {span.stop} cannot be read")
        if self._faults.fails(number):
            raise Unreachable(f"read number {number} failed")
        return self._faults.spoil(span.start, await self._below.read(offset, length), number)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
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

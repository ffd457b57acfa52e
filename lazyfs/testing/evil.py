"""A Device that damages, fails and delays what another Device reads."""

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import SourceError, Unreachable
from lazyfs.core.ranges import clamp
from lazyfs.core.view import DeviceView
from lazyfs.testing.damage import Faults


class EvilDevice(DeviceView):
    """``below``, with ``faults``. Places that cannot be read give a SourceError, reads that fail
    by chance an Unreachable: the next one may be better.
    """

    def __init__(self, below: Device, faults: Faults) -> None:
        super().__init__(below)
        self._faults = faults
        self._reads = 0

    def ready(self, offset: int, length: int) -> bool:
        return not self._faults.delay and super().ready(offset, length)

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        number = self._reads
        self._reads += 1
        await trio.sleep(self._faults.wait(number))
        if self._faults.unreadable_in(span):
            raise SourceError(f"bytes {span.start} to {span.stop} cannot be read")
        if self._faults.fails(number):
            raise Unreachable(f"read number {number} failed")
        return self._faults.spoil(span.start, await super().read(offset, length), number)

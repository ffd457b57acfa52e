"""A base class for Devices on top of another Device."""

from collections.abc import Iterator, Sequence

from lazyfs.core.device import Device, Identity, Link, Priority, Statistics


class DeviceView:
    """A Device that passes everything to ``below``; subclasses override parts of it."""

    def __init__(self, below: Device) -> None:
        self._below = below

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        return await self._below.read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        await self._below.ensure(offset, length, priority)

    def ready(self, offset: int, length: int) -> bool:
        return self._below.ready(offset, length)

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._below.cached(offset, length)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return await self._below.zeros(offset, length)

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        await self._below.wait_complete(offset, length)

    def statistics(self) -> Statistics:
        return self._below.statistics()

    async def aclose(self) -> None:
        await self._below.aclose()

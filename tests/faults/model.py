"""Shared by the campaigns: a whole stack in this process, and readers that check its bytes."""

import logging
import os
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from lazyfs.core.device import Device, Identity, Priority, Statistics
from lazyfs.core.errors import CacheError, LazyfsError
from lazyfs.core.options import (
    CacheOptions,
    ImageOptions,
    LogOptions,
    MountOptions,
    ReadAheadLimit,
    ServerOptions,
)
from lazyfs.images.open import open_stack

from .figures import Figures

NAME = "image.raw"


def stack_options(
    url: str, cache: CacheOptions, timeout: float, connections: int = 4
) -> MountOptions:
    """``timeout``: seconds; a request is repeated after half of them without a byte."""
    return MountOptions(
        images=(ImageOptions(url, NAME, ServerOptions(connections, stall=timeout / 2)),),
        mountpoint=Path("/nonexistent"),
        cache=cache,
        log=LogOptions(logging.INFO),
        timeout=timeout,
        readahead=ReadAheadLimit(size=64 << 10),
    )


@asynccontextmanager
async def running_stack(options: MountOptions) -> AsyncIterator[Device]:
    """The image of a whole stack, like a mount's."""
    async with open_stack(options) as stack, trio.open_nursery() as nursery:
        nursery.start_soon(stack.run)
        yield stack.images[0].device
        nursery.cancel_scope.cancel()


class WrongBytes(AssertionError):
    """A read returned wrong bytes."""


class Reader:
    """Reads a Device, and compares and counts."""

    def __init__(
        self, device: Device, content: bytes, figures: Figures, limit: float = float("inf")
    ) -> None:
        """``limit``: seconds within which a read must end, with data or an error."""
        self._device = device
        self._content = content
        self._figures = figures
        self._limit = limit

    async def read(self, offset: int, length: int) -> bool:
        """Read; returns whether there was data. Raises WrongBytes, or AssertionError if late."""
        began = trio.current_time()
        found = None
        try:
            found = await self._device.read(offset, length)
        except LazyfsError:
            self._figures.add(failed_reads=1)
        took = trio.current_time() - began
        self._figures.add(reads=1, wrong_bytes=0, late_reads=took > self._limit)
        self._figures.most(longest_read_in_seconds=round(took, 2))
        if found is not None and found != self._content[offset : offset + length]:
            wrong = differing(found, self._content[offset : offset + length])
            self._figures.add(wrong_bytes=wrong)
            raise WrongBytes(f"{wrong} of {length} bytes at {offset}")
        assert took <= self._limit, f"a read of {length} bytes at {offset} took {took:.2f} seconds"
        return found is not None

    async def read_together(self, ranges: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
        """Read all these ranges (offset, length) concurrently; returns those with data."""
        good = []

        async def read_one(offset: int, length: int) -> None:
            if await self.read(offset, length):
                good.append((offset, length))

        async with trio.open_nursery() as nursery:
            for offset, length in ranges:
                nursery.start_soon(read_one, offset, length)
        return good


def differing(one: bytes, other: bytes) -> int:
    """The number of differing bytes."""
    unlike = sum(a != b for a, b in zip(one, other, strict=False))
    return unlike + abs(len(one) - len(other))


class LocalFile:
    """A small file as a Device."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.identity = Identity(path.stat().st_size)

    @property
    def link(self) -> "LocalFile":
        return self

    round_trip = rate = 0.0
    bandwidth_delay = 0

    async def read(self, offset: int, length: int) -> bytes:
        try:
            with self._path.open("rb") as file:
                return os.pread(file.fileno(), length, offset)
        except OSError as error:
            raise CacheError(f"{self._path} cannot be read: {error.strerror}") from error

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """Nothing to do: the file is local."""

    async def wait_complete(self) -> None:
        """Nothing to do: the file is local."""

    def statistics(self) -> Statistics:
        return Statistics(size=self.identity.size, cached=self.identity.size)

    async def aclose(self) -> None:
        """Nothing is open between two reads."""


Announce = Callable[..., None]

"""An image in memory: the simplest Device and the simplest Source, for tests and examples."""

from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from lazyfs.core.device import (
    Identity,
    Link,
    Priority,
    Slot,
    Statistics,
    Stream,
    Trouble,
)
from lazyfs.core.errors import TransientError
from lazyfs.core.ranges import clamp


@dataclass
class KnownLink:
    """A Link with the values that it is given."""

    round_trip: float = 0.0
    rate: float = 0.0
    bandwidth_delay: int = 0


class MemoryDevice:
    """``content`` as an image. A Device."""

    def __init__(self, content: bytes, identity: Identity | None = None) -> None:
        self.content = content
        self.identity = identity or Identity(len(content))
        self.link: Link = KnownLink()

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, len(self.content))
        return self.content[span.start : span.stop]

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """It is all here."""

    def ready(self, offset: int, length: int) -> bool:  # noqa: ARG002
        return True

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        here = clamp(offset, length, len(self.content)).length
        if here:
            yield here, True

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        here = clamp(offset, length, len(self.content)).length
        return [(here, False)] if here else []

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        """It is all here."""

    def statistics(self) -> Statistics:
        return Statistics(size=len(self.content), cached=len(self.content))

    async def aclose(self) -> None:
        """There is nothing to close."""


class MemorySource:
    """``content`` as it might come from a server. A Source, and a Slot: it has no limits."""

    last = False
    trouble: Trouble | None = None
    opening = b""

    def __init__(self, content: bytes, identity: Identity | None = None) -> None:
        self.content = content
        self.identity = identity or Identity(len(content), '"1"')
        self.link: Link = KnownLink()

    async def open(self) -> Identity:
        return self.identity

    def expect(self, identity: Identity) -> None:
        self.identity = identity

    async def run(self) -> None:
        await trio.sleep_forever()

    async def slot(self, priority: Priority) -> Slot:  # noqa: ARG002
        await trio.lowlevel.checkpoint()
        return self

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return [self._stream(*wanted) for wanted in ranges]

    @asynccontextmanager
    async def _stream(
        self, offset: int, length: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        async def pieces() -> AsyncGenerator[bytes, None]:
            await trio.lowlevel.checkpoint()
            yield self.content[offset : offset + length]

        async with aclosing(pieces()) as iterator:
            yield iterator

    def failed(self, error: TransientError) -> None:
        """It never fails."""

    def succeeded(self) -> None:
        """It always does."""

    def release(self) -> None:
        """There are always more."""

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        here = clamp(offset, length, len(self.content)).length
        return [(here, False)] if here else []

    async def rest(self) -> None:
        """There is nothing to close."""

    async def aclose(self) -> None:
        """There is nothing to close."""

"""An export of an NBD server as a Source.

NBD has no validators: that an export is still the one that was opened is known by its size alone.
So nothing of it outlives a mount, unless the user vouches for it.

The requests of all streams share the connections. Where the server says that there is nothing but
zeros, nothing is asked for.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass

import trio

from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import BadAnswer, ImageChanged, InternalError, LazyfsError
from lazyfs.core.options import HttpOptions
from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import Command
from lazyfs.protocols.nbdclient import Opened, PendingRead, PendingStatus
from lazyfs.sources.link import Link
from lazyfs.sources.nbdconnection import Connection, Place, connect, failure
from lazyfs.sources.slots import HostLane, Lanes
from lazyfs.sources.tls import client_context
from lazyfs.sources.zeros import ZeroMap

_LARGEST_READ = 1 << 20  # bytes; longer ones are several requests, which may be answered at once
_STATUS_REACH = 1 << 30  # bytes that one question about zeros is about
_ZEROS = bytes(256 << 10)
_VOUCHED = (
    '"vouched for"'  # the validator of an image of which the user says that it stays as it is
)

Range = tuple[int, int]  # offset and length in bytes


@dataclass(frozen=True)
class _Part:
    """A part of a stream: ``length`` bytes that were asked for, or zeros.

    ``skip``: bytes in front of them that the request was widened by. ``asked``: when it was sent,
    if nothing else was under way then.
    """

    length: int
    skip: int = 0
    read: PendingRead | None = None
    connection: Connection | None = None
    asked: float | None = None


class NbdSource:
    """One export. A Source."""

    def __init__(
        self,
        url: str,
        name: str,
        options: HttpOptions,
        *,
        vouched: bool = False,
    ) -> None:
        """``name``: for messages. ``vouched``: whether the user says that it never changes.

        Raises UsageError.
        """
        self.link = Link()
        self.opening = b""  # NBD brings no bytes along
        self._place = Place.of(url)
        self._name = name
        self._options = options
        self._tls = client_context(options) if self._place.tls else None
        self._vouched = vouched
        self._identity: Identity | None = None
        self._lanes = Lanes(options.connections)
        self._most = 1  # connections
        self._connections: list[Connection] = []
        self._connecting = trio.Lock()
        self._zeros = ZeroMap()

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise InternalError(f"{self._name} has not been opened")
        return self._identity

    def expect(self, identity: Identity) -> None:
        """It could not be opened, but what it must be is known from before."""
        self._identity = identity

    async def open(self) -> Identity:
        """Ask the server how large the export is. Raises a SourceError."""
        try:
            await self._connection()
        except LazyfsError as error:
            raise error.about(self._name) from error.__cause__
        return self.identity

    def streams(
        self, ranges: Sequence[Range]
    ) -> Sequence[AbstractAsyncContextManager[AsyncIterator[bytes]]]:
        """The bytes of ranges, asked for together; see ``device.Source``."""
        batch = _Batch(self._ask, ranges)
        return [self._stream(batch, number) for number in range(len(ranges))]

    @asynccontextmanager
    async def _stream(self, batch: "_Batch", number: int) -> AsyncIterator[AsyncIterator[bytes]]:
        parts: Sequence[_Part] = ()
        self.link.body_begins(trio.current_time())
        try:
            parts = await batch.parts(number)
            yield self._pieces(parts)
        except LazyfsError as error:
            if self._name not in error.message:
                error.about(self._name)
            raise
        finally:
            self.link.body_ends()
            for part in parts:
                if part.read is not None:
                    part.read.abandon()

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        stop = offset + length
        known = list(self._zeros.known(offset, stop))
        if not known:
            try:
                await self._learn(offset)
            except LazyfsError as error:
                raise error.about(self._name) from error.__cause__
            known = list(self._zeros.known(offset, stop))
        return known

    async def lane(self, priority: Priority) -> HostLane:
        return await self._lanes.acquire(priority)

    async def rest(self) -> None:
        for connection in self._connections.copy():
            if not connection.under_way:
                self._connections.remove(connection)
                await connection.leave()

    async def aclose(self) -> None:
        await self.rest()
        for connection in self._connections:
            await connection.aclose()

    # Asking

    async def _ask(self, offset: int, length: int) -> list[_Part]:
        """Ask for all of a range that is not known to be zeros."""
        parts: list[_Part] = []
        stop = offset + length
        while offset < stop:
            for run, zero in await self.zeros(offset, stop - offset):
                if zero:
                    parts.append(_Part(run))
                else:
                    parts += await self._ask_for_data(offset, offset + run)
                offset += run
        return parts

    async def _ask_for_data(self, start: int, stop: int) -> list[_Part]:
        """Ask for a range in requests that the server takes."""
        connection = await self._connection()
        most = min(_LARGEST_READ, connection.opened.largest)
        parts = []
        while start < stop:
            begin, end = self._aligned(connection.opened, start, min(stop, start + most))
            end = min(end, begin + most)
            read = PendingRead(begin, end - begin, connection.changed)
            asked = None if connection.under_way else trio.current_time()
            await connection.send(Command.READ, read, end - begin)
            reach = min(end, stop)
            parts.append(_Part(reach - start, start - begin, read, connection, asked))
            start = reach
        return parts

    def _aligned(self, opened: Opened, start: int, stop: int) -> Range:
        """The range from ``start`` to ``stop``, widened to what the server can be asked for."""
        unit = opened.minimum
        return start - start % unit, min(-(-stop // unit) * unit, self.identity.size)

    async def _pieces(self, parts: Sequence[_Part]) -> AsyncIterator[bytes]:
        for part in parts:
            if part.read is None or part.connection is None:
                for done in range(0, part.length, len(_ZEROS)):
                    yield _ZEROS[: part.length - done]
                continue
            async for piece in self._read(part, part.read, part.connection):
                yield piece

    async def _read(
        self, part: _Part, read: PendingRead, connection: Connection
    ) -> AsyncIterator[bytes]:
        """The bytes of a part, as they come, without those that it was widened by."""
        skip, left, asked = part.skip, part.length, part.asked
        while left:
            await connection.wait(lambda: read.ready)
            if asked is not None:
                self.link.answered(trio.current_time() - asked)
                asked = None
            for content in read.take():
                self.link.received(trio.current_time(), len(content))
                piece = content[skip : skip + left]
                skip -= min(skip, len(content))
                left -= len(piece)
                if piece:
                    yield piece
            if read.failure is not None:
                raise failure(read.failure)

    async def _learn(self, offset: int) -> None:
        """Ask where there are zeros from here on."""
        connection = await self._connection()
        size = self.identity.size
        context = connection.opened.contexts.get(nbd.ALLOCATION)
        if context is None:
            self._zeros.learn(0, [(size, False)])
            return
        begin, end = self._aligned(connection.opened, offset, min(size, offset + _STATUS_REACH))
        status = PendingStatus(begin, connection.changed)
        await connection.send(Command.BLOCK_STATUS, status, end - begin)
        await connection.wait(lambda: status.ended)
        if status.failure is not None:
            raise failure(status.failure)
        extents = status.extents.get(context)
        if extents is None:
            raise BadAnswer("the server does not say what it was asked for")
        self._zeros.learn(begin, ((length, bool(flags & nbd.ZERO)) for length, flags in extents))

    # Connections

    async def _connection(self) -> Connection:
        """The one with the least to do; a new one if all have something, and there may be more."""
        for connection in [c for c in self._connections if c.broken is not None]:
            self._connections.remove(connection)
            await connection.aclose()
        idlest = min(self._connections, key=lambda c: c.under_way, default=None)
        if idlest is not None and (not idlest.under_way or len(self._connections) >= self._most):
            return idlest
        async with self._connecting:
            if len(self._connections) < self._most:
                return await self._connect()
        return await self._connection()

    async def _connect(self) -> Connection:
        connection = await connect(self._place, self._tls, self._options.stall)
        opened = connection.opened
        try:
            self._check(opened)
        except LazyfsError:
            await connection.aclose()
            raise
        shared = opened.flags & nbd.CAN_MULTI_CONN
        self._most = self._options.connections if shared else 1
        self._connections.append(connection)
        return connection

    def _check(self, opened: Opened) -> None:
        """Note what the export is, or see that it is still the same. Raises a SourceError."""
        identity = Identity(opened.size, _VOUCHED if self._vouched else None)
        if opened.size == 0:
            raise BadAnswer("the export is empty", "check the name of the export")
        if self._identity is None:
            self._identity = identity
        elif not self._identity.matches(identity):
            raise ImageChanged("the export is not what it was when it was opened")


class _Batch:
    """Ranges that are asked for together, when the first of them is wanted."""

    def __init__(
        self, ask: Callable[[int, int], Awaitable[list[_Part]]], ranges: Sequence[Range]
    ) -> None:
        self._ask = ask
        self._ranges = ranges
        self._asked: list[list[_Part]] = []

    async def parts(self, number: int) -> list[_Part]:
        """What was asked for of a range."""
        if not self._asked:
            self._asked = [await self._ask(*wanted) for wanted in self._ranges]
        return self._asked[number]

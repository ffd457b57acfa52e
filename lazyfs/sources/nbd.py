"""An export of an NBD server as a Source.

NBD has no validators: only the size shows whether an export is still the one that was opened. So
its cache does not outlive a mount, unless the user vouches for the export.

The requests of all streams share the connections. Ranges that the server reports as zeros are not
requested.
"""

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass

import trio

from lazyfs.core.device import Identity, Priority, Stream, Trouble
from lazyfs.core.errors import BadAnswer, ImageChanged, InternalError, LazyfsError, TransientError
from lazyfs.core.options import ServerOptions
from lazyfs.core.ranges import clamp
from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import Command
from lazyfs.protocols.nbdclient import Opened, PendingRead, PendingStatus
from lazyfs.sources.link import LinkEstimate
from lazyfs.sources.nbdconnection import Connection, Endpoint, connect, failure
from lazyfs.sources.slots import Host, HostSlot
from lazyfs.sources.tls import client_context
from lazyfs.sources.zeros import ZeroMap

_LARGEST_READ = 1 << 20  # bytes; longer reads are split into requests, sent together
_STATUS_REACH = 1 << 30  # bytes that one block status request covers
_ZEROS = bytes(256 << 10)
_VOUCHED = '"vouched for"'  # the validator of an image that never changes according to the user

Range = tuple[int, int]  # offset and length in bytes


@dataclass(frozen=True)
class _Part:
    """A part of a stream: ``length`` requested bytes, or zeros.

    ``skip``: bytes in front of them, added to align the request.
    ``asked``: when it was sent, if nothing else was in flight then.
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
        options: ServerOptions,
        *,
        patience: float = 0.0,
        vouched: bool = False,
    ) -> None:
        """``name``: for messages. ``patience``: seconds that a reader waits; 0: no limit.

        ``vouched``: whether the user vouches that the export never changes. Raises UsageError.
        """
        self.opening = b""  # opening an export transfers no data
        self._endpoint = Endpoint.of(url)
        self._name = name
        self._options = options
        self._tls = client_context(options) if self._endpoint.tls else None
        self._vouched = vouched
        self._identity: Identity | None = None
        self._host = Host(str(self._endpoint), options.connections, patience)
        self._most = 1  # connections
        self._connections: list[Connection] = []
        self._connecting = trio.Lock()
        self._zeros = ZeroMap()

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise InternalError(f"{self._name} has not been opened")
        return self._identity

    @property
    def link(self) -> LinkEstimate:
        return self._host.link

    @property
    def trouble(self) -> Trouble | None:
        return self._host.health.trouble

    def expect(self, identity: Identity) -> None:
        """Assume this identity, known from an earlier run, since the export cannot be opened."""
        self._identity = identity

    async def open(self) -> Identity:
        """Get the size of the export from the server. Raises a SourceError."""
        try:
            await self._connection()
        except LazyfsError as error:
            raise error.about(self._name) from error.__cause__
        return self.identity

    async def run(self) -> None:
        """Nothing to do in the background."""
        await trio.sleep_forever()

    def streams(self, ranges: Sequence[Range]) -> Sequence[Stream]:
        """Streams for ranges, requested together; see ``device.Slot``."""
        batch = _Batch(self._ask, ranges)
        return [self._stream(batch, number) for number in range(len(ranges))]

    @asynccontextmanager
    async def _stream(
        self, batch: "_Batch", number: int
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        parts: Sequence[_Part] = ()
        self.link.body_begins(trio.current_time())
        try:
            parts = await batch.parts(number)
            async with aclosing(self._pieces(parts)) as pieces:
                yield pieces
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
        start, stop = clamp(offset, length, self.identity.size)
        known = list(self._zeros.known(start, stop))
        if start < stop and not known:
            try:
                await self._learn(start)
            except LazyfsError as error:
                raise error.about(self._name) from error.__cause__
            known = list(self._zeros.known(start, stop))
        return known

    async def slot(self, priority: Priority) -> "NbdSlot":
        return NbdSlot(self, self._host, await self._host.slot(priority))

    async def rest(self) -> None:
        # Removed before the first await: another task may use the list meanwhile.
        idle = [c for c in self._connections if not c.under_way]
        self._connections = [c for c in self._connections if c.under_way]
        for connection in idle:
            await connection.leave()

    async def aclose(self) -> None:
        await self.rest()
        busy, self._connections = self._connections, []
        for connection in busy:
            await connection.aclose()

    # Requests

    async def _ask(self, offset: int, length: int) -> list[_Part]:
        """Request a range, except for its known zeros."""
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
        """Request a range, split and aligned to the server's limits."""
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
        """The range from ``start`` to ``stop``, widened to the server's minimum block size."""
        unit = opened.minimum
        return start - start % unit, min(-(-stop // unit) * unit, self.identity.size)

    async def _pieces(self, parts: Sequence[_Part]) -> AsyncGenerator[bytes, None]:
        for part in parts:
            if part.read is None or part.connection is None:
                for done in range(0, part.length, len(_ZEROS)):
                    yield _ZEROS[: part.length - done]
                continue
            async with aclosing(self._read(part, part.read, part.connection)) as pieces:
                async for piece in pieces:
                    yield piece

    async def _read(
        self, part: _Part, read: PendingRead, connection: Connection
    ) -> AsyncGenerator[bytes, None]:
        """The bytes of a part as they arrive, without those added for alignment."""
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
        """Request the block status from ``offset`` on, and note the zeros."""
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
        """The least busy connection; a new one if all are busy and more are allowed."""
        # Removed before the first await: another task may use the list meanwhile.
        broken = [c for c in self._connections if c.broken is not None]
        self._connections = [c for c in self._connections if c.broken is None]
        for connection in broken:
            await connection.aclose()
        idlest = min(self._connections, key=lambda c: c.under_way, default=None)
        if idlest is not None and (not idlest.under_way or len(self._connections) >= self._most):
            return idlest
        async with self._connecting:
            if len(self._connections) < self._most:
                return await self._connect()
        return await self._connection()

    async def _connect(self) -> Connection:
        connection = await connect(self._endpoint, self._tls, self._options.stall)
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
        """Note the export's identity, or check that it is unchanged. Raises a SourceError."""
        identity = Identity(opened.size, _VOUCHED if self._vouched else None)
        if opened.size == 0:
            raise BadAnswer("the export is empty", "check the name of the export")
        if self._identity is None:
            self._identity = identity
        elif not self._identity.matches(identity):
            raise ImageChanged("the export is not what it was when it was opened")


class NbdSlot:
    """A slot of the server. A Slot."""

    def __init__(self, source: NbdSource, host: Host, held: HostSlot) -> None:
        self._source = source
        self._host = host
        self._held = held

    @property
    def last(self) -> bool:
        return self._held.last

    @property
    def link(self) -> LinkEstimate:
        return self._host.link

    def streams(self, ranges: Sequence[Range]) -> Sequence[Stream]:
        return self._source.streams(ranges)

    def failed(self, error: TransientError) -> None:
        self._host.health.failed(error)

    def succeeded(self) -> None:
        self._host.health.succeeded()

    def release(self) -> None:
        self._held.release()


class _Batch:
    """Ranges that are requested together, when the first of them is needed."""

    def __init__(
        self, ask: Callable[[int, int], Awaitable[list[_Part]]], ranges: Sequence[Range]
    ) -> None:
        self._ask = ask
        self._ranges = ranges
        self._asked: list[list[_Part]] = []

    async def parts(self, number: int) -> list[_Part]:
        """The parts of a range, given by its number."""
        if not self._asked:
            self._asked = [await self._ask(*wanted) for wanted in self._ranges]
        return self._asked[number]

"""Images as exports of an NBD server: a trio shell around ``protocols/nbdserver.py``.

Local data are answered inline, before the client's next request is read: a client that does not
receive its answers costs one piece of memory and delays no other. Requests that need a fetch have a
task each, and are answered as the data arrive, in any order.

Limits against greedy clients: the number of connections (when it is reached, a new client replaces
the oldest that has not chosen an export); for each, the number of requests in flight; for all
together, the number of bytes in flight. One request of each client is exempt from the last, so that
no client waits for others. A long READ is read and sent piece by piece.
"""

import logging
import socket
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import trio

from lazyfs.core.device import Device, Priority
from lazyfs.core.errors import LazyfsError
from lazyfs.protocols import nbd, nbdserver
from lazyfs.protocols.nbd import Command, Error, Extent, ProtocolError, Request, Style
from lazyfs.protocols.nbdserver import ExportInfo, Handshake, RequestReader, Session
from lazyfs.protocols.wire import Wire, converse

log = logging.getLogger(__name__)

MOST_CONNECTIONS = 128
MOST_REQUESTS = 64  # in flight on one connection; nbdcopy's default
MOST_BYTES = 64 << 20  # in flight on all connections together, except one request of each
PIECE = nbdserver.LARGEST_UNBROKEN  # bytes of a READ that are read and sent at once
SEND_BUFFER = PIECE  # bytes per connection in the kernel, so that one call sends an answer
GRACE = 0.5  # seconds to tell clients that the server ends


@dataclass(frozen=True)
class Export:
    """An image, with its name and description for clients."""

    name: str
    description: str
    device: Device


class Pool:
    """The budget of bytes in flight that all clients share."""

    def __init__(self, most: int) -> None:
        self._left = most
        self._changed = trio.Event()

    def take(self, amount: int) -> bool:
        """Take ``amount`` if available; returns whether it was."""
        if amount > self._left:
            return False
        self._left -= amount
        return True

    def give_back(self, amount: int) -> None:
        self._left += amount
        self._changed.set()
        self._changed = trio.Event()

    async def changed(self) -> None:
        """Wait until something is given back."""
        await self._changed.wait()


class NbdServer:
    """Serves ``exports``, of which the first is the default, to any number of clients."""

    def __init__(self, exports: Sequence[Export], tls: ssl.SSLContext | None = None) -> None:
        """``tls``: if given, TLS is required."""
        self.tls = tls
        self.pool = Pool(MOST_BYTES)
        self.infos = [
            ExportInfo(e.name, _cut(e.description), e.device.identity.size) for e in exports
        ]
        self._devices = {export.name: export.device for export in exports}
        self._clients: list[_Client] = []

    def device(self, export: ExportInfo) -> Device:
        return self._devices[export.name]

    async def listen(self, listeners: Sequence[trio.SocketListener]) -> None:
        """Serve clients, until cancelled."""
        await trio.serve_listeners(self.attend, list(listeners))

    async def attend(self, stream: trio.abc.Stream) -> None:
        """Serve one client until it leaves."""
        client = _Client(self, stream)
        if not self._make_room():
            log.warning("a client is turned away: there are %d already", len(self._clients))
            await trio.aclose_forcefully(stream)
            return
        self._clients.append(client)
        if isinstance(stream, trio.SocketStream):  # detect clients that lost the network
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER)
        try:
            await client.run()
        finally:
            self._clients.remove(client)

    def _make_room(self) -> bool:
        """Whether another client can be served; may drop one that has not chosen an export."""
        if len(self._clients) < MOST_CONNECTIONS:
            return True
        undecided = (client for client in self._clients if client.undecided)
        oldest = next(undecided, None)
        if oldest is not None:
            oldest.scope.cancel()
        return oldest is not None


class _Client:
    """One connection."""

    def __init__(self, server: NbdServer, stream: trio.abc.Stream) -> None:
        self.scope = trio.CancelScope()
        self.undecided = True  # while no export has been chosen
        self._server = server
        self._wire = Wire(stream)

    async def run(self) -> None:
        """Run the handshake, answer requests, and close. Errors of a client stay here."""
        with self.scope:
            try:
                await self._serve()
            except ProtocolError as error:
                log.info("a client is disconnected: %s", error)
            except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
                log.debug("a client has gone: %s", error.__cause__ or error)
            except Exception:
                log.exception("a client is disconnected by a defect of lazyfs")
            finally:
                with trio.move_on_after(GRACE, shield=True):
                    await self._wire.aclose()

    async def _serve(self) -> None:
        handshake = Handshake(self._server.infos, tls=self._server.tls is not None)
        session = await converse(self._wire, handshake.run(), self._server.tls, server=True)
        if session is not None:
            self.undecided = False
            device = self._server.device(session.export)
            await Transmission(self._wire, session, device, self._server.pool).run()


class Transmission:
    """The transmission phase: answers a client's requests to its chosen export."""

    def __init__(self, wire: Wire, session: Session, device: Device, pool: Pool) -> None:
        self._wire = wire
        self._session = session
        self._style = session.style
        self._device = device
        self._pool = pool
        self._under_way: list[Request] = []  # those with a task, until they are answered
        self._sending = trio.Lock()
        self._whole = True  # whether the last message was sent to its end
        self._gone = trio.CancelScope()  # cancelled when the client has gone

    async def run(self) -> None:
        """Answer requests until the client leaves, or has gone. Raises ProtocolError."""
        failure: ProtocolError | None = None
        with self._gone:
            try:
                async with trio.open_nursery() as nursery:
                    try:
                        await self._take_requests(nursery)
                    except ProtocolError as error:
                        failure = error
                        self._gone.cancel()
            finally:
                if not self._gone.cancel_called:
                    await self._say_goodbye()
        if failure is not None:
            raise failure

    async def _take_requests(self, nursery: trio.Nursery) -> None:
        reader = RequestReader(self._style)
        while True:
            try:
                received = await self._wire.receive_some()
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                received = b""
            if not received:
                self._gone.cancel()
                return
            for request in reader.feed(received):
                if request.command == Command.DISC:
                    return  # requests in flight are still answered
                await self._take(request, nursery)

    async def _take(self, request: Request, nursery: trio.Nursery) -> None:
        """Answer a request at once, or start a task that does."""
        refused = nbdserver.judge(request, self._session)
        if refused is not None:
            await self._send(nbdserver.failure(self._style, request, *refused))
        elif request.command == Command.CACHE:
            await self._device.ensure(request.offset, request.length, Priority.PRELOAD)
            await self._send(nbdserver.success(self._style, request))
        elif request.command == Command.READ and self._is_here(request):
            await self._answer(request)
        else:
            cost = await self._admit(request)
            nursery.start_soon(self._answer_later, request, cost)

    def _is_here(self, request: Request) -> bool:
        """Whether a READ can be answered at once."""
        return request.length <= PIECE and self._device.ready(request.offset, request.length)

    async def _admit(self, request: Request) -> int:
        """Wait until a request may start; returns the bytes to give back to the pool."""
        cost = min(request.length, PIECE) if request.command == Command.READ else 0
        while self._under_way:
            if len(self._under_way) < MOST_REQUESTS and self._pool.take(cost):
                break
            await self._pool.changed()
        else:
            cost = 0
        self._under_way.append(request)
        return cost

    async def _answer_later(self, request: Request, cost: int) -> None:
        try:
            await self._answer(request)
            self._under_way.remove(request)
        finally:
            self._pool.give_back(cost)

    async def _answer(self, request: Request) -> None:
        """Execute a request, and send its answer or its error."""
        try:
            if request.command == Command.BLOCK_STATUS:
                await self._block_status(request)
            elif self._style is Style.SIMPLE and request.length > PIECE:
                await self._read_unbroken(request)
            else:
                await self._read(request)
        except LazyfsError as error:
            await self._send(nbdserver.failure(self._style, request, Error.IO, str(error)))
        except Exception as error:
            log.exception("a request failed in an unforeseen way")
            why = f"a defect of lazyfs: {error!r}"
            await self._send(nbdserver.failure(self._style, request, Error.IO, why))

    async def _read(self, request: Request) -> None:
        stop = request.offset + request.length
        for offset in range(request.offset, stop, PIECE):
            content = await self._device.read(offset, min(PIECE, stop - offset))
            head = nbdserver.data_head(self._style, request, offset, len(content))
            await self._send(head, content)

    async def _read_unbroken(self, request: Request) -> None:
        """Answer a long READ of a client that supports only simple replies.

        These cannot report an error after the beginning: if a later piece cannot be read, the
        connection is closed.
        """
        stop = request.offset + request.length
        content = await self._device.read(request.offset, PIECE)
        async with self._sending:
            self._whole = False
            head = nbdserver.data_head(self._style, request, request.offset, request.length)
            await self._transfer(head, content)
            for offset in range(request.offset + PIECE, stop, PIECE):
                try:
                    content = await self._device.read(offset, min(PIECE, stop - offset))
                except LazyfsError as error:
                    log.error("a client is disconnected in the middle of an answer: %s", error)
                    self._gone.cancel()
                    return
                await self._transfer(content)
            self._whole = True

    async def _block_status(self, request: Request) -> None:
        *others, last = self._session.contexts.items()
        for number, context in (*others, last):
            extents = await self._extents(context, request)
            done = number == last[0]
            await self._send(nbdserver.status(self._style, request, number, extents, done=done))

    async def _extents(self, context: str, request: Request) -> Iterator[Extent]:
        """The extents of a request's range, for a metadata context."""
        if context == nbd.CACHED:
            runs = self._device.cached(request.offset, request.length)
            return ((length, nbd.IS_LOCAL if here else 0) for length, here in runs)
        try:
            known = await self._device.zeros(request.offset, request.length)
        except LazyfsError as error:
            log.info("what is a hole cannot be found out: %s", error)
            known = [(request.length, False)]
        return ((length, nbd.HOLE | nbd.ZERO if zero else 0) for length, zero in known)

    async def _send(self, head: bytes, content: bytes = b"") -> None:
        """Send one message, not interleaved with others."""
        async with self._sending:
            self._whole = False
            await self._transfer(head, content)
            self._whole = True

    async def _transfer(self, head: bytes, content: bytes = b"") -> None:
        try:
            await self._wire.send(head, content)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._gone.cancel()
            await trio.lowlevel.checkpoint()

    async def _say_goodbye(self) -> None:
        """Fail the requests in flight with ESHUTDOWN, since the server ends."""
        with trio.move_on_after(GRACE, shield=True):
            for request in self._under_way if self._whole else ():
                why = "the server ends"
                await self._transfer(nbdserver.failure(self._style, request, Error.SHUTDOWN, why))


def _cut(text: str) -> str:
    """A text, cut to the protocol's limit."""
    return text.encode()[: nbd.LONGEST_STRING].decode(errors="ignore")

"""One connection to an export of an NBD server, shared by all its readers.

There is no receiving task: a waiter receives, and hands on the answers of others; when it has its
own, another waiter goes on. A waiter may be cancelled at any point without losing data.

Foreign exceptions, and those of the codec, are translated here.
"""

import contextlib
import itertools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

import trio

from lazyfs.core import address
from lazyfs.core.errors import (
    AccessDenied,
    BadAnswer,
    LazyfsError,
    NotFound,
    ServerBusy,
    Unreachable,
    UsageError,
)
from lazyfs.protocols import nbd, nbdclient
from lazyfs.protocols.nbd import Command, Error, ProtocolError, Reply, Request
from lazyfs.protocols.nbdclient import Failed, Handshake, Pending, Refused, ReplyReader
from lazyfs.protocols.wire import EndOfStream, Wire, converse, take_step
from lazyfs.sources.failures import reason, untrusted
from lazyfs.sources.stall import StallTimer

_GOODBYE = 0.5  # seconds to send the disconnect request
_USAGE = "write it like nbd://host/export or nbd+unix:///export?socket=PATH"


@dataclass(frozen=True)
class Endpoint:
    """The address of an export: a host and port, or a Unix socket.

    ``tls``: whether TLS is required.
    ``certified``: the name that the server's certificate must be for.
    """

    host: str
    port: int
    socket: str | None
    export: str
    tls: bool
    certified: str

    @classmethod
    def of(cls, url: str) -> "Endpoint":
        """Parse a URL by doc/uri.md of the NBD project. Raises UsageError."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        socket = query.pop("socket", None)
        host = address.host(parts) or "localhost"
        certified = query.pop("tls-hostname", host.partition("%")[0])
        if query:
            raise UsageError(f"an NBD URL has no parameter {min(query)!r}", _USAGE)
        if parts.scheme.endswith("+unix") != (socket is not None):
            raise UsageError("an NBD URL names a socket where it should not, or not", _USAGE)
        return cls(
            host=host,
            port=parts.port or nbd.PORT,
            socket=socket,
            export=unquote(parts.path[1:]),
            tls=parts.scheme.startswith("nbds"),
            certified=certified,
        )

    def __str__(self) -> str:
        return self.socket or self.host


class Connection:
    """A connection after the handshake. Once broken, it stays so."""

    def __init__(
        self, wire: Wire, opened: nbdclient.Opened, endpoint: Endpoint, patience: float
    ) -> None:
        self.opened = opened
        self.broken: Callable[[], LazyfsError] | None = None  # makes the error to raise
        self._wire = wire
        self._endpoint = endpoint
        self._patience = patience
        self._stall = StallTimer.of_body(patience)
        self._pending: dict[int, Pending] = {}
        self._unsent = 0
        self._cookies = itertools.count(1)
        self._replies = ReplyReader(opened.style, self._pending).run()
        self._step = next(self._replies)
        self._sending = trio.Lock()
        self._somebody_reads = False
        self._changed = trio.Event()

    @property
    def under_way(self) -> int:
        """The number of requests not answered or not sent yet."""
        return len(self._pending) + self._unsent

    def changed(self) -> None:
        """Wake all waiters, since one of them may have its answer."""
        self._changed.set()
        self._changed = trio.Event()

    async def send(self, command: Command, pending: Pending, length: int) -> None:
        """Send a request, whose answer goes to ``pending``. Raises a SourceError."""
        self._unsent += 1
        try:
            await self._sending.acquire()
        finally:
            self._unsent -= 1
        try:
            if self.broken is not None:
                raise self.broken()
            if not self._pending:
                self._stall = StallTimer.of_body(self._patience)
            cookie = next(self._cookies)
            self._pending[cookie] = pending
            wanted = Request(0, command, cookie, pending.offset, length)
            with self._breaking():
                await self._wire.send(nbdclient.request(self.opened.style, wanted))
        finally:
            self._sending.release()

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until an answer makes ``ready`` true. Raises a SourceError."""
        while not ready():
            if self.broken is not None:
                raise self.broken()
            if self._somebody_reads:
                await self._changed.wait()
                continue
            self._somebody_reads = True
            try:
                while not ready() and self.broken is None:
                    await self._read()
            finally:
                self._somebody_reads = False
                self.changed()

    async def _read(self) -> None:
        """Receive the next part of any answer."""
        asked = trio.current_time()
        try:
            with trio.fail_after(self._stall.left):
                received = await take_step(self._wire, self._step)
        except trio.TooSlowError:
            self._break(Unreachable, self._stall.verdict(str(self._endpoint)))
            return
        except (EndOfStream, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(Unreachable, _broken_off(self._endpoint, error))
            return
        self._stall.received(len(received), trio.current_time() - asked)
        try:
            self._step = self._replies.send(received)
        except ProtocolError as error:
            self._break(BadAnswer, error.message)

    async def leave(self) -> None:
        """Send a disconnect request if the connection is idle, and close it."""
        if self.broken is None and not self._pending:
            goodbye = Request(0, Command.DISC, 0, 0, 0)
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_GOODBYE):
                await self._wire.send(nbdclient.request(self.opened.style, goodbye))
        await self.aclose()

    async def aclose(self) -> None:
        self._break(Unreachable, f"the connection to {self._endpoint} was closed")
        await trio.aclose_forcefully(self._wire.stream)

    def _break(self, kind: type[LazyfsError], why: str) -> None:
        if self.broken is None:
            self.broken = lambda: kind(why)
        self.changed()

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """Mark the connection as broken if sending fails: the request may be half sent."""
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(Unreachable, _broken_off(self._endpoint, error))
            raise Unreachable(_broken_off(self._endpoint, error)) from error
        except BaseException:
            self._break(Unreachable, f"the connection to {self._endpoint} was given up")
            raise


async def connect(endpoint: Endpoint, tls: ssl.SSLContext | None, patience: float) -> Connection:
    """Connect to a server and choose the export. Raises a SourceError."""
    try:
        with trio.fail_after(patience):
            wire = Wire(await _open_stream(endpoint))
    except trio.TooSlowError as error:
        raise Unreachable(f"cannot connect to {endpoint}: no answer") from error
    except OSError as error:
        raise Unreachable(f"cannot connect to {endpoint}: {reason(error)}") from error
    try:
        handshake = Handshake(endpoint.export, [nbd.ALLOCATION], tls=endpoint.tls)
        with trio.fail_after(patience):
            opened = await converse(wire, handshake.run(), tls, endpoint.certified)
        return Connection(wire, opened, endpoint, patience)
    except BaseException as error:
        await trio.aclose_forcefully(wire.stream)
        translated = _translated(error, endpoint)
        if translated is None:
            raise
        raise translated from error


async def _open_stream(endpoint: Endpoint) -> trio.SocketStream:
    if endpoint.socket is not None:
        return await trio.open_unix_socket(endpoint.socket)
    return await trio.open_tcp_stream(endpoint.host, endpoint.port)


def _translated(error: BaseException, endpoint: Endpoint) -> LazyfsError | None:
    """The LazyfsError for a failed handshake; None for other exceptions."""
    if isinstance(error, trio.TooSlowError):
        return Unreachable(f"{endpoint} fell silent")
    if isinstance(error, Refused):
        return _refusal(error)
    if isinstance(error, EndOfStream):
        return Unreachable(f"{endpoint} closed the connection; it may have no such export")
    if isinstance(error, ProtocolError):
        return BadAnswer(error.message, "check the URL, and its port")
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return untrusted(endpoint.certified, error) or Unreachable(_broken_off(endpoint, error))
    return None


def _refusal(error: Refused) -> LazyfsError:
    if error.reply == Reply.UNKNOWN:
        return NotFound(error.message, "check the name of the export: nbdinfo --list shows them")
    if error.reply == Reply.TLS_REQUIRED:
        return AccessDenied("the server wants TLS", "write nbds:// or nbds+unix://")
    if error.reply == Reply.POLICY:
        return AccessDenied(error.message)
    if error.reply == Reply.SHUTDOWN:
        return Unreachable(error.message)
    return BadAnswer(error.message)


def failure(failed: Failed) -> LazyfsError:
    """The error for a failed request."""
    name = Error(failed.number).name if failed.number in set(Error) else str(failed.number)
    what = f"the server fails with E{name}{f': {failed.said}' if failed.said else ''}"
    if failed.number in (Error.IO, Error.NOMEM):
        return ServerBusy(what)
    if failed.number == Error.SHUTDOWN:
        return Unreachable(what)
    return BadAnswer(what)


def _broken_off(endpoint: Endpoint, error: BaseException) -> str:
    if isinstance(error, EndOfStream):
        return f"{endpoint} broke off"
    return f"the connection to {endpoint} broke: {reason(error)}"

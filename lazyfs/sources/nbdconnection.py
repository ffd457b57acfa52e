"""One connection to an export of an NBD server, shared by all who read from it.

There is no task that reads: whoever waits for an answer reads, and hands on what is for others;
when he has his own, one of them reads on. If one goes away in the middle of that, nothing is lost.

Foreign exceptions, and those of the codec, end here.
"""

import contextlib
import itertools
import ssl
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from urllib.parse import parse_qs, unquote, urlsplit

import trio

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
from lazyfs.sources.stall import Pace

_GOODBYE = 0.5  # seconds that a server may take to hear it
_USAGE = "write it like nbd://host/export or nbd+unix:///export?socket=PATH"


@dataclass(frozen=True)
class Place:
    """Where an export is: on a host and port, or behind a Unix socket.

    ``certified``: the name that a certificate must be for. ``tls``: whether there must be one.
    """

    host: str
    port: int
    socket: str | None
    export: str
    tls: bool
    certified: str

    @classmethod
    def of(cls, url: str) -> "Place":
        """By doc/uri.md of the NBD project. Raises UsageError."""
        parts = urlsplit(url)
        query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        socket = query.pop("socket", None)
        host = parts.hostname or "localhost"
        certified = query.pop("tls-hostname", host)
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
    """A connection that has chosen its export. Once it is broken it stays so."""

    def __init__(self, wire: Wire, opened: nbdclient.Opened, place: Place, patience: float) -> None:
        self.opened = opened
        self.broken: Callable[[], LazyfsError] | None = None  # makes the error to raise
        self._wire = wire
        self._place = place
        self._patience = patience
        self._pace = Pace.of_body(patience)
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
        """Requests that have not been answered, or not even sent."""
        return len(self._pending) + self._unsent

    def changed(self) -> None:
        """Wake all who wait for an answer: one of them may have it."""
        self._changed.set()
        self._changed = trio.Event()

    async def send(self, command: Command, pending: Pending, length: int) -> None:
        """Ask for what ``pending`` takes in. Raises a SourceError."""
        self._unsent += 1
        try:
            await self._sending.acquire()
        finally:
            self._unsent -= 1
        try:
            if self.broken is not None:
                raise self.broken()
            if not self._pending:
                self._pace = Pace.of_body(self._patience)
            cookie = next(self._cookies)
            self._pending[cookie] = pending
            wanted = Request(0, command, cookie, pending.offset, length)
            with self._breaking():
                await self._wire.send(nbdclient.request(self.opened.style, wanted))
        finally:
            self._sending.release()

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Wait for an answer that makes ``ready`` true. Raises a SourceError."""
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
        """Take in the next part of some answer."""
        asked = trio.current_time()
        try:
            with trio.fail_after(self._pace.left):
                received = await take_step(self._wire, self._step)
        except trio.TooSlowError:
            self._break(Unreachable, self._pace.complaint(str(self._place)))
            return
        except (EndOfStream, trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(Unreachable, _broken_off(self._place, error))
            return
        self._pace.received(len(received), trio.current_time() - asked)
        try:
            self._step = self._replies.send(received)
        except ProtocolError as error:
            self._break(BadAnswer, error.message)

    async def leave(self) -> None:
        """Tell the server that nothing follows, and close."""
        if self.broken is None and not self._pending:
            goodbye = Request(0, Command.DISC, 0, 0, 0)
            with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(_GOODBYE):
                await self._wire.send(nbdclient.request(self.opened.style, goodbye))
        await self.aclose()

    async def aclose(self) -> None:
        self._break(Unreachable, f"the connection to {self._place} was closed")
        await trio.aclose_forcefully(self._wire.stream)

    def _break(self, kind: type[LazyfsError], why: str) -> None:
        if self.broken is None:
            self.broken = lambda: kind(why)
        self.changed()

    @contextlib.contextmanager
    def _breaking(self) -> Iterator[None]:
        """What leaves here may have been half sent."""
        try:
            yield
        except (trio.BrokenResourceError, trio.ClosedResourceError) as error:
            self._break(Unreachable, _broken_off(self._place, error))
            raise Unreachable(_broken_off(self._place, error)) from error
        except BaseException:
            self._break(Unreachable, f"the connection to {self._place} was given up")
            raise


async def connect(place: Place, tls: ssl.SSLContext | None, patience: float) -> Connection:
    """Connect to a server, and choose the export. Raises a SourceError."""
    try:
        with trio.fail_after(patience):
            wire = Wire(await _open_stream(place))
    except trio.TooSlowError as error:
        raise Unreachable(f"cannot connect to {place}: no answer") from error
    except OSError as error:
        raise Unreachable(f"cannot connect to {place}: {reason(error)}") from error
    try:
        handshake = Handshake(place.export, [nbd.ALLOCATION], tls=place.tls)
        with trio.fail_after(patience):
            opened = await converse(wire, handshake.run(), tls, place.certified)
        return Connection(wire, opened, place, patience)
    except BaseException as error:
        await trio.aclose_forcefully(wire.stream)
        translated = _translated(error, place)
        if translated is None:
            raise
        raise translated from error


async def _open_stream(place: Place) -> trio.SocketStream:
    if place.socket is not None:
        return await trio.open_unix_socket(place.socket)
    return await trio.open_tcp_stream(place.host, place.port)


def _translated(error: BaseException, place: Place) -> LazyfsError | None:
    """What a failed handshake means; None for what is none of its failures."""
    if isinstance(error, trio.TooSlowError):
        return Unreachable(f"{place} fell silent")
    if isinstance(error, Refused):
        return _refusal(error)
    if isinstance(error, EndOfStream):
        return Unreachable(f"{place} closed the connection; it may have no such export")
    if isinstance(error, ProtocolError):
        return BadAnswer(error.message, "check the URL, and its port")
    if isinstance(error, trio.BrokenResourceError | trio.ClosedResourceError):
        return untrusted(place.certified, error) or Unreachable(_broken_off(place, error))
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
    """What it means that a request failed."""
    name = Error(failed.number).name if failed.number in set(Error) else str(failed.number)
    what = f"the server fails with E{name}{f': {failed.said}' if failed.said else ''}"
    if failed.number in (Error.IO, Error.NOMEM):
        return ServerBusy(what)
    if failed.number == Error.SHUTDOWN:
        return Unreachable(what)
    return BadAnswer(what)


def _broken_off(place: Place, error: BaseException) -> str:
    if isinstance(error, EndOfStream):
        return f"{place} broke off"
    return f"the connection to {place} broke: {reason(error)}"

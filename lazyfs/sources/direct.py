"""Kept-alive connections to one origin, with as little between socket and answer as can be.

For the requests that count: the ranges of an image whose server is known, without a proxy. What the
codec (``http1.py``) does not interpret is left to the complete client (``http.py``).

Several requests can be sent at once (RFC 9112 section 9.3.2, pipelining): their answers come one
behind the other, for one round trip. The caller takes them in order, each to its end.

An idle connection may have been closed by the server in the meantime. One that shows it is dropped;
one that breaks before the first byte of its answer is replaced by a fresh one, once: a GET may be
repeated (RFC 9110 section 9.2.2).

What is too slow is told from what is only slow by ``pace.py``.
"""

import select
import ssl
import time
from collections import deque
from collections.abc import Mapping
from typing import Protocol

import trio

from lazyfs.core.address import Origin
from lazyfs.core.errors import BadAnswer, LazyfsError, Unreachable
from lazyfs.sources import http1
from lazyfs.sources.failures import reason, untrusted
from lazyfs.sources.stall import Pace

_RECEIVE = 256 << 10  # bytes asked of the socket at a time
_MOST_INTERIM = 16  # 1xx answers before the answer proper
_IDLE = 55.0  # seconds that an unused connection is kept; servers close theirs after 60 or 75


class _Stream(Protocol):
    """What a TCP and a TLS stream of trio have in common."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def aclose(self) -> None: ...


class _Encrypted(trio.abc.Stream):
    """The TCP stream below a TLS stream. While ``waits`` is off, it has nothing to give.

    So the TLS stream can be asked whether it holds bytes that nobody has read: it may have received
    them together with others, and then the socket shows nothing of them.
    """

    def __init__(self, tcp: trio.SocketStream) -> None:
        self._tcp = tcp
        self.waits = True

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if not self.waits:
            raise trio.WouldBlock
        return await self._tcp.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await self._tcp.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._tcp.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._tcp.aclose()


class Connection:
    """One connection, in use or idle."""

    __slots__ = ("_below", "_poll", "_rested", "_slept", "expected", "stream", "unread")

    def __init__(self, stream: _Stream, fd: int, below: _Encrypted | None = None) -> None:
        """``below``: what a TLS stream stands on."""
        self.stream = stream
        self.expected = 0  # answers that have not been read to their end
        self.unread = bytearray()  # received already
        self._rested = self._slept = 0.0
        self._below = below
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def rest(self) -> None:
        """It is idle from now on."""
        self._rested, self._slept = trio.current_time(), time_suspended()

    async def usable(self) -> bool:
        """Whether it can be used again: young enough, and the server has not said anything.

        Between answers a server has nothing to say but that it closes. What it says all the same
        must not be taken for the next answer.
        """
        idle = trio.current_time() - self._rested + time_suspended() - self._slept
        if idle >= _IDLE or self._poll.poll(0):
            return False
        return self._below is None or await self._says_nothing(self._below)

    async def _says_nothing(self, below: _Encrypted) -> bool:
        below.waits = False
        try:
            await self.stream.receive_some(1)
        except trio.WouldBlock:
            return True
        except trio.BrokenResourceError:
            return False
        finally:
            below.waits = True
        return False


class DirectAnswer:
    """The answer to one request: its head, and its body as an async iterator of pieces."""

    def __init__(self, origin: "DirectOrigin", connection: Connection, head: http1.Head) -> None:
        self.status = head.status
        self.headers: Mapping[str, str] = head.headers
        self.counted = head.length is not None
        self.connection: Connection | None = connection  # None once closed
        self._origin = origin
        self._keep = head.keep and self.counted
        self._left = head.length or 0
        self._pace = Pace.of_body(origin.patience)

    def __aiter__(self) -> "DirectAnswer":
        return self

    async def __anext__(self) -> bytes | bytearray:
        if self._left == 0 or self.connection is None:
            raise StopAsyncIteration
        unread = self.connection.unread
        piece: bytes | bytearray
        if unread:
            piece = unread[: self._left]
            del unread[: self._left]
        else:
            # One byte more than there should be, to see whether there is one.
            most = min(self._left + 1, _RECEIVE)
            piece = await self._origin.receive(self.connection, most, self._pace)
            unread += piece[self._left :]
            piece = piece[: self._left] if unread else piece
        self._left -= len(piece)
        return piece

    async def aclose(self) -> None:
        """Leave the connection to who needs it next if the whole answer was read, else close it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            await self._origin.finished(connection, good=self._keep and self._left == 0)

    async def abandon(self) -> None:
        """Close it, and its connection: the answers that follow there will not be asked for."""
        self._keep = False
        await self.aclose()


class DirectOrigin:
    """Connections to one origin."""

    def __init__(self, origin: Origin, tls: ssl.SSLContext | None, patience: float) -> None:
        """``patience``: seconds that a server which does not get on is waited for."""
        self.patience = patience
        self._origin = origin
        self._tls = tls
        self._idle: deque[Connection] = deque()

    async def get(self, request: bytes, count: int = 1) -> tuple[DirectAnswer, bool]:
        """Send ``request``; returns its answer, and whether the connection was open before.

        ``count``: how many requests these bytes are; the answers to the others are had by
        ``following``. Raises Unreachable, UntrustedServer or BadAnswer.
        """
        connection = await self._reuse()
        if connection is not None:
            try:
                return await self._exchange(connection, request, count), True
            except (Unreachable, BadAnswer) as error:
                # Closed by the server while it was idle, or it had said more than it announced:
                # a fresh connection heals that. Silence has used up the time for another try; the
                # way to the server may have forgotten the others too.
                if isinstance(error.__cause__, trio.TooSlowError):
                    await self.close_idle()
                    raise
        return await self._exchange(await self._connect(), request, count), False

    async def following(self, connection: Connection) -> DirectAnswer | None:
        """The next answer on a connection, the one before having been closed.

        None when there is none to come, because that one was not read to its end, or ended the
        connection. Raises Unreachable or BadAnswer.
        """
        if not connection.expected:
            return None
        return await self._answer(connection)

    async def receive(self, connection: Connection, most: int, pace: Pace) -> bytes | bytearray:
        """At least one byte of an answer. Raises Unreachable."""
        asked = trio.current_time()
        try:
            with trio.fail_after(pace.left):
                piece = await connection.stream.receive_some(most)
        except trio.TooSlowError as error:
            raise Unreachable(pace.complaint(self._origin.host)) from error
        except (trio.BrokenResourceError, OSError) as error:
            raise Unreachable(f"the connection to {self._origin.host} broke") from error
        if not piece:
            raise Unreachable(f"{self._origin.host} broke off")
        pace.received(len(piece), trio.current_time() - asked)
        return piece

    async def finished(self, connection: Connection, *, good: bool) -> None:
        """An answer has been closed. ``good``: the connection can go on."""
        connection.expected -= 1
        if good and connection.expected:
            return
        if good and not connection.unread:
            connection.rest()
            self._idle.append(connection)
        else:
            connection.expected = 0
            await _close(connection)

    async def close_idle(self) -> None:
        while self._idle:
            await _close(self._idle.pop())

    async def _reuse(self) -> Connection | None:
        """The idle connection that was used last, if one is still good."""
        while self._idle:
            connection = self._idle.pop()
            if await connection.usable():
                return connection
            await _close(connection)
        return None

    async def _connect(self) -> Connection:
        host = self._origin.host
        try:
            with trio.fail_after(self.patience):
                tcp = await trio.open_tcp_stream(host, self._origin.port)
                try:
                    return await self._made_ready(tcp)
                except BaseException:
                    await trio.aclose_forcefully(tcp)
                    raise
        except trio.TooSlowError as error:
            raise Unreachable(f"cannot connect to {host}: no answer") from error
        except (trio.BrokenResourceError, OSError) as error:
            raise _refused(host, error) from error

    async def _made_ready(self, tcp: trio.SocketStream) -> Connection:
        """Where nobody listens on a port of this machine, it may be given to a connection to that
        very port, which then is its own other end. It would also keep the server from coming back.
        """
        if tcp.socket.getsockname() == tcp.socket.getpeername():
            raise Unreachable(f"cannot connect to {self._origin.host}: nobody listens there")
        if self._tls is None:
            return Connection(tcp, tcp.socket.fileno())
        below = _Encrypted(tcp)
        tls = trio.SSLStream(
            below, self._tls, server_hostname=self._origin.host, https_compatible=True
        )
        await tls.do_handshake()
        return Connection(tls, tcp.socket.fileno(), below)

    async def _exchange(self, connection: Connection, request: bytes, count: int) -> DirectAnswer:
        """Send; then the first answer's head. Closes the connection if that fails."""
        try:
            await self._send(connection, request)
        except BaseException:
            await _close(connection)
            raise
        connection.expected = count
        return await self._answer(connection)

    async def _answer(self, connection: Connection) -> DirectAnswer:
        """The next answer, its head received. Closes the connection if that fails."""
        try:
            return DirectAnswer(self, connection, await self._receive_head(connection))
        except BaseException:
            connection.expected = 0
            await _close(connection)
            raise

    async def _receive_head(self, connection: Connection) -> http1.Head:
        """The head of an answer; interim answers are skipped."""
        pace = Pace.of_head(self.patience)
        for _ in range(_MOST_INTERIM):
            while (parsed := http1.parse_head(connection.unread)) is None:
                connection.unread += await self.receive(connection, _RECEIVE, pace)
            head, taken = parsed
            del connection.unread[:taken]
            if not head.interim:
                return head
        raise BadAnswer("the server never comes to its answer")

    async def _send(self, connection: Connection, request: bytes) -> None:
        try:
            with trio.fail_after(self.patience):
                await connection.stream.send_all(request)
        except trio.TooSlowError as error:
            raise Unreachable(f"{self._origin.host} takes no requests") from error
        except (trio.BrokenResourceError, OSError) as error:
            raise Unreachable(f"the connection to {self._origin.host} broke") from error


def time_suspended() -> float:
    """Seconds that this machine has slept: its clocks stand still, and connections are forgotten
    meanwhile, but no socket shows it."""
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


async def _close(connection: Connection) -> None:
    """Close at once: there is nothing to say goodbye for."""
    await trio.aclose_forcefully(connection.stream)  # type: ignore[arg-type]  # any trio stream


def _refused(host: str, error: Exception) -> LazyfsError:
    return untrusted(host, error) or Unreachable(f"cannot connect to {host}: {reason(error)}")

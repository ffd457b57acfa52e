"""The fast path: keep-alive connections to one origin, with minimal code between socket and answer.

It serves range requests to an image's known server, without a proxy. Answers that the codec
(``http1.py``) does not interpret are left to the fallback path (``fallback.py``).

Several requests can be sent at once (RFC 9112 section 9.3.2, pipelining): their answers follow one
another, for one round trip. The caller takes them in order, each to its end. Whether a server does
that is learned (``learned.py``).

The server may have closed an idle connection in the meantime. One that shows this is dropped; one
that breaks before the first byte of its answer is replaced by a fresh one, once: a GET may be
repeated (RFC 9110 section 9.2.2).

``stall.py`` defines when a server is too slow.
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
from lazyfs.sources.learned import Pipelining, next_answer_within
from lazyfs.sources.slots import Host
from lazyfs.sources.stall import StallTimer

_RECEIVE = 256 << 10  # bytes requested from the socket at a time
_MOST_INTERIM = 16  # 1xx answers before the final answer
_IDLE = 55.0  # seconds that an idle connection is kept; servers close theirs after 60 or 75


class _Stream(Protocol):
    """The common interface of trio's TCP and TLS streams."""

    async def send_all(self, data: bytes) -> None: ...
    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray: ...
    async def aclose(self) -> None: ...


class _Encrypted(trio.abc.Stream):
    """The TCP stream below a TLS stream. While ``waits`` is off, it raises WouldBlock on reads.

    This shows whether the TLS stream holds unread bytes: it may have received them together with
    others, in which case the socket does not show them.
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
        """``below``: the TCP stream below a TLS stream."""
        self.stream = stream
        self.expected = 0  # answers that have not been read to their end
        self.unread = bytearray()  # received, but not consumed
        self._rested = self._slept = 0.0
        self._below = below
        self._poll = select.poll()
        self._poll.register(fd, select.POLLIN)

    def rest(self) -> None:
        """Note that the connection is idle from now on."""
        self._rested, self._slept = trio.current_time(), time_suspended()

    async def usable(self) -> bool:
        """Whether it can be reused: not idle for too long, and no data or EOF from the server.

        Between answers a server sends nothing but EOF. Other data must not be taken for the next
        answer.
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


class FastAnswer:
    """The answer to one request: its head, and its body as an async iterator of pieces."""

    def __init__(self, origin: "FastOrigin", connection: Connection, head: http1.Head) -> None:
        self.status = head.status
        self.headers: Mapping[str, str] = head.headers
        self.counted = head.length is not None
        self.connection: Connection | None = connection  # None once closed
        self._origin = origin
        self._ends = not head.keep  # whether the server closes the connection behind it
        self._keep = head.keep and self.counted
        self._left = head.length or 0
        self._stall = StallTimer.of_body(origin.patience)

    def __aiter__(self) -> "FastAnswer":
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
            # One byte more than expected, to detect excess data.
            most = min(self._left + 1, _RECEIVE)
            piece = await self._origin.receive_body(self.connection, most, self._stall)
            unread += piece[self._left :]
            piece = piece[: self._left] if unread else piece
        self._left -= len(piece)
        return piece

    async def aclose(self) -> None:
        """Keep the connection for reuse if the whole answer was read, else close it."""
        connection, self.connection = self.connection, None
        if connection is not None:
            if self._ends and connection.expected > 1:
                self._origin.pipelining.failed()
            await self._origin.finished(connection, good=self._keep and self._left == 0)

    async def abandon(self) -> None:
        """Close it and its connection: the answers that follow on it will not be read."""
        self._keep = False
        await self.aclose()


class FastOrigin:
    """Connections to one origin."""

    def __init__(
        self,
        origin: Origin,
        tls: ssl.SSLContext | None,
        patience: float,
        host: Host | None = None,
    ) -> None:
        """``patience``: seconds to wait for a server that makes no progress.

        ``host``: what is known of it beside.
        """
        self.patience = patience
        self.pipelining = Pipelining()
        self._host = host or Host(origin.host, 1, patience, patience)
        self._origin = origin
        self._tls = tls
        self._idle: deque[Connection] = deque()

    async def get(self, request: bytes, count: int = 1) -> tuple[FastAnswer, bool]:
        """Send ``request``; returns its answer, and whether the connection was reused.

        ``count``: the number of requests in these bytes; ``following`` returns the answers to the
        others. Raises Unreachable, UntrustedServer or BadAnswer.
        """
        connection = await self._reuse()
        if connection is not None:
            try:
                return await self._exchange(connection, request, count), True
            except (Unreachable, BadAnswer) as error:
                # The server closed it while idle, or had sent more than announced: a fresh
                # connection cures that. A timeout leaves no time for another try, and something on
                # the path may have dropped the state of the other connections too.
                if isinstance(error.__cause__, trio.TooSlowError):
                    await self.close_idle()
                    raise
        return await self._exchange(await self._connect(), request, count), False

    async def following(self, connection: Connection) -> FastAnswer | None:
        """The next answer on a connection; the previous one must have been closed.

        None if no answer follows, because the previous one was not read to its end or ended the
        connection, or because the server has nothing more to say. Raises Unreachable or BadAnswer.
        """
        if not connection.expected or not await self._goes_on(connection):
            return None
        return await self._answer(connection)

    async def _goes_on(self, connection: Connection) -> bool:
        """Wait for the beginning of the next answer, no longer than a fresh request would take.

        Closes the connection if none comes.
        """
        if connection.unread:
            return True
        link = self._host.link
        bound = next_answer_within(link.round_trip, link.rate)
        pace = StallTimer.of_head(min(bound, self.patience))
        try:
            connection.unread += await self.receive(connection, _RECEIVE, pace)
        except Unreachable as error:
            self.pipelining.failed(silently=isinstance(error.__cause__, trio.TooSlowError))
            await self._give_up(connection)
            return False
        except BaseException:
            await self._give_up(connection)
            raise
        return True

    async def receive_body(
        self, connection: Connection, most: int, pace: StallTimer
    ) -> bytes | bytearray:
        """Receive at least one byte of a body. Raises Unreachable."""
        try:
            return await self.receive(connection, most, pace)
        except Unreachable as error:
            # A server that closes with requests unread loses what it has answered (RFC 9112
            # section 9.6).
            if connection.expected > 1 and not isinstance(error.__cause__, trio.TooSlowError):
                self.pipelining.failed()
            raise

    async def receive(
        self, connection: Connection, most: int, pace: StallTimer
    ) -> bytes | bytearray:
        """Receive at least one byte of an answer. Raises Unreachable."""
        asked = trio.current_time()
        try:
            with trio.fail_after(pace.left):
                piece = await connection.stream.receive_some(most)
        except trio.TooSlowError as error:
            raise Unreachable(pace.verdict(self._origin.host)) from error
        except (trio.BrokenResourceError, OSError) as error:
            raise Unreachable(f"the connection to {self._origin.host} broke") from error
        if not piece:
            raise Unreachable(f"{self._origin.host} broke off")
        pace.received(len(piece), trio.current_time() - asked)
        return piece

    async def finished(self, connection: Connection, *, good: bool) -> None:
        """Note that an answer has been closed. ``good``: whether its connection can be reused."""
        connection.expected -= 1
        if good and connection.expected:
            return
        if good and not connection.unread:
            connection.rest()
            self._idle.append(connection)
        else:
            await self._give_up(connection)

    async def close_idle(self) -> None:
        while self._idle:
            await _close(self._idle.pop())

    async def _reuse(self) -> Connection | None:
        """The most recently used idle connection that is still usable; None for none."""
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
        """Start TLS if needed, and reject TCP self-connects. Raises Unreachable.

        Connecting to a local port without a listener can succeed if the kernel picks that port as
        the source port. Such a connection would also keep the server from binding it again.
        """
        if tcp.socket.getsockname() == tcp.socket.getpeername():
            raise Unreachable(f"cannot connect to {self._origin.host}: nobody listens there")
        if self._tls is None:
            return Connection(tcp, tcp.socket.fileno())
        below = _Encrypted(tcp)
        tls = trio.SSLStream(
            below, self._tls, server_hostname=self._origin.certified, https_compatible=True
        )
        await tls.do_handshake()
        return Connection(tls, tcp.socket.fileno(), below)

    async def _exchange(self, connection: Connection, request: bytes, count: int) -> FastAnswer:
        """Send, and receive the first answer's head. Closes the connection if that fails."""
        try:
            await self._send(connection, request)
        except BaseException:
            await _close(connection)
            raise
        connection.expected = count
        return await self._answer(connection)

    async def _answer(self, connection: Connection) -> FastAnswer:
        """Receive the head of the next answer. Closes the connection if that fails."""
        try:
            return FastAnswer(self, connection, await self._receive_head(connection))
        except BaseException:
            await self._give_up(connection)
            raise

    async def _give_up(self, connection: Connection) -> None:
        connection.expected = 0
        await _close(connection)

    async def _receive_head(self, connection: Connection) -> http1.Head:
        """Receive the head of an answer; interim answers are skipped."""
        wait, asked = self._host.heads.left, trio.current_time()
        pace = StallTimer.of_head(wait)
        for _ in range(_MOST_INTERIM):
            while (parsed := http1.parse_head(connection.unread)) is None:
                connection.unread += await self._receive_some_of_head(connection, pace, wait)
            head, taken = parsed
            del connection.unread[:taken]
            if not head.interim:
                self._host.heads.came(trio.current_time() - asked)
                return head
        raise BadAnswer("the server never comes to its answer")

    async def _receive_some_of_head(
        self, connection: Connection, pace: StallTimer, wait: float
    ) -> bytes | bytearray:
        try:
            return await self.receive(connection, _RECEIVE, pace)
        except Unreachable as error:
            if isinstance(error.__cause__, trio.TooSlowError):
                self._host.heads.ran_out(wait)
            raise

    async def _send(self, connection: Connection, request: bytes) -> None:
        try:
            with trio.fail_after(self.patience):
                await connection.stream.send_all(request)
        except trio.TooSlowError as error:
            raise Unreachable(f"{self._origin.host} takes no requests") from error
        except (trio.BrokenResourceError, OSError) as error:
            raise Unreachable(f"the connection to {self._origin.host} broke") from error


def time_suspended() -> float:
    """Seconds that this machine has been suspended since boot.

    Its monotonic clock stops meanwhile; connections are dropped, but no socket shows it.
    """
    return time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)


async def _close(connection: Connection) -> None:
    """Close at once: there is nothing left to send."""
    await trio.aclose_forcefully(connection.stream)  # type: ignore[arg-type]  # any trio stream


def _refused(host: str, error: Exception) -> LazyfsError:
    return untrusted(host, error) or Unreachable(f"cannot connect to {host}: {reason(error)}")

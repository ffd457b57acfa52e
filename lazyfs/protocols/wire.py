"""A dialogue of the NBD protocol, held over a stream of trio.

Raises EndOfStream when the other end goes in the middle of it, and what trio raises when the
connection breaks.
"""

import ssl

import trio

from lazyfs.core.errors import InternalError
from lazyfs.protocols.nbd import Dialogue, ProtocolError, Receive, ReceiveSome, Send, Step, T

_RECEIVE = 256 << 10  # bytes asked of the stream at a time
_JOIN = 64 << 10  # bytes up to which copying costs less than another call


class EndOfStream(ProtocolError):
    """The other end has closed the connection in the middle of something."""

    def __init__(self) -> None:
        super().__init__("the other end has closed the connection")


class Wire:
    """A stream, and what was received of it that nobody has taken yet."""

    def __init__(self, stream: trio.abc.Stream) -> None:
        self.stream = stream
        self._unread = bytearray()

    async def send(self, head: bytes, content: bytes = b"") -> None:
        if not content:
            await self.stream.send_all(head)
        elif len(content) <= _JOIN:
            await self.stream.send_all(head + content)
        else:
            await self.stream.send_all(head)
            await self.stream.send_all(content)

    async def receive_some(self, most: int = _RECEIVE) -> bytes:
        """Some bytes; none at the end of the stream."""
        if self._unread:
            return self._take(most)
        received = await self.stream.receive_some(_RECEIVE)
        if len(received) > most:
            self._unread += received[most:]
            return bytes(received[:most])
        return bytes(received)

    async def receive(self, count: int) -> bytes:
        """Exactly so many bytes."""
        while len(self._unread) < count:
            received = await self.stream.receive_some(_RECEIVE)
            if not received:
                raise EndOfStream
            self._unread += received
        return self._take(count)

    async def start_tls(self, context: ssl.SSLContext, host: str | None, *, server: bool) -> None:
        """Encrypt all that follows. ``host``: whose certificate is expected.

        What came before its time was not encrypted, and may be anybody's.
        """
        if self._unread:
            raise ProtocolError("the other end goes on unencrypted after asking for TLS")
        stream = trio.SSLStream(
            self.stream, context, server_hostname=host, server_side=server, https_compatible=True
        )
        await stream.do_handshake()
        self.stream = stream

    async def aclose(self) -> None:
        await self.stream.aclose()

    def _take(self, most: int) -> bytes:
        taken = bytes(self._unread[:most])
        del self._unread[:most]
        return taken


async def converse(
    wire: Wire,
    dialogue: Dialogue[T],
    tls: ssl.SSLContext | None = None,
    host: str | None = None,
    *,
    server: bool = False,
) -> T:
    """Hold a dialogue to its end; returns its result. ``tls``: for a dialogue that may ask for it.

    ``host``: whose certificate a client expects.
    """
    try:
        step = next(dialogue)
        while True:
            step = dialogue.send(await take_step(wire, step, tls, host, server=server))
    except StopIteration as end:
        result: T = end.value
        return result


async def take_step(
    wire: Wire,
    step: Step,
    tls: ssl.SSLContext | None = None,
    host: str | None = None,
    *,
    server: bool = False,
) -> bytes:
    """Do what a dialogue wants next; returns the bytes that it is to be sent."""
    if isinstance(step, Send):
        await wire.send(step.content)
    elif isinstance(step, Receive):
        return await wire.receive(step.count)
    elif isinstance(step, ReceiveSome):
        received = await wire.receive_some(step.most)
        if not received:
            raise EndOfStream
        return received
    elif tls is None:
        raise InternalError("a dialogue asks for TLS, and has not been given any")
    else:
        await wire.start_tls(tls, host, server=server)
    return b""

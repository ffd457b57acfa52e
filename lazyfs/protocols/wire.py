"""Running dialogues of the NBD protocol over a trio stream.

Raises EndOfStream if the other end disconnects in the middle, and trio's exceptions if the
connection breaks.
"""

import ssl

import trio

from lazyfs.core.errors import InternalError
from lazyfs.protocols.nbd import Dialogue, ProtocolError, Receive, ReceiveSome, Send, Step, T

_RECEIVE = 256 << 10  # bytes requested from the stream at a time
_JOIN = 64 << 10  # bytes: up to this, copying costs less than another call


class EndOfStream(ProtocolError):
    """The other end has closed the connection in the middle of a dialogue."""

    def __init__(self) -> None:
        super().__init__("the other end has closed the connection")


class Wire:
    """A stream with a buffer of received bytes."""

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
        """Receive some bytes; none at the end of the stream."""
        if self._unread:
            return self._take(most)
        received = await self.stream.receive_some(_RECEIVE)
        if len(received) > most:
            self._unread += received[most:]
            return bytes(received[:most])
        return bytes(received)

    async def receive(self, count: int) -> bytes:
        """Receive exactly ``count`` bytes. Raises EndOfStream."""
        while len(self._unread) < count:
            received = await self.stream.receive_some(_RECEIVE)
            if not received:
                raise EndOfStream
            self._unread += received
        return self._take(count)

    async def start_tls(self, context: ssl.SSLContext, host: str | None, *, server: bool) -> None:
        """Start TLS. ``host``: the name that the other end's certificate must be for.

        Raises ProtocolError if data are already buffered: unencrypted, they may be injected.
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
    """Run a dialogue to its end; returns its result.

    ``tls``: for a dialogue that may start TLS.
    ``host``: the name that the server's certificate must be for.
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
    """Execute a dialogue's step; returns the bytes to send to the dialogue."""
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

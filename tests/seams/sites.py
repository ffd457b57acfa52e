"""Servers and proxies on loopback that say what a test tells them, in the same trio loop."""

import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio


@dataclass(frozen=True)
class Request:
    """What a client asked. ``fields``: names in lower case; ``to``: the Host field."""

    method: str
    target: str
    fields: dict[str, str]

    @property
    def to(self) -> str:
        return self.fields["host"]

    @property
    def span(self) -> tuple[int, int]:
        """First and last byte asked for."""
        first, _, last = self.fields["range"].removeprefix("bytes=").partition("-")
        return int(first), int(last)


@dataclass(frozen=True)
class Reply:
    """Bytes as they go on the wire, and what becomes of the connection after them.

    ``hang_up``: it is closed. ``later``: more bytes, sent as soon as that event is set.
    """

    raw: bytes
    hang_up: bool = False
    wait: trio.Event | None = None
    later: bytes = b""


Script = Callable[[Request], Reply | None]


@dataclass
class Site:
    """A server with one image. The script may change while it runs; None means a right answer."""

    content: bytes
    host: str
    port: int
    scheme: str
    script: Script = lambda _: None
    requests: list[Request] = field(default_factory=list)
    accepted: int = 0  # connections
    ended: int = 0  # connections
    _end: trio.Event = field(default_factory=trio.Event)

    def url(self, path: str = "/image.raw", login: str = "") -> str:
        at = f"{login}@" if login else ""
        return f"{self.scheme}://{at}{self.authority}{path}"

    @property
    def authority(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def right(self, request: Request, *more: str) -> Reply:
        """The right answer, with more header lines."""
        first, last = request.span
        return Reply(part(self.content, first, min(last, len(self.content) - 1), *more))

    async def serve(self, stream: trio.abc.Stream) -> None:
        """One connection, until either side closes it."""
        self.accepted += 1
        try:
            await self._converse(stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # the client has gone: it may
        finally:
            await trio.aclose_forcefully(stream)
            self.ended += 1
            self._end.set()
            self._end = trio.Event()

    async def until_ended(self, count: int) -> None:
        """Wait until so many connections have ended."""
        with trio.fail_after(30):
            while self.ended < count:
                await self._end.wait()

    async def _converse(self, stream: trio.abc.Stream) -> None:
        received = bytearray()
        while (request := await read_request(stream, received)) is not None:
            self.requests.append(request)
            reply = self.script(request) or self.right(request)
            await stream.send_all(reply.raw)
            if reply.wait is not None:
                await reply.wait.wait()
                await stream.send_all(reply.later)
            if reply.hang_up:
                return


def response(status: int, *lines: str, body: bytes = b"") -> bytes:
    """A whole answer with a counted body."""
    counted = f"Content-Length: {len(body)}"
    return "\r\n".join([f"HTTP/1.1 {status} x", counted, *lines, "", ""]).encode() + body


def part(content: bytes, first: int, last: int, *more: str) -> bytes:
    """A right 206."""
    lines = [f"Content-Range: bytes {first}-{last}/{len(content)}", 'ETag: "v1"', *more]
    return response(206, *lines, body=content[first : last + 1])


def chunked(content: bytes, first: int, last: int, size: int = 1000) -> bytes:
    """A right 206 in chunks."""
    lines = ["HTTP/1.1 206 x", f"Content-Range: bytes {first}-{last}/{len(content)}"]
    head = "\r\n".join([*lines, 'ETag: "v1"', "Transfer-Encoding: chunked", "", ""]).encode()
    body = content[first : last + 1]
    pieces = [body[start : start + size] for start in range(0, len(body), size)]
    return head + b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in [*pieces, b""])


async def read_request(stream: trio.abc.Stream, received: bytearray) -> Request | None:
    """The next request on a connection; None when the client has closed it."""
    while b"\r\n\r\n" not in received:
        piece = await stream.receive_some()
        if not piece:
            return None
        received += piece
    head, _, rest = bytes(received).partition(b"\r\n\r\n")
    received[:] = rest
    first, *lines = head.decode("ascii").split("\r\n")
    method, target, version = first.split(" ")
    assert version == "HTTP/1.1"
    fields = {name.lower(): value for name, value in (line.split(": ", 1) for line in lines)}
    assert len(fields) == len(lines), "a field came twice"
    return Request(method, target, fields)


@asynccontextmanager
async def serving(
    content: bytes = b"", *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[Site]:
    """A site, until the block ends; then all its connections break."""
    async with listening(host) as (listeners, nursery):
        port = listeners[0].socket.getsockname()[1]
        site = Site(content, host, port, "https" if tls else "http")

        async def accept(stream: trio.SocketStream) -> None:
            if tls is None:
                await site.serve(stream)
            else:
                wrapped = trio.SSLStream(stream, tls, server_side=True, https_compatible=True)
                await site.serve(wrapped)

        nursery.start_soon(trio.serve_listeners, accept, listeners)
        yield site


@asynccontextmanager
async def listening(
    host: str = "127.0.0.1",
) -> AsyncIterator[tuple[list[trio.SocketListener], trio.Nursery]]:
    """Listeners on a free port, and a nursery for who serves them; both end with the block."""
    listeners = await trio.open_tcp_listeners(0, host=host)
    try:
        async with trio.open_nursery() as nursery:
            yield listeners, nursery
            nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            await trio.aclose_forcefully(listener)


# A proxy


@dataclass
class Proxy:
    """Forwards requests for http URLs, and opens tunnels for CONNECT.

    ``refuse``: what it answers to each request instead.
    """

    port: int
    refuse: bytes = b""
    requests: list[Request] = field(default_factory=list)

    def url(self, login: str = "") -> str:
        return f"http://{login}{'@' if login else ''}127.0.0.1:{self.port}"

    async def serve(self, stream: trio.SocketStream) -> None:
        try:
            received = bytearray()
            while (request := await read_request(stream, received)) is not None:
                self.requests.append(request)
                if self.refuse:
                    await stream.send_all(self.refuse)
                elif request.method == "CONNECT":
                    await _tunnel(stream, request.target)
                    return
                else:
                    await _forward(stream, request)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)


@asynccontextmanager
async def proxying() -> AsyncIterator[Proxy]:
    async with listening() as (listeners, nursery):
        proxy = Proxy(listeners[0].socket.getsockname()[1])
        nursery.start_soon(trio.serve_listeners, proxy.serve, listeners)
        yield proxy


async def _forward(stream: trio.SocketStream, request: Request) -> None:
    """Ask the server for it, on a connection of its own, and hand back all that it says."""
    scheme, _, rest = request.target.partition("://")
    assert scheme == "http", "a proxy is asked for whole URLs"
    authority, _, path = rest.partition("/")
    fields = {k: v for k, v in request.fields.items() if not k.startswith("proxy-")}
    lines = [f"GET /{path} HTTP/1.1", *(f"{k}: {v}" for k, v in fields.items()), "", ""]
    async with await _dial(authority) as server:
        await server.send_all("\r\n".join(lines).encode())
        received = bytearray()
        while b"\r\n\r\n" not in received:
            received += await server.receive_some()
        head = bytes(received).partition(b"\r\n\r\n")[0].lower()
        length = int(head.partition(b"content-length: ")[2].partition(b"\r\n")[0])
        while len(received) < len(head) + 4 + length:
            received += await server.receive_some()
        await stream.send_all(received)


async def _tunnel(stream: trio.SocketStream, authority: str) -> None:
    async with await _dial(authority) as server, trio.open_nursery() as nursery:
        await stream.send_all(b"HTTP/1.1 200 Connected\r\n\r\n")

        async def pump(source: trio.SocketStream, sink: trio.SocketStream) -> None:
            async for piece in source:
                await sink.send_all(piece)
            nursery.cancel_scope.cancel()

        nursery.start_soon(pump, stream, server)
        nursery.start_soon(pump, server, stream)


async def _dial(authority: str) -> trio.SocketStream:
    host, _, port = authority.rpartition(":")
    return await trio.open_tcp_stream(host, int(port))

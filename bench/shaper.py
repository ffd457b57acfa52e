"""A TCP proxy that simulates a link with a longer round trip and a lower rate.

It models:

- a round trip: every byte is delayed by half of it, each way, and the first byte of a new
  connection is delayed by a whole round trip, for TCP's handshake;
- a rate for each direction, shared by all connections: the link is busy until a certain time, and
  connections take turns on it with pieces of 16 KiB;
- loss of connections: a fraction of them is reset at a random moment of their first seconds.

It does not model slow start, packet loss or headers, so it flatters tools that open many
connections or let them idle. Buffers are bounded: a connection has at most one round trip's worth
of bytes (plus a little) in flight, so a reader that stops also stops the sender.

Stand-alone::

    python -m bench.shaper --listen 127.0.0.1:8081 --to 127.0.0.1:8080 --rtt 20ms --rate 200M

It prints its listening address, then one line of counters (JSON) for each line on its standard
input, and another one at its end.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import re
import selectors
import signal
import socket
import struct
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

PIECE = 16 << 10
"""Bytes of a connection's turn: 0.7 ms at 200 Mbit/s, the most that it delays another one."""

LATENESS = 0.003
"""Seconds for which an idle link accumulates credit, to compensate for late wake-ups."""

SPARE = 256 << 10
"""Bytes that a connection may have in flight beyond the link's bandwidth-delay product."""

UNLIMITED_WINDOW = 16 << 20
"""Bytes that a connection may have in flight if the rate is unlimited."""

CUT_WITHIN = 5.0
"""Seconds: connections are cut at a random moment within this time."""


@dataclass(frozen=True)
class Link:
    """A link.

    `rtt`: the round trip in seconds.
    `rate`: in bit/s; 0: unlimited.
    `drop`: the fraction of connections that are cut.
    """

    rtt: float = 0.0
    rate: float = 0.0
    drop: float = 0.0

    @property
    def window(self) -> int:
        """Bytes that one connection may have in flight in one direction."""
        return int(self.rate / 8 * self.rtt) + SPARE if self.rate else UNLIMITED_WINDOW


@dataclass
class Counters:
    """Counters since the start. `down`: bytes delivered to the client; `up`: bytes from it."""

    connections: int = 0
    open: int = 0
    cut: int = 0
    up: int = 0
    down: int = 0


class Wire:
    """One direction of the link, shared by all connections."""

    def __init__(self, rate: float, now: Callable[[], float]) -> None:
        self._seconds_per_byte = 8 / rate if rate else 0.0
        self._now = now
        self._busy_until = 0.0

    def transmit(self, length: int) -> float:
        """Put `length` bytes on the wire; returns the time at which the last one leaves."""
        now = self._now()
        start = max(now - LATENESS, self._busy_until)
        self._busy_until = start + length * self._seconds_per_byte
        return max(now, self._busy_until)


class Window:
    """Bounds the bytes that a connection has in flight."""

    def __init__(self, size: int) -> None:
        self._free = size
        self._opened = asyncio.Event()

    async def take(self, length: int) -> None:
        """Wait until some bytes are free, then take `length` (may overdraw by one piece)."""
        while self._free <= 0:
            self._opened.clear()
            await self._opened.wait()
        self._free -= length

    def give(self, length: int) -> None:
        """Give back delivered bytes."""
        self._free += length
        self._opened.set()


class Flow:
    """One direction of one connection: reads, delays, and writes."""

    def __init__(
        self,
        source: socket.socket,
        target: socket.socket,
        wire: Wire,
        link: Link,
        count: Callable[[int], None],
    ) -> None:
        self._source, self._target = source, target
        self._wire, self._delay, self._count = wire, link.rtt / 2, count
        self._window = Window(link.window)
        self._on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    async def send(self) -> None:
        """Take pieces from the source at the wire's rate, until its end."""
        while piece := await self._receive():
            sent = self._wire.transmit(len(piece))
            self._on_the_way.put_nowait((sent + self._delay, piece))
            await self._until(sent)
            await self._window.take(len(piece))
        self._on_the_way.put_nowait((self._loop.time() + self._delay, b""))

    async def deliver(self) -> None:
        """Give pieces to the target when they are due; an empty one is the end."""
        while True:
            due, piece = await self._on_the_way.get()
            await self._until(due)
            if not piece:
                self._target.shutdown(socket.SHUT_WR)
                return
            await self._loop.sock_sendall(self._target, piece)
            self._count(len(piece))
            self._window.give(len(piece))

    async def _receive(self) -> bytes:
        return await self._loop.sock_recv(self._source, PIECE)

    async def _until(self, moment: float) -> None:
        if (remaining := moment - self._loop.time()) > 0:
            await asyncio.sleep(remaining)


class Shaper:
    """Accepts connections and carries them over the link."""

    def __init__(self, target: tuple[str, int], link: Link, seed: int) -> None:
        self.counters = Counters()
        self._target, self._link = target, link
        self._loop = asyncio.get_running_loop()
        self._up = Wire(link.rate, self._loop.time)
        self._down = Wire(link.rate, self._loop.time)
        self._chance = random.Random(seed)

    async def serve(self, listener: socket.socket) -> None:
        """Accept until cancelled; then every connection is reset."""
        async with asyncio.TaskGroup() as tasks:
            while True:
                client, _ = await self._loop.sock_accept(listener)
                tasks.create_task(self._carry(client))

    async def _carry(self, client: socket.socket) -> None:
        self.counters.connections += 1
        self.counters.open += 1
        doomed = self._chance.random() < self._link.drop
        life = asyncio.timeout(self._chance.uniform(0, CUT_WITHIN) if doomed else None)
        try:
            async with life:
                await self._connect_and_pump(client)
        except* OSError:
            pass  # one end was lost, or the connection was cut: both have been reset
        finally:
            self.counters.cut += life.expired()
            self.counters.open -= 1

    async def _connect_and_pump(self, client: socket.socket) -> None:
        with reset_unless_finished(client) as finish_client:
            prepare(client)
            await asyncio.sleep(self._link.rtt)
            server = socket.socket()
            with reset_unless_finished(server) as finish_server:
                prepare(server)
                await self._loop.sock_connect(server, self._target)
                await self._pump(client, server)
                finish_client()
                finish_server()

    async def _pump(self, client: socket.socket, server: socket.socket) -> None:
        up = Flow(client, server, self._up, self._link, self._count_up)
        down = Flow(server, client, self._down, self._link, self._count_down)
        async with asyncio.TaskGroup() as tasks:
            for flow in (up, down):
                tasks.create_task(flow.send())
                tasks.create_task(flow.deliver())

    def _count_up(self, length: int) -> None:
        self.counters.up += length

    def _count_down(self, length: int) -> None:
        self.counters.down += length


def prepare(connection: socket.socket) -> None:
    """Disable Nagle's algorithm, and limit the kernel's buffers to the link's spare."""
    connection.settimeout(0)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        connection.setsockopt(socket.SOL_SOCKET, buffer, SPARE)


@contextlib.contextmanager
def reset_unless_finished(connection: socket.socket) -> Iterator[Callable[[], None]]:
    """Close the socket at the end: with a reset, unless the yielded function was called."""
    finished = False

    def finish() -> None:
        nonlocal finished
        finished = True

    try:
        yield finish
    finally:
        if not finished:
            at_once = struct.pack("ii", 1, 0)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        connection.close()


async def run(listener: socket.socket, target: tuple[str, int], link: Link, seed: int) -> None:
    """Serve until SIGTERM or SIGINT; answers each line on standard input with the counters."""
    shaper = Shaper(target, link, seed)
    loop = asyncio.get_running_loop()
    serving = asyncio.create_task(shaper.serve(listener))
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, serving.cancel)
    with contextlib.suppress(OSError, ValueError):  # stdin is closed, or cannot be waited for
        loop.add_reader(sys.stdin, answer, loop, shaper)
    with contextlib.suppress(asyncio.CancelledError):
        await serving
    report(shaper)


def answer(loop: asyncio.AbstractEventLoop, shaper: Shaper) -> None:
    """Handle a line of input, or the end of input."""
    if sys.stdin.readline():
        report(shaper)
    else:
        loop.remove_reader(sys.stdin)


def report(shaper: Shaper) -> None:
    """Print the counters."""
    print(json.dumps(asdict(shaper.counters)), flush=True)


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop on select(2), with timeouts in microseconds; epoll's are in milliseconds."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


def seconds(text: str) -> float:
    """Read a duration: 20ms, 0.3s."""
    if match := re.fullmatch(r"([\d.]+)(ms|s)", text):
        return float(match[1]) * (0.001 if match[2] == "ms" else 1)
    raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 20ms or 0.3s")


def bits(text: str) -> float:
    """Read a rate in bit/s: 200M, 1G; 0 is unlimited."""
    if match := re.fullmatch(r"([\d.]+)([kMG]?)", text):
        return float(match[1]) * {"": 1, "k": 1e3, "M": 1e6, "G": 1e9}[match[2]]
    raise argparse.ArgumentTypeError(f"{text!r} is not a rate in bit/s such as 200M")


def address(text: str) -> tuple[str, int]:
    """Read HOST:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host, int(port)


def arguments(argv: list[str] | None = None) -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser("bench.shaper", description="a TCP proxy that shapes")
    parser.add_argument("--listen", type=address, default=("127.0.0.1", 0), metavar="HOST:PORT")
    parser.add_argument("--to", type=address, required=True, metavar="HOST:PORT")
    parser.add_argument("--rtt", type=seconds, default=0.0, help="round trip: 20ms")
    parser.add_argument("--rate", type=bits, default=0.0, help="bit/s each way: 200M; 0: unlimited")
    parser.add_argument("--drop", type=float, default=0.0, help="fraction of connections to cut")
    parser.add_argument("--seed", type=int, default=1, help="which connections are cut, and when")
    return parser.parse_args(argv)


def main() -> None:
    """Run as a program."""
    options = arguments()
    with contextlib.suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -10)  # late wake-ups would be measured as latency
    listener = socket.create_server(options.listen, backlog=1024)
    listener.settimeout(0)
    print("{}:{}".format(*listener.getsockname()), flush=True)
    link = Link(options.rtt, options.rate, options.drop)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(run(listener, options.to, link, options.seed))


if __name__ == "__main__":
    main()

"""The server for all tools: nginx, behind a shaping proxy.

Both are on loopback. A network namespace with a veth pair would add nothing: the proxy determines
the round trip and the rate, so the kernel's path between two sockets does not affect the result,
and loopback needs no addresses, routes or forwarding that could collide with the machine's own.
Other traffic on loopback does not share the shaped link.

The image is served from a tmpfs, so that dropping the page cache between runs empties the tools'
caches and not the server's. On the link "lan", tools connect to nginx directly.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import system
from bench.image import Image
from bench.shaper import Link

LINKS = {
    "lan": Link(),
    "wan": Link(rtt=0.020, rate=200e6),
    "far": Link(rtt=0.080, rate=50e6),
    "lossy": Link(rtt=0.300, rate=50e6, drop=0.01),
}

NAME = "image"

CONFIGURATION = """\
daemon off;
user root;
worker_processes 1;
pid {room}/nginx.pid;
error_log {room}/error.log;
events {{ worker_connections 1024; }}
http {{
    log_format bench '$bytes_sent $msec $request_time $http_range';
    access_log {room}/access.log bench;
    sendfile on;
    server {{
        listen 127.0.0.1:{port} backlog=1024;
        root {room}/www;
        autoindex on;
        location = /nginx-status {{ stub_status; access_log off; }}
    }}
}}
"""


def describe(link: Link) -> str:
    """A link in words."""
    if link == Link():
        return "no delay, no limit"
    drop = f", {link.drop:.0%} of connections cut" if link.drop else ""
    return f"{link.rtt * 1e3:.0f} ms round trip, {link.rate / 1e6:.0f} Mbit/s{drop}"


@dataclass(frozen=True)
class Traffic:
    """The traffic so far: bytes to the client, requests answered, connections opened."""

    bytes: int = 0
    requests: int = 0
    connections: int = 0

    def since(self, earlier: Traffic) -> Traffic:
        """The traffic since an earlier count."""
        return Traffic(
            self.bytes - earlier.bytes,
            self.requests - earlier.requests,
            self.connections - earlier.connections,
        )


@dataclass(frozen=True)
class Request:
    """A request that nginx has answered.

    `sent`: bytes.
    `began`, `ended`: POSIX seconds.
    `range`: the Range header, unparsed; ``-`` without one.
    """

    sent: int
    began: float
    ended: float
    range: str


def parse(line: str) -> Request:
    """Parse a line of nginx's log."""
    sent, ended, taken, wanted = line.split(" ", 3)
    return Request(int(sent), float(ended) - float(taken), float(ended), wanted)


def timeline(requests: Sequence[Request]) -> str:
    """Requests as lines: begin and end in seconds after the first, bytes sent, and the range."""
    first = min((request.began for request in requests), default=0.0)
    by_begin = sorted(requests, key=lambda request: request.began)
    lines = (
        f"{r.began - first:8.3f} {r.ended - first:8.3f} {r.sent:9} {r.range}" for r in by_begin
    )
    return "".join(f"{line}\n" for line in lines)


class Server:
    """nginx with one image; `room` is its private directory."""

    def __init__(self, room: Path, port: int) -> None:
        self._room, self._port = room, port
        self._log = room / "access.log"
        self._shown: Path | None = None

    def show(self, image: Image) -> None:
        """Serve this image, copied into memory."""
        if self._shown != image.path:
            shutil.copyfile(image.path, self._room / "www" / NAME)
            self._shown = image.path

    @contextlib.contextmanager
    def behind(self, link: Link, seed: int) -> Iterator[Way]:
        """A way to the server over that link. `seed` selects the connections that are cut."""
        if link == Link():
            yield Way(self, self._port, None)
            return
        with shaper(self._port, link, seed) as process:
            port = int(read_line(process).rpartition(":")[2])
            yield Way(self, port, process)

    def log(self) -> list[Request]:
        """The completed requests, in the order of their ends."""
        return [parse(line) for line in self._log.read_text().splitlines()]

    def idle(self) -> bool:
        """Whether no connection is open except the one for this check."""
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=5)
        with contextlib.closing(connection):
            connection.request("GET", "/nginx-status")
            status = connection.getresponse().read().decode()
        match = re.search(r"Active connections: (\d+)", status)
        return match is not None and int(match[1]) <= 1


class Way:
    """A way to the server, and the traffic on it."""

    def __init__(self, server: Server, port: int, process: subprocess.Popen[str] | None) -> None:
        self._server, self._process = server, process
        self._before = len(server.log())
        self.root = f"http://127.0.0.1:{port}/"
        self.url = self.root + NAME

    def traffic(self) -> Traffic:
        """The traffic. Bytes are the proxy's count; without a proxy, of completed requests."""
        requests = self.requests()
        if self._process is None:
            return Traffic(sum(request.sent for request in requests), len(requests))
        assert self._process.stdin is not None
        print(file=self._process.stdin, flush=True)
        counters = json.loads(read_line(self._process))
        return Traffic(counters["down"], len(requests), counters["connections"])

    def requests(self) -> list[Request]:
        """The completed requests."""
        return self._server.log()[self._before :]

    def settle(self) -> None:
        """Wait briefly until all requests have ended and are in the log."""
        system.wait_until(self._server.idle, 3.0)


@contextlib.contextmanager
def serving(room: Path, size: int) -> Iterator[Server]:
    """nginx, with room for an image of `size` bytes in memory."""
    www = room / "www"
    www.mkdir()
    system.run(["mount", "-t", "tmpfs", "-o", f"size={size + (64 << 20)}", "lazyfs-bench", www])
    try:
        port = free_port()
        configuration = room / "nginx.conf"
        configuration.write_text(CONFIGURATION.format(room=room, port=port))
        process = subprocess.Popen(["nginx", "-c", configuration], text=True)
        try:
            wait_for_port(port)
            yield Server(room, port)
        finally:
            system.end(process)
    finally:
        system.unmount(www)


@contextlib.contextmanager
def shaper(port: int, link: Link, seed: int) -> Iterator[subprocess.Popen[str]]:
    """The shaping proxy in its own process, so that nothing here delays it."""
    command = [sys.executable, "-m", "bench.shaper", "--to", f"127.0.0.1:{port}"]
    command += ["--rtt", f"{link.rtt}s", "--rate", str(link.rate), "--drop", str(link.drop)]
    process = subprocess.Popen(
        [*command, "--seed", str(seed)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent,
    )  # fmt: skip
    try:
        yield process
    finally:
        system.end(process)


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that the proxy prints. Raises Failed if it has died."""
    assert process.stdout is not None
    if line := process.stdout.readline():
        return line
    raise system.Failed("the shaping proxy has died")


def free_port() -> int:
    """A port that is currently free."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def wait_for_port(port: int) -> None:
    """Wait until a server listens. Raises Failed."""

    def listens() -> bool:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return True
        return False

    if not system.wait_until(listens, 10):
        raise system.Failed("nginx does not listen: see its messages above")

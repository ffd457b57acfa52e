"""Servers and networks that fail for a while, or for good, under a mount.

What passes is sat out: no read fails before its deadline, and the next request goes over a fresh
connection. What does not pass ends reads at once, and is said once.
"""

import errno
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from email.utils import formatdate
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from real.mounts import COMMAND_LIMIT, Lab, Mounted, ReadFailed, read
from real.servers import HTTP_DATE, MTIME, Certificates, Request
from real.waiting import eventually

from lazyfs.core.options import CacheOptions, ImageOptions, StackOptions
from lazyfs.images.open import open_stack

from .server import (
    CloseBeforeAnswer,
    Cut,
    Drip,
    Fault,
    FaultServer,
    Reset,
    Stall,
    Status,
)

MIB = 1 << 20
CONTENT = bytes(range(251)) * 17000  # about 4 MiB
STEP = 128 << 10  # bytes from one read to the next: each is in a block of its own
AGAIN = "data are coming in again"


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(**{"image.raw": CONTENT}) as running:
        yield running


@contextmanager
def opened(lab: Lab, url: str, *options: str) -> Iterator[Mounted]:
    """A mount that reads nothing ahead, and may complain."""
    with lab.mounted("--readahead", "0", *options, url, troubled=True) as mounted:
        yield mounted


def read_one(mounted: Mounted, number: int, limit: float = 30.0) -> float:
    """Read block ``number`` of those that the tests read; returns how many seconds it took."""
    offset = number * STEP
    started = time.monotonic()
    assert read(mounted.image, offset, 4096, limit=limit) == CONTENT[offset : offset + 4096]
    return time.monotonic() - started


def fails(mounted: Mounted, number: int) -> float:
    """A read that must fail; returns how many seconds that took."""
    started = time.monotonic()
    with pytest.raises(ReadFailed) as failure:
        read(mounted.image, number * STEP, 4096)
    assert failure.value.errno == errno.EIO
    return time.monotonic() - started


def asked(server: FaultServer, least: int) -> bool:
    """Whether the server has got more than so many requests."""
    return len(server.requests) > least


def can_read(mounted: Mounted, number: int) -> bool:
    try:
        return read_one(mounted, number) < COMMAND_LIMIT
    except ReadFailed:
        return False


# What passes

PAGE = b"<html><h1>502 Bad Gateway</h1></html>"
LATER = formatdate(MTIME + 1, usegmt=True)  # a second after HTTP_DATE

PASSING: dict[str, Fault] = {
    "a reset": Reset(),
    "a hang-up": CloseBeforeAnswer(),
    "a cut body": Cut(100),
    "a cut head": Cut(0),
    "500": Status(500),
    "502 and its page": Status(502, (("Content-Type", "text/html"),), PAGE),
    "503": Status(503),
    "504": Status(504),
    "429, in a second": Status(429, (("Retry-After", "1"),)),
    "429, at a date": Status(429, (("Date", HTTP_DATE), ("Retry-After", LATER))),
    "503, in a second": Status(503, (("Retry-After", "1"),)),
}


@pytest.mark.parametrize("case", PASSING)
def test_three_failures_in_a_row_cost_no_read(lab: Lab, server: FaultServer, case: str) -> None:
    with opened(lab, server.url("image.raw")) as mounted:
        server.script = lambda _: PASSING[case] if server.faults < 3 else None
        took = read_one(mounted, 1)
        assert server.faults == 3
        eventually(lambda: AGAIN in mounted.messages(), "it says so", 5)
        assert len(mounted.complaints()) == 1
        read_one(mounted, 2)
    if "Retry-After" in str(PASSING[case]):
        assert took >= 3 * 0.95


@pytest.mark.parametrize("case", [Stall(), Stall(100), Drip(10.0), Drip(10.0, after=100)], ids=repr)
def test_silence_is_ridden_out_within_the_deadline(
    lab: Lab, server: FaultServer, case: Fault
) -> None:
    """A read has time for more than one try."""
    with opened(lab, server.url("image.raw"), "--timeout", "9") as mounted:
        server.script = lambda _: case if not server.faults else None
        assert read_one(mounted, 1) < 9
        assert server.faults == 1


def test_three_seconds_without_a_server_cost_no_read(lab: Lab, server: FaultServer) -> None:
    with opened(lab, server.url("image.raw")) as mounted, ThreadPoolExecutor(1) as pool:
        reads = pool.map(lambda number: read_one(mounted, number), range(30))
        eventually(partial(asked, server, 8), "the reader is at work")
        server.stop()
        eventually(lambda: "retrying" in mounted.messages(), "the daemon notices")
        time.sleep(3)
        server.start()
        assert max(reads) < 15
        assert AGAIN in mounted.messages()


def test_a_server_that_restarts_all_the_time(lab: Lab, server: FaultServer) -> None:
    with opened(lab, server.url("image.raw")) as mounted, ThreadPoolExecutor(2) as pool:
        reads = pool.map(lambda number: read_one(mounted, number), range(32))
        for count in range(2, 26, 4):
            eventually(partial(asked, server, count), "some blocks are read")
            server.stop()
            server.start()
        assert max(reads) < 15


def test_an_image_is_mounted_while_its_server_is_away_if_it_is_known(
    lab: Lab, server: FaultServer
) -> None:
    url = server.url("image.raw")
    with opened(lab, url) as mounted:
        read_one(mounted, 1)
    server.stop()
    with opened(lab, url) as mounted, ThreadPoolExecutor(1) as pool:
        read_one(mounted, 1)
        reading = pool.submit(read_one, mounted, 2)
        eventually(lambda: "retrying" in mounted.messages(), "the daemon tries")
        server.start()
        reading.result(30)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> list[Certificates]:
    return [Certificates(tmp_path_factory.mktemp("certificates")) for _ in range(2)]


@pytest.fixture
def tls_server(certificates: list[Certificates]) -> Iterator[FaultServer]:
    server = FaultServer(**{"image.raw": CONTENT})
    server.tls = certificates[0].server()
    with server:
        yield server


def test_a_server_that_has_lost_its_tls_for_a_while(
    lab: Lab, tls_server: FaultServer, certificates: list[Certificates]
) -> None:
    trusted = ["--cacert", str(certificates[0].file)]
    context = tls_server.tls
    with (
        opened(lab, tls_server.url("image.raw"), *trusted) as mounted,
        ThreadPoolExecutor(1) as pool,
    ):
        read_one(mounted, 1)
        tls_server.stop()
        tls_server.tls = None
        tls_server.start()
        reading = pool.submit(read_one, mounted, 2)
        eventually(lambda: "does not speak TLS" in mounted.messages(), "the daemon notices")
        tls_server.stop()
        tls_server.tls = context
        tls_server.start()
        reading.result(30)


# Networks


class Forgetful:
    """A way to a server that can forget its connections, as firewalls and address translators do:
    nothing more goes over those, in neither direction, and neither end is told. New ones work."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._open: list[socket.socket] = []
        self._forgotten = 0  # how many sockets of the list
        self._threads = [threading.Thread(target=self._accept)]

    def __enter__(self) -> "Forgetful":
        self._threads[0].start()
        return self

    def __exit__(self, *error: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        for end in self._open:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()
        for end in [self._listener, *self._open]:
            end.close()

    def forget(self) -> None:
        self._forgotten = len(self._open)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # the listener has been shut down
                return
            server = socket.create_connection(("127.0.0.1", self._to))
            number = len(self._open)
            self._open += [client, server]
            for source, sink in ((client, server), (server, client)):
                thread = threading.Thread(target=self._pump, args=(number, source, sink))
                self._threads.append(thread)
                thread.start()

    def _pump(self, number: int, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while piece := source.recv(65536):
                if number >= self._forgotten:
                    sink.sendall(piece)
            if number >= self._forgotten:
                sink.shutdown(socket.SHUT_WR)


def test_connections_that_were_forgotten_on_the_way(lab: Lab, server: FaultServer) -> None:
    """As after a suspend. However many are idle, it costs the patience for one, and no read."""
    with Forgetful(server.port) as way:
        url = f"http://127.0.0.1:{way.port}/image.raw"
        with opened(lab, url, "--timeout", "9") as mounted, ThreadPoolExecutor(8) as pool:
            assert all(pool.map(lambda number: read_one(mounted, number), range(8)))
            way.forget()
            assert max(pool.map(lambda number: read_one(mounted, number), range(8, 16))) < 9


class _Names(trio.abc.HostnameResolver):
    """Knows every name, but for ``failures`` look-ups."""

    def __init__(self) -> None:
        self.failures = 0

    async def getaddrinfo(self, host: Any, port: Any, *hints: int) -> Any:
        if self.failures:
            self.failures -= 1
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", int(port)))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


async def test_a_name_that_is_not_known_for_a_while(
    server: FaultServer, tmp_path: Path, expected_log: Callable[..., None]
) -> None:
    """The whole stack, and a resolver that fails as one without a network does."""
    expected_log("Temporary failure in name resolution; check the network and the URL; retrying")
    names = _Names()
    trio.socket.set_custom_hostname_resolver(names)
    url = server.url("image.raw", "mirror.test")
    options = StackOptions(images=(ImageOptions(url, "image.raw"),), cache=CacheOptions(tmp_path))
    try:
        async with open_stack(options) as stack, trio.open_nursery() as nursery:
            nursery.start_soon(stack.run)
            names.failures = 4
            server.stop()  # so that a new connection is needed
            server.start()
            with trio.fail_after(15):
                assert await stack.images[0].device.read(MIB, 4096) == CONTENT[MIB : MIB + 4096]
            assert not names.failures
            nursery.cancel_scope.cancel()
    finally:
        trio.socket.set_custom_hostname_resolver(None)


# What does not pass


FINAL: dict[str, tuple[Fault, str]] = {
    "401": (Status(401), "wants a login"),
    "403": (Status(403), "access is forbidden"),
    "404": (Status(404), "no such file on the server"),
    "410": (Status(410), "no such file on the server"),
}


@pytest.mark.parametrize("case", FINAL)
def test_what_does_not_pass_ends_reads_at_once_and_is_said_once(
    lab: Lab, server: FaultServer, case: str
) -> None:
    fault, says = FINAL[case]
    with opened(lab, server.url("image.raw")) as mounted, ThreadPoolExecutor(8) as pool:
        server.script = lambda request: fault if beyond_the_opening(request) else None
        assert max(pool.map(lambda number: fails(mounted, number), range(1, 25))) < 5
        assert [says in line for line in mounted.complaints()] == [True]
        server.script = lambda _: None
        assert read_one(mounted, 26) < 5


def beyond_the_opening(request: Request) -> bool:
    return not request.opens


def test_a_certificate_that_no_longer_holds_is_said_once(
    lab: Lab, tls_server: FaultServer, certificates: list[Certificates]
) -> None:
    trusted = ["--cacert", str(certificates[0].file)]
    with (
        opened(lab, tls_server.url("image.raw"), *trusted) as mounted,
        ThreadPoolExecutor(8) as pool,
    ):
        tls_server.stop()
        tls_server.tls = certificates[1].server()
        tls_server.start()
        assert max(pool.map(lambda number: fails(mounted, number), range(1, 25))) < 5
        assert ["does not hold" in line for line in mounted.complaints()] == [True]


def test_reads_that_run_out_of_time_are_said_once(lab: Lab, server: FaultServer) -> None:
    with (
        opened(lab, server.url("image.raw"), "--timeout", "2") as mounted,
        ThreadPoolExecutor(8) as pool,
    ):
        server.stop()
        assert max(pool.map(lambda number: fails(mounted, number), range(1, 9))) < 5
        said = [line for line in mounted.complaints() if "no data within 2 seconds" in line]
        assert len(said) == 1
        assert "Connection refused" in said[0]
        server.start()
        eventually(lambda: can_read(mounted, 10), "it reads again")

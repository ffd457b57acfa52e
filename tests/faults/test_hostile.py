"""Servers that mean harm, or are something else: what the user is told, on the terminal and later.

Each answer of the table ends a mount before it begins, with one line that says why; and while an
image is mounted it ends a read, with the same words in the log: in time, with no byte taken for
what it is not, in bounded memory, and without harm to the next read.
"""

import errno
import re
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from real.mounts import Lab, Mounted, ReadFailed, is_mounted, read
from real.servers import Certificates, Request
from real.waiting import eventually

from .server import (
    CloseBeforeAnswer,
    Cut,
    Delay,
    Drip,
    Endless,
    Fault,
    FaultServer,
    Garbage,
    Stall,
    Status,
    With,
    WrongRange,
    WrongTotal,
    WrongValidator,
)

MIB = 1 << 20
CONTENT = bytes(range(251)) * 17000  # about 4 MiB
TIMEOUT = 2  # seconds that a read may take
LIMIT = 15.0  # seconds in which a command must have ended
MEMORY = 48 * MIB  # by which a daemon may grow at most

SILENT = (r"fell silent", r"no data within 2 seconds")
STEP = 128 << 10  # bytes from one read to the next: each is in a block of its own


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(**{"image.raw": CONTENT}) as running:
        yield running


def moved(where: str) -> Fault:
    return Status(302, (("Location", where),))


def field(name: str, *values: str) -> Fault:
    """The right answer with this field in it, once for each value."""
    return With(((name, f"\r\n{name}: ".join(values)),))


HEAD = b"HTTP/1.1 206 Partial Content\r\nContent-Length: 1\r\n"
NO_URL = "redirects to something that is no HTTP URL"
TOO_LARGE = "bytes, and no more than 64 TiB can be handled"
SENSELESS = "Content-Range makes no sense"
MALFORMED = "sent a malformed header"

# What a server does, and the words for it: when mounting, and (where they differ) while mounted.
HOSTILE: dict[str, tuple[Fault, str] | tuple[Fault, str, str]] = {
    "header lines without end": (Endless("headers"), "has no end"),
    "a header line without end": (Endless("line"), "has no end"),
    "a body without end": (Endless("body"), "sent more than the range asked for"),
    "a whole image without end": (Endless("body", 200), "does not support range requests"),
    "interim answers without end": (Endless("interim"), "never comes to its answer"),
    "redirects without end": (Endless("redirects"), "more than 10 redirects"),
    "a redirect to itself": (moved("/image.raw"), "more than 10 redirects"),
    "a redirect to a file": (moved("file:///etc/passwd"), NO_URL),
    "a redirect to ftp": (moved("ftp://127.0.0.1/image.raw"), NO_URL),
    "a redirect to nonsense": (moved("http://[bad/"), NO_URL),
    "a redirect to no host": (moved("http://a..b/"), NO_URL),
    "a redirect to a host that cannot be": (
        moved("http://\xb6/"), "cannot be the name of a host"),
    "another start": (WrongRange(1), "another range than", "asked for bytes 1048576 to"),
    "another end": (
        field("Content-Range", f"bytes 0-1/{len(CONTENT)}"), "for a range of 2", "sent 0 to 1"),
    "another total": (field("Content-Range", "bytes 0-0/0"), SENSELESS),
    "no total": (
        field("Content-Range", "bytes 0-0/*"), "does not say which part of how", "sent 0 to 0"),
    "a negative total": (WrongTotal(-5), SENSELESS),
    "a total of 2^62": (WrongTotal(1 << 62), TOO_LARGE),
    "a total of 2^63": (WrongTotal(1 << 63), TOO_LARGE),
    "a total of 2^64": (WrongTotal(1 << 64), TOO_LARGE),
    "a total of 10^30": (WrongTotal(10**30), TOO_LARGE),
    "nothing at all": (Status(416, (("Content-Range", "bytes */0"),)), "is empty", "has changed"),
    "a length that contradicts": (
        field("Content-Length", "5"), "5 bytes for a range of 65536", "sent 5 bytes for a range"),
    "two lengths": (field("Content-Length", "1", "2"), "is not valid HTTP"),
    "two ranges": (field("Content-Range", "bytes 0-0/5", "bytes 0-0/6"), SENSELESS),
    "two ways to end": (field("Transfer-Encoding", "chunked"), "in two ways how long"),
    "several parts": (field("Content-Type", "multipart/byteranges; boundary=x"), "multipart body"),
    "a content coding": (field("Content-Encoding", "gzip"), "content coding 'gzip'"),
    "a NUL": (field("X-Name", "a\0b"), MALFORMED),
    "a control character": (field("X-Name", "\x1b[31mred"), MALFORMED),
    "a folded line": (field("X-Name", "a\r\n b"), MALFORMED),
    "HTTP/0.9": (Garbage(b"<html>the image</html>"), "is not HTTP"),
    "garbage": (Garbage(b"\x93\x1f\0\xff" * 500), "is not HTTP"),
    "TLS": (Garbage(b"\x15\x03\x01\0\x02\x02\x46"), "not HTTP, but TLS; try https://"),
    "silence": (Stall(), *SILENT),
    "silence in the head": (Garbage(HEAD, hang_up=False), *SILENT),
    "silence in the body": (Stall(0), *SILENT),
    "a slow drip": (Drip(1.0), *SILENT),
}  # fmt: skip


def refused(lab: Lab, *arguments: str) -> str:
    """The one line that a mount ends with before it begins."""
    at = lab.mountpoint()
    started = time.monotonic()
    done = lab.start("--timeout", str(TIMEOUT), "--no-cache", *arguments, at)
    assert time.monotonic() - started < LIMIT
    assert done.returncode == 1, done.stderr
    assert done.stderr.startswith("lazyfs: ")
    assert done.stderr.count("\n") == 1
    assert not is_mounted(at)
    return done.stderr


@pytest.mark.parametrize("case", HOSTILE)
def test_a_mount_is_refused_in_one_line(lab: Lab, server: FaultServer, case: str) -> None:
    fault, says, *_ = HOSTILE[case]
    server.script = lambda _: fault
    said = refused(lab, server.url("image.raw"))
    assert re.search(says, said)
    assert server.url("image.raw") in said
    assert server.faults


@pytest.mark.parametrize("case", sorted(HOSTILE.keys() - {"a body without end"}))
def test_a_read_fails_and_the_next_one_does_not(lab: Lab, server: FaultServer, case: str) -> None:
    fault, *says = HOSTILE[case]
    with opened(lab, server) as mounted:
        before = mounted.peak_memory()
        server.script = partial(beyond_the_opening, fault)
        with pytest.raises(ReadFailed) as failure:
            read(mounted.image, MIB, 4096, limit=LIMIT)
        assert failure.value.errno == errno.EIO
        logged(mounted, says[-1])
        assert mounted.peak_memory() - before < MEMORY
        server.script = lambda _: None
        eventually(lambda: can_read(mounted, 3 * MIB), "it reads again")


def test_of_an_endless_body_nothing_is_taken_but_what_is_right(
    lab: Lab, server: FaultServer
) -> None:
    """It begins well, so the read may succeed; it is told by its excess."""
    with opened(lab, server) as mounted:
        server.script = partial(beyond_the_opening, Endless("body"))
        with suppress(ReadFailed):
            assert read(mounted.image, MIB, 4096, limit=LIMIT) == CONTENT[MIB : MIB + 4096]
        logged(mounted, "more than the range asked for")
        server.script = lambda _: None
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT


def logged(mounted: Mounted, says: str) -> None:
    eventually(lambda: bool(re.search(says, mounted.messages())), f"{says!r} is logged", 6)


@contextmanager
def opened(lab: Lab, server: FaultServer) -> Iterator[Mounted]:
    with lab.mounted(
        "--timeout", str(TIMEOUT), "--readahead", "0", server.url("image.raw"), troubled=True
    ) as mounted:
        yield mounted


def can_read(mounted: Mounted, offset: int) -> bool:
    try:
        found = read(mounted.image, offset, 4096)
    except ReadFailed:
        return False
    assert found == CONTENT[offset : offset + 4096]
    return True


# What is no server of images


@contextmanager
def talker(says: bytes) -> Iterator[int]:
    """A server that speaks before it is asked, as those of mail do; its port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:  # closed
                    return
                with connection:
                    connection.sendall(says)
                    connection.recv(4096)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


@pytest.mark.parametrize("says", [b"220 mail.test ESMTP\r\n", b"SSH-2.0-OpenSSH_9.2\r\n"])
def test_an_answer_before_the_question(lab: Lab, says: bytes) -> None:
    with talker(says) as port:
        said = refused(lab, f"http://127.0.0.1:{port}/image.raw")
    assert "is not HTTP; check the URL, and its port" in said


def test_nobody_answers_on_an_open_port(lab: Lab) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        said = refused(lab, f"http://127.0.0.1:{listener.getsockname()[1]}/image.raw")
    assert "127.0.0.1 fell silent" in said


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
def tls_server(certificates: Certificates) -> Iterator[FaultServer]:
    server = FaultServer(**{"image.raw": CONTENT})
    server.tls = certificates.server()
    with server:
        yield server


def test_tls_where_none_is_expected(lab: Lab, tls_server: FaultServer) -> None:
    said = refused(lab, tls_server.url("image.raw").replace("https", "http"))
    assert "broke off" in said or "TLS" in said


def test_no_tls_where_it_is_expected(lab: Lab, server: FaultServer) -> None:
    said = refused(lab, server.url("image.raw").replace("http", "https"))
    assert "it does not speak TLS" in said


def test_tls_that_is_too_old(lab: Lab, tls_server: FaultServer, certificates: Certificates) -> None:
    """Nothing that both speak: told in words."""
    assert tls_server.tls
    tls_server.tls.maximum_version = ssl.TLSVersion.TLSv1_2
    tls_server.tls.set_ciphers("AES128-SHA")  # for RSA keys, and this one is none
    said = refused(lab, "--cacert", str(certificates.file), tls_server.url("image.raw"))
    assert "handshake failure" in said


@pytest.mark.parametrize("allowed", [False, True])
def test_from_https_down_to_http(
    lab: Lab,
    server: FaultServer,
    tls_server: FaultServer,
    certificates: Certificates,
    allowed: bool,
) -> None:
    tls_server.script = lambda _: moved(server.url("image.raw"))
    trusted = ["--cacert", str(certificates.file)]
    if not allowed:
        said = refused(lab, *trusted, tls_server.url("image.raw"))
        assert "redirects from https to http; use --insecure-redirects" in said
        assert server.requests == []
        return
    with lab.mounted(*trusted, "--insecure-redirects", tls_server.url("image.raw")) as mounted:
        assert read(mounted.image, MIB, 4096) == CONTENT[MIB : MIB + 4096]


# Secrets

LOGIN = "ursula:geheim-4711"
TOKEN = "token-0815"


def echo(*names: str) -> Fault:
    """A server that puts what it was told into each of these fields."""
    return With(tuple((name, f"{LOGIN} {TOKEN}") for name in names))


BABBLE: dict[str, Fault] = {
    "a status line": Garbage(f"HTTP/1.1 {LOGIN} {TOKEN}\r\n\r\n".encode()),
    "no HTTP": Garbage(f"{LOGIN} {TOKEN}\r\n".encode()),
    "a redirect": moved(f"ftp://{LOGIN}@127.0.0.1/?{TOKEN}"),
    "a redirect to nobody": moved(f"http://{LOGIN}@127.0.0.1:1/?x={TOKEN}"),
    "a coding": echo("Content-Encoding"),
    "a range": echo("Content-Range"),
    "a length": echo("Content-Length"),
    "two codings": echo("Transfer-Encoding"),
    "a type": field("Content-Type", f"multipart/byteranges; boundary={TOKEN}"),
    "a page": Status(502, (("Retry-After", TOKEN),), f"<html>{LOGIN} {TOKEN}".encode()),
}


@pytest.mark.parametrize("proxy", [False, True], ids=["straight", "by a proxy"])
@pytest.mark.parametrize("case", BABBLE)
def test_what_a_server_babbles_out_is_not_repeated(
    lab: Lab, server: FaultServer, case: str, proxy: bool
) -> None:
    """A server knows the login and the token that it was sent; here it puts them everywhere."""
    server.script = lambda _: BABBLE[case]
    name, _, word = LOGIN.partition(":")
    url = server.url("image.raw").replace("//", f"//{LOGIN}@")
    more = ["--header", f"X-Token: {TOKEN}", "--verbose", "--log-file", str(lab.directory / "log")]
    if proxy:
        more += ["--proxy", f"http://{LOGIN}@127.0.0.1:{server.port}"]
    said = refused(lab, *more, url) + log_of(lab.directory / "log")
    assert server.faults
    assert [secret for secret in (name, word, TOKEN) if secret in said] == []


def test_nor_is_it_while_mounted(lab: Lab, server: FaultServer) -> None:
    """Each answer in its turn, with a good one between them, so that each is logged."""
    url = server.url("image.raw").replace("//", f"//{LOGIN}@")
    words = ["--timeout", "2", "--readahead", "0", "--verbose", "--header", f"X-Token: {TOKEN}"]
    with lab.mounted(*words, url, troubled=True) as mounted:
        for number, case in enumerate(BABBLE):
            offset = 2 * (number + 1) * STEP
            server.script = partial(beyond_the_opening, BABBLE[case])
            with pytest.raises(ReadFailed):
                read(mounted.image, offset, 4096, limit=LIMIT)
            server.script = lambda _: None
            eventually(partial(can_read, mounted, offset + STEP), f"it reads again after {case}")
        assert len(mounted.complaints()) >= 5
        said = mounted.messages()
    assert [secret for secret in (*LOGIN.split(":"), TOKEN) if secret in said] == []


def beyond_the_opening(fault: Fault, request: Request) -> Fault | None:
    return None if request.opens else fault


def log_of(path: Path) -> str:
    return path.read_text() if path.exists() else ""


# The server itself

FAULTS: list[Fault] = [
    *(fault for fault, *_ in HOSTILE.values()),
    CloseBeforeAnswer(),
    Cut(10),
    Delay(0.1),
    WrongValidator(),
]


@pytest.mark.parametrize("fault", FAULTS, ids=repr)
@pytest.mark.parametrize("client_goes", [True, False], ids=["client", "server"])
def test_a_fault_ends_with_its_client_or_its_server(
    server: FaultServer, fault: Fault, client_goes: bool
) -> None:
    """And nothing of it is left behind."""
    threads, port = threading.active_count(), server.port
    server.script = lambda _: fault
    client = socket.create_connection(("127.0.0.1", port))
    client.sendall(b"GET /image.raw HTTP/1.1\r\nHost: x\r\nRange: bytes=10-99\r\n\r\n")
    eventually(lambda: server.faults == 1, "the fault is injected")
    if client_goes:
        client.close()
        eventually(lambda: threading.active_count() == threads, "its thread has ended")
    started = time.monotonic()
    server.stop()
    assert time.monotonic() - started < 5
    assert threading.active_count() == threads - 1
    server.start()
    assert server.port == port
    client.close()

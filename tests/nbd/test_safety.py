"""Who may read, over what; and clients that mean no good."""

import contextlib
import socket
import struct
import sys
import time
from pathlib import Path

import pytest
from real.mounts import Lab, need_tool, run, run_well
from real.servers import free_port
from real.waiting import eventually

from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import Command, Option

from .conftest import Disk
from .servers import Authority, Server, captive, serving, uri_of
from .test_clients import SIZE, sum_of


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "pki")


def test_with_tls_a_client_that_trusts_the_authority_reads(
    lab: Lab, disk: Disk, authority: Authority, tmp_path: Path
) -> None:
    need_tool("nbdcopy", "libnbd-bin")
    tls = ["--tls-certificates", str(authority.directory)]
    query = f"?tls-certificates={authority.directory}&socket="
    with serving(lab, *tls, disk.url) as server:
        assert server.uri.startswith("nbds+unix://")
        uri = f"nbds+unix://localhost/{query}{server.socket}"
        run_well(["nbdcopy", uri, tmp_path / "copy"])
        assert sum_of(tmp_path / "copy") == disk.sum
        assert run(["nbdinfo", uri_of(server.socket)]).returncode != 0


def test_with_verify_peer_a_client_needs_a_certificate(
    lab: Lab, disk: Disk, authority: Authority, tmp_path: Path
) -> None:
    need_tool("nbdinfo", "libnbd-bin")
    stranger = tmp_path / "stranger"
    stranger.mkdir()
    (stranger / "ca-cert.pem").write_bytes((authority.directory / "ca-cert.pem").read_bytes())
    tls = ["--tls-certificates", str(authority.directory), "--tls-verify-peer"]
    with serving(lab, *tls, disk.url) as server:
        for place, works in ((authority.directory, True), (stranger, False)):
            uri = f"nbds+unix://localhost/?tls-certificates={place}&socket={server.socket}"
            assert (run(["nbdinfo", "--size", uri]).returncode == 0) is works


def test_with_keys_a_client_needs_the_right_one(lab: Lab, disk: Disk, tmp_path: Path) -> None:
    """Where Python knows of such keys; elsewhere it says so."""
    need_tool("nbdinfo", "libnbd-bin")
    right, wrong = tmp_path / "right", tmp_path / "wrong"
    right.write_text(f"alice:{'5a' * 32}\n")
    wrong.write_text(f"alice:{'a5' * 32}\n")
    if sys.version_info < (3, 13):
        done = lab.start("serve", "--unix", tmp_path / "s", "--tls-psk", right, disk.url)
        assert done.returncode == 2
        assert "--tls-psk needs Python 3.13" in done.stderr
        return
    with serving(lab, "--tls-psk", str(right), disk.url) as server:
        for keys, works in ((right, True), (wrong, False)):
            uri = f"nbds+unix://alice@/?tls-psk-file={keys}&socket={server.socket}"
            assert (run(["nbdinfo", "--size", uri]).returncode == 0) is works
        assert run(["nbdinfo", uri_of(server.socket)]).returncode != 0


def test_lazyfs_reads_from_lazyfs_over_tls(
    lab: Lab, disk: Disk, authority: Authority, tmp_path: Path
) -> None:
    port = free_port()
    tls = ["--tls-certificates", str(authority.directory), "--tcp", f"localhost:{port}"]
    trust = ["--cacert", str(authority.directory / "ca-cert.pem")]
    copy, place = tmp_path / "copy", ["--cache-dir", str(tmp_path / "second")]
    with serving(lab, *tls, disk.url):
        url = f"nbds://localhost:{port}/disk.raw"
        done = lab.start("serve", *place, *trust, url, "--run", f'nbdcopy "$uri" {copy}')
        assert done.returncode == 0, done.stderr
        assert sum_of(copy) == disk.sum
        done = lab.start("serve", *place, url, "--run", "true")
        assert done.returncode == 1
        assert "does not hold" in done.stderr


def test_tcp_is_for_this_machine_unless_more_is_asked_for(lab: Lab, disk: Disk) -> None:
    place = ["--cache-dir", lab.cache, "--run", 'nbdinfo --size "$uri"']
    done = lab.start("serve", "--tcp", str(free_port()), *place, disk.url)
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n"), done.stderr
    done = lab.start("serve", "--tcp", f"0.0.0.0:{free_port()}", *place, disk.url)
    assert done.returncode == 2
    assert "--allow-plain" in done.stderr
    done = lab.start("serve", "--tcp", f"0.0.0.0:{free_port()}", "--allow-plain", *place[:2],
                     disk.url, "--run", "true")  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_on_stdout_there_is_nothing_but_the_protocol(lab: Lab, disk: Disk) -> None:
    arguments = ["serve", "-v", "-s", "--cache-dir", str(lab.cache), disk.url]
    with captive(lab, *arguments) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(nbd.U32.pack(3) + nbd.option(Option.ABORT))
        process.stdin.flush()
        said = process.stdout.read()
        assert process.wait(20) == 0
    hello = nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(3)
    assert said == hello + nbd.option_reply(Option.ABORT, nbd.Reply.ACK)


def connected(server: Server) -> socket.socket:
    client = socket.socket(socket.AF_UNIX)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, struct.pack("ll", 20, 0))
    client.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, struct.pack("ll", 20, 0))
    client.connect(str(server.socket))
    return client


def in_transmission(server: Server) -> socket.socket:
    """A client that knows only simple replies, and has chosen the default export."""
    client = connected(server)
    client.sendall(nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME))
    expected = nbd.HELLO.size + 2 + nbd.EXPORT_INFO.size
    assert len(client.recv(expected, socket.MSG_WAITALL)) == expected
    return client


def read(offset: int, length: int) -> bytes:
    return nbd.COMPACT_REQUEST.pack(nbd.REQUEST, 0, Command.READ, 1, offset, length)


def test_clients_that_ask_and_take_nothing_cost_little_and_delay_nobody(
    server: Server, disk: Disk
) -> None:
    run_well([need_tool("nbdcopy", "libnbd-bin"), server.uri, "null:"])
    before = server.peak_memory()
    with contextlib.ExitStack() as closing:
        for _ in range(40):
            client = closing.enter_context(in_transmission(server))
            client.sendall(read(0, 32 << 20) * 64)
        started = time.monotonic()
        content = closing.enter_context(in_transmission(server))
        content.sendall(read(0, 4096))
        assert len(content.recv(16 + 4096, socket.MSG_WAITALL)) == 16 + 4096
        assert time.monotonic() - started < 10
        assert server.peak_memory() - before < 150 << 20


def test_clients_that_say_nothing_make_room_for_those_who_do(server: Server) -> None:
    need_tool("nbdinfo", "libnbd-bin")
    with contextlib.ExitStack() as closing:
        for _ in range(200):
            closing.enter_context(connected(server))
        assert run_well(["nbdinfo", "--size", server.uri]) == f"{SIZE}\n"


@pytest.mark.parametrize(
    "said",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc",
        nbd.U32.pack(3) + nbd.OPTION_HEAD.pack(nbd.NEWSTYLE, Option.GO, (1 << 32) - 1),
        nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME) + b"x" * 28,
        nbd.U32.pack(3)
        + nbd.option(Option.EXPORT_NAME)
        + nbd.COMPACT_REQUEST.pack(nbd.REQUEST, 0, Command.WRITE, 1, 0, (1 << 32) - 1),
    ],
)
def test_who_does_not_keep_to_the_protocol_is_disconnected(said: bytes, server: Server) -> None:
    with connected(server) as client:
        client.sendall(said)
        while client.recv(1 << 16):
            pass
    assert run_well(["nbdinfo", "--size", server.uri]) == f"{SIZE}\n"


def test_sigterm_ends_it_at_once_under_load(lab: Lab, disk: Disk) -> None:
    with serving(lab, disk.url) as server, in_transmission(server) as client:
        client.sendall(read(0, 32 << 20) * 8)
        eventually(lambda: len(client.recv(1)) == 1, "it answers")
        started = time.monotonic()
    assert time.monotonic() - started < 5

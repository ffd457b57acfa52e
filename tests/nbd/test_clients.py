"""Other people's clients read from ``lazyfs serve``."""

import hashlib
import json
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from real.mounts import LAZYFS, Lab, environment, is_mounted, need_tool, run, run_well
from real.waiting import eventually

from .conftest import Disk
from .servers import Server, nbdkit, serving, uri_of

SIZE = (32 << 20) + 512


def sum_of(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def map_of(uri: str, context: str) -> list[tuple[int, int, int]]:
    """Offset, length and flags of each extent, as nbdinfo tells them."""
    need_tool("nbdinfo", "libnbd-bin")
    extents = json.loads(run_well(["nbdinfo", "--json", f"--map={context}", uri]))
    return [(e["offset"], e["length"], e["type"]) for e in extents]


def test_nbdinfo_sees_a_read_only_export_for_many_connections(server: Server) -> None:
    need_tool("nbdinfo", "libnbd-bin")
    said = json.loads(run_well(["nbdinfo", "--json", server.uri]))
    (export,) = said["exports"]
    assert said["structured"] is True
    assert export["export-size"] == SIZE
    assert export["is_read_only"] is export["can_multi_conn"] is export["can_cache"] is True
    assert export["can_df"] is True
    assert export["contexts"] == ["base:allocation", "lazyfs:cached"]
    assert (export["block_size_minimum"], export["block_size_maximum"]) == (1, 32 << 20)


def test_nbdinfo_lists_the_exports_by_name(lab: Lab, disk: Disk) -> None:
    need_tool("nbdinfo", "libnbd-bin")
    with serving(lab, "--name", "first", disk.url, disk.url + "?again") as server:
        listed = json.loads(run_well(["nbdinfo", "--json", "--list", server.uri]))["exports"]
        assert [export["export-name"] for export in listed] == ["first", "disk.raw"]
        assert server.uris == [uri_of(server.socket, name) for name in ("first", "disk.raw")]
        assert run_well(["nbdinfo", "--size", uri_of(server.socket)]) == f"{SIZE}\n"
        assert run(["nbdinfo", uri_of(server.socket, "absent")]).returncode != 0


def test_the_map_shows_what_is_local_and_that_all_is_data(server: Server) -> None:
    assert map_of(server.uri, "base:allocation") == [(0, SIZE, 0)]
    before = map_of(server.uri, "lazyfs:cached")
    assert sum(length for _, length, flags in before if flags) < SIZE
    run_well([need_tool("nbdcopy", "libnbd-bin"), server.uri, "null:"])
    assert map_of(server.uri, "lazyfs:cached") == [(0, SIZE, 1)]


@pytest.mark.parametrize(
    "options", [[], ["--connections=1"], ["--synchronous"], ["--request-size=33554432"]]
)
def test_nbdcopy_brings_the_image(
    options: Sequence[str], server: Server, disk: Disk, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    run_well([need_tool("nbdcopy", "libnbd-bin"), *options, server.uri, copy])
    assert sum_of(copy) == disk.sum


_SESSION = """
import hashlib
assert h.is_read_only() and h.can_multi_conn() and h.get_size() == {size}
content = b"".join(h.pread(min(1 << 20, {size} - o), o) for o in range(0, {size}, 1 << 20))
assert hashlib.sha256(content).hexdigest() == "{sum}"
cases = [
    ("EPERM", lambda: h.pwrite(b"x" * 512, 0)),
    ("EPERM", lambda: h.trim(512, 0)),
    ("EINVAL", lambda: h.pread(512, {size} - 1)),
    ("EINVAL", lambda: h.pread(0, 0)),
    ("EOVERFLOW", lambda: h.pread((32 << 20) + 1, 0)),
    ("EOVERFLOW", lambda: h.pread(2 << 20, 0, nbd.CMD_FLAG_DF)),
]
for number, wrong in cases:
    try:
        wrong()
    except nbd.Error as error:
        assert error.errno == number, error
    else:
        raise AssertionError(number)
assert h.pread(1 << 20, 0, nbd.CMD_FLAG_DF) == content[:1 << 20]
h.cache(1 << 20, 0)
buffers = [(o, nbd.Buffer(4096)) for o in range(0, 1 << 20, 4096)]
cookies = [h.aio_pread(b, o) for o, b in buffers]
while h.aio_in_flight() > 0:
    h.poll(-1)
for cookie in cookies:
    assert h.aio_command_completed(cookie)
assert b"".join(bytes(b.to_bytearray()) for _, b in buffers) == content[:1 << 20]
h.shutdown()
"""


@pytest.mark.parametrize("structured", [True, False])
def test_nbdsh_gets_the_bytes_and_the_errors_of_the_protocol(
    structured: bool, server: Server, disk: Disk
) -> None:
    script = _SESSION.format(size=SIZE, sum=disk.sum)
    if not structured:
        script = re.sub(r".*CMD_FLAG_DF.*\n", "", script)
    connect = ["-c", f"h.set_strict_mode(0); h.set_request_structured_replies({structured})"]
    connect += ["-c", f"h.connect_uri({server.uri!r})"]
    need_tool("nbdsh", "python3-libnbd")
    run_well(["/usr/bin/python3", "-m", "nbd", *connect, "-c", script])  # the system's has it


def test_qemu_img_converts_and_compares(server: Server, disk: Disk, tmp_path: Path) -> None:
    tool = need_tool("qemu-img", "qemu-utils")
    copy = tmp_path / "copy"
    run_well([tool, "convert", "-f", "raw", "-O", "raw", server.uri, copy])
    assert sum_of(copy) == disk.sum
    assert "identical" in run_well([tool, "compare", "-f", "raw", "-F", "raw", server.uri, copy])


@pytest.mark.parametrize("program", ["qemu-nbd", "qemu-storage-daemon"])
def test_qemu_serves_it_on(program: str, server: Server, disk: Disk, tmp_path: Path) -> None:
    tool = need_tool(program, "qemu-utils")
    socket = tmp_path / "on.sock"
    export = f"type=nbd,id=e,node-name=n,name=,addr.type=unix,addr.path={socket}"
    commands = {
        "qemu-nbd": [tool, "--read-only", "-f", "raw", "-k", str(socket), "-t", server.uri],
        "qemu-storage-daemon": [
            tool,
            "--blockdev",
            f"driver=nbd,node-name=n,read-only=on,server.type=unix,server.path={server.socket}",
            "--nbd-server",
            f"addr.type=unix,addr.path={socket}",
            "--export",
            export.split(",addr.")[0],
        ],
    }
    copy = tmp_path / "copy"
    with subprocess.Popen(commands[program], stdin=subprocess.DEVNULL) as process:
        try:
            eventually(socket.exists, f"{program} listens")
            run_well([need_tool("nbdcopy", "libnbd-bin"), uri_of(socket), copy])
        finally:
            process.terminate()
    assert sum_of(copy) == disk.sum


def test_nbdkit_serves_it_on(server: Server, disk: Disk, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    with nbdkit(tmp_path, "nbd", f"uri={server.uri}", "shared=true") as uri:
        run_well([need_tool("nbdcopy", "libnbd-bin"), uri, copy])
    assert sum_of(copy) == disk.sum


def test_fio_reads_at_random_over_many_requests(server: Server) -> None:
    tool = need_tool("fio", "fio")
    job = ["--name=x", "--ioengine=nbd", f"--uri={server.uri}", "--rw=randread", "--bs=4k"]
    said = run_well(
        [tool, *job, "--iodepth=32", "--io_size=8M", "--size=32M", "--output-format=json"]
    )
    (done,) = json.loads(said[said.index("{") :])["jobs"]
    assert done["error"] == 0
    assert done["read"]["io_bytes"] == 8 << 20


def test_nbdfuse_mounts_it_by_uri_and_by_command(lab: Lab, server: Server, disk: Disk) -> None:
    tool = need_tool("nbdfuse", "libnbd-bin")
    command = [*LAZYFS, "serve", "-s", "--no-cache", disk.url]
    for source in ([server.uri], ["--command", *command], ["[", *command, "]"]):
        place = lab.mountpoint() / "disk"
        place.touch()
        with subprocess.Popen([tool, place, *source], env=environment(lab.home)) as process:
            try:
                eventually(lambda at=place: is_mounted(at), "nbdfuse has mounted")  # type: ignore[misc]
                assert sum_of(place) == disk.sum
            finally:
                run(["fusermount3", "-u", place])
                process.wait(20)


def test_a_captive_command_finds_us_and_its_exit_code_is_ours(lab: Lab, disk: Disk) -> None:
    need_tool("nbdinfo", "libnbd-bin")
    place = ["--cache-dir", lab.cache]
    done = lab.start(
        "serve", disk.url, *place, "--run", 'nbdinfo --size "$uri"; test -S "$unixsocket"'
    )
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n"), done.stderr
    assert lab.start("serve", disk.url, *place, "--run", "exit 7").returncode == 7
    assert lab.start("serve", disk.url, *place, "--run", "kill -9 $$").returncode == 137


def test_brackets_of_libnbd_start_us_by_socket_activation(lab: Lab, disk: Disk) -> None:
    tool = need_tool("nbdinfo", "libnbd-bin")
    command = [*LAZYFS, "serve", "--cache-dir", lab.cache, disk.url]
    done = run([tool, "--size", "--", "[", *command, "]"], env=environment(lab.home))
    assert (done.returncode, done.stdout) == (0, f"{SIZE}\n"), done.stderr


def test_the_socket_is_for_its_owner_alone(server: Server) -> None:
    assert os.stat(server.socket).st_mode & 0o777 == 0o600


def test_a_socket_that_a_dead_server_left_is_no_hindrance(lab: Lab, disk: Disk) -> None:
    with serving(lab, disk.url) as server:
        stale = server.socket.with_name("stale")
        os.link(server.socket, stale)
    os.rename(stale, server.socket)
    with serving(lab, disk.url) as server:
        assert run_well(["nbdinfo", "--size", server.uri]) == f"{SIZE}\n"


def test_a_place_that_is_taken_is_said_to_be(lab: Lab, disk: Disk, server: Server) -> None:
    other = ["--cache-dir", lab.directory / "other"]
    done = lab.start("serve", "--unix", server.socket, *other, disk.url)
    assert done.returncode == 1
    assert "is in use by another server" in done.stderr
    done = lab.start("serve", "--unix", disk.path, *other, disk.url)
    assert "exists, and is no socket" in done.stderr
    assert run_well(["nbdinfo", "--size", server.uri]) == f"{SIZE}\n"

"""How mounts end: by umount in all its forms, by signals, and with readers in the way."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.prefetch.profile import parse

from .images import MIB
from .mounts import IS_ROOT, LAZYFS, Lab, environment, is_mounted, read, run_well, start_reading
from .servers import Answer, Request, Scripted
from .waiting import eventually


def _lazyfs_umount(lab: Lab, path: Path) -> None:
    done = lab.start("umount", path)
    assert done.returncode == 0, done.stderr
    assert done.stderr == done.stdout == ""


def _fusermount(lab: Lab, path: Path) -> None:
    run_well(["fusermount3", "-u", path])


def _umount(lab: Lab, path: Path) -> None:
    if not IS_ROOT:
        pytest.skip("umount of a FUSE mount that is not in fstab needs root")
    run_well(["umount", path])


@pytest.mark.parametrize("umount", [_lazyfs_umount, _fusermount, _umount])
def test_unmounting(lab: Lab, scripted: Scripted, umount: Callable[[Lab, Path], None]) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
        umount(lab, mounted.path)
        assert not is_mounted(mounted.path)
        mounted.wait_until_ended()
        assert "is unmounted" in mounted.messages()
    assert os.listdir(mounted.path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_unmount(lab: Lab, scripted: Scripted, number: signal.Signals) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
        mounted.signal(number)
        mounted.wait_until_ended()
        assert not is_mounted(mounted.path)


@pytest.mark.parametrize("time", [1, 2, 3])  # the moment that counts is short
def test_a_signal_that_comes_late_costs_nothing(lab: Lab, scripted: Scripted, time: int) -> None:
    """What is still to be saved when the mount has gone is saved."""
    profile = lab.directory / "run.profile"
    words = ["--record", str(profile), "--readahead", "0", scripted.url("image.raw")]
    with lab.mounted(*words) as mounted:
        read(mounted.image, MIB, 4096)
        _fusermount(lab, mounted.path)
        while not mounted.has_ended(within=0.001):
            with contextlib.suppress(ProcessLookupError):  # it has ended in this very moment
                mounted.signal(signal.SIGTERM)
    assert [use.span.start for use in parse(profile.read_text()).uses] == [MIB]


def test_late_signals_leave_nothing_behind_of_a_server(lab: Lab, scripted: Scripted) -> None:
    socket, pid_file = lab.directory / "socket", lab.directory / "pid"
    words = ["--foreground", "--cache-dir", lab.cache, "--unix", socket, "--pidfile", pid_file]
    server = subprocess.Popen(
        [*LAZYFS, "serve", *words, scripted.url("image.raw")],
        stdout=subprocess.DEVNULL, env=environment(lab.directory),
    )  # fmt: skip
    eventually(pid_file.exists, "it serves")
    while server.poll() is None:
        server.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(0.001)
    assert server.returncode == 0
    assert not socket.exists()
    assert not pid_file.exists()


def test_umount_of_what_is_no_mount(lab: Lab) -> None:
    done = lab.start("umount", lab.mountpoint())
    assert done.returncode == 1
    assert done.stderr.startswith("lazyfs: lazyfs is not mounted on ")
    assert done.stderr.count("\n") == 1


def test_umount_of_what_does_not_exist(lab: Lab) -> None:
    done = lab.start("umount", lab.directory / "nothing")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1


def test_umount_of_another_filesystem(lab: Lab) -> None:
    done = lab.start("umount", "/proc")
    assert done.returncode == 1
    assert "lazyfs is not mounted on /proc" in done.stderr
    assert is_mounted(Path("/proc"))


def test_umount_without_a_mount_point(lab: Lab) -> None:
    done = lab.start("umount")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


def test_umount_of_a_mount_in_use(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        with open(mounted.image, "rb"):
            done = lab.start("umount", mounted.path)
        assert done.returncode == 1
        assert f"{mounted.path} is in use: " in done.stderr
        assert f"(process {os.getpid()}) uses {mounted.image}" in done.stderr
        assert done.stderr.count("\n") == 1
        assert is_mounted(mounted.path)


MAP_IT = """\
import mmap, sys
with open(sys.argv[1]) as file:
    mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
input()
"""


def test_who_works_in_a_mount_or_has_mapped_a_part_of_it_is_named(
    lab: Lab, scripted: Scripted
) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        worker = subprocess.Popen(["cat"], cwd=mounted.path, stdin=subprocess.PIPE)
        mapper = subprocess.Popen(
            [sys.executable, "-c", MAP_IT, mounted.image], stdin=subprocess.PIPE
        )
        maps = Path(f"/proc/{mapper.pid}/maps")
        eventually(lambda: str(mounted.image) in maps.read_text(), "the image is mapped")
        said = lab.start("umount", mounted.path).stderr
        assert f"cat (process {worker.pid}) uses {mounted.path}" in said
        assert f"(process {mapper.pid}) uses {mounted.image}" in said
        for process in (worker, mapper):
            process.communicate(b"\n", timeout=20)
        assert lab.start("umount", mounted.path).returncode == 0


def test_a_dead_mount_is_named_and_can_be_cleared(lab: Lab, scripted: Scripted) -> None:
    """After the daemon was killed: what mounting again says, and what it recommends, works."""
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
        done = lab.start(scripted.url("image.raw"), mounted.path)
        assert done.returncode == 1
        assert f"fusermount3 -u {mounted.path}" in done.stderr
        assert lab.start("umount", mounted.path).returncode == 0
        assert not is_mounted(mounted.path)


class _Stall:
    """A behaviour: answers beyond the first byte come when ``release`` is set."""

    def __init__(self) -> None:
        self.asked = threading.Event()
        self.release = threading.Event()

    def __call__(self, request: Request) -> Answer | None:
        if not request.opens:
            self.asked.set()
            self.release.wait(60)
        return None


@pytest.fixture
def stalled(scripted: Scripted) -> Iterator[_Stall]:
    """The server says what the image is, and then nothing for as long as the test lasts."""
    stall = _Stall()
    scripted.behaviour = stall
    yield stall
    stall.release.set()


def test_a_killed_reader_does_not_block_unmounting(
    lab: Lab, scripted: Scripted, stalled: _Stall
) -> None:
    with lab.mounted("--timeout", "0", scripted.url("image.raw"), troubled=True) as mounted:
        with start_reading(mounted.image, MIB, 4096) as reader:
            assert stalled.asked.wait(20)
            reader.kill()
            reader.wait(20)
        _fusermount(lab, mounted.path)
        mounted.wait_until_ended()


def test_sigterm_ends_reads_that_wait(lab: Lab, scripted: Scripted, stalled: _Stall) -> None:
    with lab.mounted("--timeout", "0", scripted.url("image.raw"), troubled=True) as mounted:
        with start_reading(mounted.image, MIB, 4096) as reader:
            assert stalled.asked.wait(20)
            mounted.signal(signal.SIGTERM)
            mounted.wait_until_ended()
            assert reader.wait(20) != 0
        assert not is_mounted(mounted.path)


def test_what_was_read_before_the_end_is_there_after_it(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
        mounted.signal(signal.SIGTERM)
        mounted.wait_until_ended()
    asked = len(scripted.requests)
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    assert [request.span for request in scripted.requests[asked:]] == [(0, 0)]


def test_a_mount_ends_with_its_shell_gone(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """The daemon is in a session of its own and holds no directory."""
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert os.getsid(mounted.pid) == mounted.pid != os.getsid(0)
        assert os.readlink(f"/proc/{mounted.pid}/cwd") == "/"
        assert mounted.image.read_bytes() == content


def test_foreground_ends_with_its_mount(lab: Lab, scripted: Scripted) -> None:
    at = lab.mountpoint()
    command = [*LAZYFS, "-f", "--cache-dir", str(lab.cache), scripted.url("image.raw"), str(at)]
    with subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, env=environment(lab.home)
    ) as process:
        try:
            eventually(lambda: is_mounted(at), "it is mounted")
            assert process.poll() is None
            _fusermount(lab, at)
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    assert "is mounted on" in log
    assert "is unmounted" in log

"""What is said when the system refuses: the kernel, its programs, its files, its sockets."""

import errno
import logging
import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing
from fakes import RecordingDevice, disk_store

from lazyfs.cache.disk import DiskStore
from lazyfs.cache.layout import CacheLock, Meta
from lazyfs.cache.maintenance import all_caches, verify
from lazyfs.cli import umount
from lazyfs.cli.tour import mounts as demo
from lazyfs.cli.tour import tour
from lazyfs.core.device import Identity
from lazyfs.core.errors import (
    CacheError,
    CacheUnknown,
    ControlError,
    DeviceError,
    ImageError,
    InternalError,
    LazyfsError,
    LogError,
    MountError,
    ProgramFailed,
    ServeError,
    UsageError,
)
from lazyfs.core.options import CacheOptions, DaemonOptions, LogOptions, PreloadOptions
from lazyfs.daemon import loopmount, unmount
from lazyfs.daemon.logs import destination
from lazyfs.frontends import fuse, nbdcontrol, nbdioctl, nbdkernel, nbdsockets
from lazyfs.frontends.nbdcontrol import Control
from lazyfs.frontends.nbdioctl import IoctlControl
from lazyfs.frontends.nbdkernel import KernelDevice
from lazyfs.protocols.nbd import StartTls
from lazyfs.protocols.nbdnetlink import Setup
from lazyfs.protocols.wire import Wire, take_step
from lazyfs.sources.file import FileDevice
from lazyfs.system import programs, rootstorage
from lazyfs.system.mountinfo import Mounted

DMESG = "the kernel's log may say more: dmesg"
ELSEWHERE = "give another --unix or --tcp"
SETUP = Setup(1 << 20, 512, 0, 300, "lazyfs:x")


@contextmanager
def said(answer: str, kind: type[LazyfsError] = LazyfsError) -> Iterator[None]:
    """What is done in the block is answered with this message and this cure."""
    with pytest.raises(kind) as caught:
        yield
    assert str(caught.value) == answer


# NBD devices, by netlink


class PlayedNetlink:
    """The kernel's end of netlink: it knows the family, and refuses all else with one error."""

    error = 0

    def send(self, message: bytes) -> None:
        self._sequence = struct.unpack_from("=I", message, 8)[0]
        self._asks_for_the_family = message[4] == 16

    def recv(self, most: int) -> bytes:
        error = 0 if self._asks_for_the_family else self.error
        reply = struct.pack("=IHHIIi16x", 36, 2, 0, self._sequence, 0, -error)
        return self._family() + reply if self._asks_for_the_family else reply

    def _family(self) -> bytes:
        name = _attribute(1, b"nbd_mc_group\0") + _attribute(2, struct.pack("=I", 7))
        said = _attribute(1, struct.pack("=H", 31)) + _attribute(7, _attribute(1, name))
        head = struct.pack("=IHHII", 20 + len(said), 16, 0, self._sequence, 0)
        return head + struct.pack("=BBH", 1, 1, 0) + said

    def close(self) -> None:
        """Nothing is open."""


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c, s: c.connect(3, SETUP, s), "/dev/nbd3 cannot be attached"),
        (lambda c, s: c.connect(None, SETUP, s), "a free NBD device cannot be attached"),
        (lambda c, s: c.disconnect(3), "/dev/nbd3 cannot be detached"),
        (lambda c, s: c.reconfigure(3, "x", s), "/dev/nbd3 takes no other connection"),
        (lambda c, s: c.is_attached(3), "nothing is known of /dev/nbd3"),
    ],
)
def test_what_the_kernel_refuses_by_netlink(
    ask: Callable[[Control, socket.socket], object], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nbdcontrol, "_netlink_socket", PlayedNetlink)
    with closing(Control()) as control, socket.socket() as kernels:
        for number, why, cure in (
            (errno.EPERM, "Operation not permitted", "run it as root"),
            (errno.EINVAL, "Invalid argument", DMESG),
        ):
            PlayedNetlink.error = number
            with said(f"{message}: {why}; {cure}", DeviceError):
                ask(control, kernels)


def test_a_kernel_that_cannot_even_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    class Closed(PlayedNetlink):
        def recv(self, most: int) -> bytes:
            raise OSError(self.error, os.strerror(self.error))

    monkeypatch.setattr(nbdcontrol, "_netlink_socket", Closed)
    Closed.error = errno.EPERM
    why = "Operation not permitted; run it as root"
    with said(f"the kernel cannot be asked about NBD: {why}", DeviceError):
        Control()
    Closed.error = errno.ENOENT
    with said("this kernel has no NBD devices that can be reached from here; modprobe nbd"):
        Control()


def test_a_device_that_somebody_holds_open_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbdcontrol, "_GONE_WITHIN", 0.0)
    with said(
        "/dev/nbd3 is detached, but somebody still has it open; see: lazyfs detach /dev/nbd3"
    ):
        nbdcontrol.wait_until_free(3, lambda index: True)


# NBD devices, by ioctl


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda c, s: c.connect(3, SETUP, s), "/dev/nbd3 cannot be attached"),
        (lambda c, s: c.disconnect(3), "/dev/nbd3 cannot be detached"),
    ],
)
def test_what_the_kernel_refuses_by_ioctl(
    ask: Callable[[IoctlControl, socket.socket], object],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(nbdioctl, "path_of", lambda index: f"/dev/nbd{index}")
    for number, cure in ((errno.EACCES, "run it as root"), (errno.ENXIO, DMESG)):

        def refuse(*words: object, number: int = number) -> int:
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr("os.open", refuse)
        with socket.socket() as kernels, said(f"{message}: {os.strerror(number)}; {cure}"):
            ask(IoctlControl(), kernels)


def test_a_device_that_is_in_use(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(nbdioctl, "_start", refuse)
    with socket.socket() as kernels, said("/dev/nbd3 is in use; name another, or none"):
        IoctlControl().connect(3, SETUP, kernels)


def test_a_kernel_without_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(program: str, arguments: list[str]) -> None:
        raise ProgramFailed("modprobe: FATAL: Module nbd not found")

    monkeypatch.setattr(Path, "exists", lambda path: False)
    monkeypatch.setattr(programs, "run", refuse)
    with said(
        "the kernel module nbd cannot be loaded: modprobe: FATAL: Module nbd not found; mount it "
        "instead: lazyfs URL MOUNTPOINT",
        DeviceError,
    ):
        nbdcontrol.load_module()


# What is attached


IMAGE = RecordingDevice(bytes(1 << 20))


def test_what_cannot_be_attached_or_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    ioctl: Any = IoctlControl()
    netlink: Any = SimpleNamespace()
    small: Any = RecordingDevice(bytes(100))
    image: Any = IMAGE
    with said(
        "an image of 100 bytes is too small for a block device; mount it instead: lazyfs URL "
        "MOUNTPOINT"
    ):
        KernelDevice.attach(ioctl, 3, small, "img", 300)
    with said(
        "/dev/nbd3 cannot be repaired: that needs netlink; detach it, and attach it again: lazyfs "
        "detach /dev/nbd3"
    ):
        KernelDevice.revive(ioctl, 3, image, "img")
    monkeypatch.setattr(nbdkernel, "backend_of", lambda index: None)
    with said("/dev/nbd3 was not attached by lazyfs; name the device that was"):
        KernelDevice.revive(netlink, 3, image, "img")
    monkeypatch.setattr(nbdkernel, "backend_of", lambda index: "lazyfs:other")
    with said(
        "/dev/nbd3 shows another image, or another version of it; detach it: lazyfs detach "
        "/dev/nbd3"
    ):
        KernelDevice.revive(netlink, 3, image, "img")
    own = nbdkernel.backend_id(IMAGE.identity, "img")
    monkeypatch.setattr(nbdkernel, "backend_of", lambda index: own)
    monkeypatch.setattr(nbdkernel, "_connect_again", lambda *words: None)
    with said("/dev/nbd3 needs no repair: it is being served; use it as it is"):
        KernelDevice.revive(netlink, 3, image, "img")


@pytest.mark.parametrize("renewable", [False, True])
async def test_a_device_that_has_lost_its_connection_for_good(
    renewable: bool, monkeypatch: pytest.MonkeyPatch, expected_log: Callable[..., None]
) -> None:
    expected_log("the kernel gets another", required=False)
    links = SimpleNamespace(take=lambda: True, close=lambda: None)
    control: Any = SimpleNamespace(dead_links=lambda index: links) if renewable else None
    monkeypatch.setattr(nbdkernel, "_connect_again", lambda *words: None)
    ours, kernels = socket.socketpair()
    kernels.close()
    device = KernelDevice(control, 3, "lazyfs:x", ours)
    image: Any = IMAGE
    lost = "has lost its connection" + (", and takes no other" if renewable else "")
    with said(
        f"/dev/nbd3 {lost}; detach it, and attach it again: lazyfs detach /dev/nbd3", DeviceError
    ):
        await device.run(image)
    device.close()


# Places to serve at


def test_a_place_that_cannot_be_listened_on(tmp_path: Path) -> None:
    long = tmp_path / ("x" * 200)
    with (
        said(f"{long} is too long for the name of a socket; give a shorter --unix", ServeError),
        nbdsockets.unix_socket(long),
    ):
        pass
    lost = tmp_path / "absent/socket"
    with (
        said(f"{lost} cannot be made a socket: No such file or directory; {ELSEWHERE}"),
        nbdsockets.unix_socket(lost),
    ):
        pass
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        taken.listen()
        why = os.strerror(errno.EADDRINUSE)
        with said(f"127.0.0.1:{port} cannot be listened on: {why}; {ELSEWHERE}", ServeError):
            nbdsockets.tcp_sockets("127.0.0.1", port, plain_anywhere=False)
    with pytest.raises(ServeError, match=r"^\[\.\] cannot be listened on: ") as caught:
        nbdsockets.tcp_sockets("[.]", 1, plain_anywhere=False)
    assert caught.value.cure == ELSEWHERE
    with said(
        "whoever reaches 0.0.0.0 could read the image, and so could the network between; give "
        "--tls-certificates, or --allow-plain if that is meant",
        UsageError,
    ):
        nbdsockets.tcp_sockets("0.0.0.0", 0, plain_anywhere=False)


@pytest.mark.parametrize("passed", ["a file", "a connection"])
def test_what_is_passed_must_be_a_listening_socket(passed: str) -> None:
    command = [sys.executable, "-m", "lazyfs", "serve", "https://host/a.iso"]
    script = 'LISTEN_PID=$$ LISTEN_FDS=1 exec "$@" 3<&0'
    one, other = socket.socketpair()
    with one, other:
        done = subprocess.run(
            ["sh", "-c", script, "sh", *command],
            stdin=one.fileno() if passed == "a connection" else subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    wrong = {
        "a file": "file descriptor 3 is no socket: Socket operation on non-socket",
        "a connection": "the socket that was passed as 3 is not one that clients connect to",
    }
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"lazyfs: {wrong[passed]}; see ListenStream= of the .socket unit\n"


# Mounts and loop devices


def test_what_is_not_mounted_cannot_be_repaired(monkeypatch: pytest.MonkeyPatch) -> None:
    at, file = Path("/m"), Path("/run/lazyfs/loop-1/a.iso")
    with said("no loop device is mounted on /m; see: findmnt /m", MountError):
        loopmount._dead_device(at)
    mounted = Mounted(at, "ext4", "/dev/loop7", "7:7")
    monkeypatch.setattr(loopmount, "mount_on", lambda mountpoint: mounted)
    monkeypatch.setattr(loopmount, "backing_file", lambda device: file)
    monkeypatch.setattr(loopmount, "kinds_that_would_die", lambda device: ["ext4"])
    with said(
        "ext4 on /m cannot be revived: it would not survive the repair; umount /m, and mount it "
        "again"
    ):
        loopmount._dead_device(at)
    monkeypatch.setattr(loopmount, "kinds_that_would_die", lambda device: [])
    monkeypatch.setattr(loopmount, "answers", lambda file: True)
    with said(f"/dev/loop7 on /m needs no repair: {file} can be read; use it as it is"):
        loopmount._dead_device(at)

    def refuse(device: str, file: Path) -> None:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(loopmount, "change_backing_file", refuse)
    with said(
        "/dev/loop7 cannot be moved to a.iso: Invalid argument; check that this is the image that "
        "it was mounted from"
    ):
        loopmount._revive("/dev/loop7", file)


def test_a_mount_that_cannot_be_unmounted(monkeypatch: pytest.MonkeyPatch) -> None:
    mounted = Mounted(Path("/m"), "fuse.lazyfs", "lazyfs", "0:7")

    def refuse(program: str, arguments: list[object]) -> None:
        raise ProgramFailed("fusermount3: entry for /m not found in /etc/mtab")

    monkeypatch.setattr(unmount, "mount_on", lambda mountpoint: mounted)
    monkeypatch.setattr(programs, "run", refuse)
    with said(
        "/m cannot be unmounted: fusermount3: entry for /m not found in /etc/mtab; do it as who "
        "mounted it, or as root",
        MountError,
    ):
        unmount.unmount(Path("/m"))


def test_a_device_that_cannot_be_handed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    outcome = {"device": "/dev/loop7", "stays": "the image is not complete any more"}
    daemon = SimpleNamespace(ask=lambda command: {"devices": [outcome]})
    monkeypatch.setattr(umount, "daemon_at", lambda mountpoint: daemon)
    monkeypatch.setattr(umount, "wait_complete", lambda daemon: 0)
    with said(
        "/dev/loop7 cannot be handed over: the image is not complete any more; unmount what stands "
        "on it",
        ControlError,
    ):
        umount.main(["--handover", "/m"])


def test_a_mount_that_fuse_refuses(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*words: object) -> None:
        os.write(2, b"fusermount3: user has no write access to mountpoint /m\n")
        raise RuntimeError("fuse_session_mount failed")

    monkeypatch.setattr("pyfuse3.init", refuse)
    filesystem: Any = None
    with said(
        "cannot mount on /m: fusermount3: user has no write access to mountpoint /m; see who owns "
        "it, and what /etc/fuse.conf allows",
        MountError,
    ):
        fuse.FuseMount(Path("/m"), filesystem, set())


# Programs, files, and what else a system has


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("exit 3", "umount: it ended with code 3"),
        ("echo umount: /m: not mounted. >&2; exit 32", "umount: /m: not mounted"),
        (
            "echo 'umount: bad. dmesg(1) may have more information after it failed.' >&2; exit 32",
            "umount: bad",
        ),
        ("exec sleep 60", "umount did not end within 0.5 seconds"),
    ],
)
def test_a_program_that_fails(
    script: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "umount"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o700)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    with said(f"{message}; {DMESG}", ProgramFailed):
        programs.run("umount", [], 0.5)


def test_a_system_that_does_not_let_a_daemon_be_hardened(monkeypatch: pytest.MonkeyPatch) -> None:
    libc = SimpleNamespace(mlockall=lambda flags: -1)
    monkeypatch.setattr("ctypes.CDLL", lambda name, use_errno: libc)
    monkeypatch.setattr("ctypes.get_errno", lambda: errno.EPERM)
    with said("lazyfs may not lock its memory: Operation not permitted; run it as root"):
        rootstorage.harden()


def test_a_log_file_that_cannot_be_written(tmp_path: Path) -> None:
    log = LogOptions(logging.INFO, tmp_path)
    daemon = DaemonOptions(
        images=(), cache=CacheOptions(tmp_path), timeout=1, preload=PreloadOptions(), log=log
    )
    with said(
        f"the log file {tmp_path} cannot be written: Is a directory; name another with --log-file",
        LogError,
    ):
        destination(daemon)


def test_an_output_that_cannot_be_written() -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lazyfs", "metrics"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr == (
        "lazyfs: the output cannot be written: No space left on device; name another place, or "
        "make room there\n"
    )


async def test_a_file_that_gets_shorter_while_it_is_read(tmp_path: Path) -> None:
    file = tmp_path / "a.iso"
    file.write_bytes(bytes(1000))
    device = FileDevice(file)
    os.truncate(file, 500)
    with said(f"{file} has become shorter; try again when nobody writes to it", ImageError):
        await device.read(0, 1000)
    await device.aclose()


def test_a_demo_that_goes_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    audience: Any = SimpleNamespace(begins=print)
    names = [f"{number}.txt" for number in range(20)]
    report = "this is a defect of lazyfs: please report it"
    with said(f"0.txt does not read as it was written; {report}", InternalError):
        tour._read_some(audience, dict.fromkeys(names, ""), lambda name: b"?")
    monkeypatch.setattr(demo, "_END_LIMIT", 0.0)
    monkeypatch.setattr(demo, "_LOOK_EVERY", 0.01)
    ours, theirs = os.pipe()
    with said("the daemon of the unmounted image does not end; see: ps -C lazyfs", MountError):
        demo._unmount_until_ended(Path("/m"), ours)
    os.close(ours)
    os.close(theirs)


# Caches


def test_what_stands_in_the_place_of_a_cache(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.write_text("my diary")
    with said(f"{lock} exists and is no lock of lazyfs; name another cache", CacheError):
        CacheLock(lock)
    meta = tmp_path / "meta.json"
    meta.write_text('{"format": 99}')
    with said(f"{meta} is of another format; lazyfs cache rm removes it", CacheUnknown):
        Meta.load(meta)
    meta.write_text("?")
    with pytest.raises(CacheUnknown, match=f"{meta} cannot be understood .Expecting value"):
        Meta.load(meta)


def test_a_disk_that_fails_while_a_cache_is_looked_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "a.iso-0123456789abcdef"
    disk_store(place, Identity(1 << 20, '"v1"'), 4096).close()
    (cache,) = all_caches(tmp_path)

    def fail(store: DiskStore) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(DiskStore, "sync", fail)
    with said(
        f"{cache.name} cannot be verified: Input/output error; look at the disk that it is on"
    ):
        verify(cache, print)


def test_a_cache_file_that_is_something_else(tmp_path: Path) -> None:
    disk_store(tmp_path, Identity(1 << 20, '"v1"'), 4096).close()
    (tmp_path / "sums").unlink()
    (tmp_path / "sums").mkdir()
    with said(
        f"the cache file {tmp_path / 'sums'} cannot be used: Is a directory; name another place "
        "with --cache-dir, or use --no-cache",
        CacheError,
    ):
        disk_store(tmp_path, Identity(1 << 20, '"v1"'), 4096)


# The other end of NBD


async def test_a_connection_that_ends_or_goes_on_in_the_clear() -> None:
    ours, theirs = trio.testing.memory_stream_pair()
    wire = Wire(ours)
    await theirs.send_all(b"GET")
    await wire.receive(1)
    clear = "the other end goes on unencrypted after asking for TLS"
    with said(f"{clear}; tell whoever runs the other end"):
        await wire.start_tls(ssl.create_default_context(), "host", server=False)
    with said(
        "a dialogue asks for TLS, and has not been given any; this is a defect of lazyfs: please "
        "report it",
        InternalError,
    ):
        await take_step(wire, StartTls())
    await theirs.aclose()
    with said("the other end has closed the connection; tell whoever runs the other end"):
        await wire.receive(100)

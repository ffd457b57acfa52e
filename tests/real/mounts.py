"""lazyfs run as a program, like users do. Everything here ends within a time limit."""

import contextlib
import errno
import fcntl
import os
import re
import select
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import pytest

from .servers import find_program
from .waiting import eventually

IS_ROOT = os.geteuid() == 0
_SCRIPT = Path(sys.executable).with_name("lazyfs")
LAZYFS = [str(_SCRIPT)] if _SCRIPT.exists() else [sys.executable, "-m", "lazyfs"]

COMMAND_LIMIT = 60.0  # seconds for any command that is not a long read
READ_LIMIT = 120.0  # seconds for reading a whole image
_MOUNT_LIMIT = 240.0  # seconds until a mount is removed by force, in case a test hangs

_COMPLAINT = re.compile(r" (WARNING|ERROR|CRITICAL) |Traceback")


def environment(home: Path, **more: str) -> dict[str, str]:
    """The environment of lazyfs and the tools, without the tester's own settings."""
    path = os.pathsep.join([str(_SCRIPT.parent), "/usr/bin", "/bin", "/usr/sbin", "/sbin"])
    return {"HOME": str(home), "PATH": path, "LC_ALL": "C.UTF-8", **more}


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    limit: float = COMMAND_LIMIT,
    cwd: Path | None = None,
    user: int | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to completion, and capture its output. ``user``: a uid, without groups."""
    if env is None:
        env = environment(Path("/nonexistent"))
    return subprocess.run(
        [str(word) for word in command],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=limit,
        check=False,
        user=user,
        group=user,
        extra_groups=None if user is None else [],
    )


def run_well(command: Sequence[str | Path], limit: float = COMMAND_LIMIT) -> str:
    """Run a command that must succeed; returns its output."""
    done = run(command, limit=limit)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


class Mounted:
    """A mount of lazyfs, and its daemon."""

    def __init__(self, path: Path, cache: Path, log: Path, pid: int) -> None:
        self.said = ""  # the command's stderr
        self.path = path
        self.cache = cache
        self.log = log
        self.pid = pid
        self._ended = os.pidfd_open(pid)

    @property
    def image(self) -> Path:
        """The image file: the mount point, or the only file in it."""
        if self.path.is_file():
            return self.path
        (only,) = self.path.iterdir()
        return only

    def cached(self) -> int:
        """Bytes of the image that are cached, by its extended attribute."""
        return int(os.getxattr(self.image, "user.lazyfs.cached"))

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def wait_until_ended(self, within: float = 20.0) -> None:
        """Wait for the daemon's end."""
        assert self.has_ended(within), f"the daemon still runs after {within:g} seconds"

    def has_ended(self, within: float = 0.0) -> bool:
        watch = select.poll()
        watch.register(self._ended, select.POLLIN)
        return bool(watch.poll(within * 1000))

    def umount(self) -> None:
        """Unmount as users do, and wait for the daemon's end."""
        run_well(["fusermount3", "-u", self.path])
        self.wait_until_ended()

    def messages(self) -> str:
        return self.log.read_text() if self.log.exists() else ""

    def complaints(self) -> list[str]:
        """The daemon's log lines at WARNING and above."""
        return [line for line in self.messages().splitlines() if _COMPLAINT.search(line)]

    def peak_memory(self) -> int:
        """The peak memory of the daemon, in bytes (VmHWM of proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        found = re.search(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)
        assert found
        return int(found[1]) * 1024

    def make_sure_it_ends(self) -> None:
        """Leave neither a mount nor a daemon behind, whatever state they are in."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if is_mounted(self.path):
                run(["fusermount3", "-u", self.path], limit=20)
            if not is_mounted(self.path) and self.has_ended(20):
                return
        self.take_away()

    def take_away(self) -> None:
        """End it by force; hanging reads fail."""
        if not self.has_ended():
            with contextlib.suppress(ProcessLookupError):
                self.signal(9)
        if is_mounted(self.path):
            with contextlib.suppress(subprocess.TimeoutExpired):
                run(["umount", "-f", self.path], limit=20)
        if is_mounted(self.path):
            with contextlib.suppress(subprocess.TimeoutExpired):
                run(["fusermount3", "-u", "-z", self.path], limit=20)

    def close(self) -> None:
        os.close(self._ended)


class Lab:
    """A test's directory, home, cache and mount points."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.home = self._new("home")
        self.cache = directory / "cache"
        self._count = 0

    def start(
        self, *arguments: str | Path, env: Mapping[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run the command line ``lazyfs ARGUMENTS``."""
        return run([*LAZYFS, *arguments], env=env or environment(self.home), cwd=self.directory)

    def mountpoint(self) -> Path:
        """A new empty directory."""
        self._count += 1
        return self._new(f"mnt{self._count}")

    @contextlib.contextmanager
    def mounted(
        self,
        *arguments: str,
        at: Path | None = None,
        cache: Path | None = None,
        troubled: bool = False,
        env: Mapping[str, str] | None = None,
    ) -> Iterator[Mounted]:
        """``lazyfs ARGUMENTS MOUNTPOINT``, mounted while the block runs.

        ``troubled``: the daemon may log warnings and errors; otherwise they fail the test.
        """
        at = at or self.mountpoint()
        cache = cache or self.cache
        log = self.directory / f"{at.name}.log"
        named = {"--no-cache", "--cache"}.intersection(arguments)
        place = () if named else ("--cache-dir", str(cache))
        done = self.start(*arguments, *place, "--log-file", log, at, env=env)
        assert done.returncode == 0, done.stderr
        with adopted(at, cache, log) as mounted:
            mounted.said = done.stderr
            assert troubled or mounted.said == ""
            yield mounted
        if not troubled:
            assert mounted.complaints() == []

    def _new(self, name: str) -> Path:
        path = self.directory / name
        path.mkdir()
        return path


@contextlib.contextmanager
def adopted(at: Path, cache: Path, log: Path) -> Iterator[Mounted]:
    """An existing mount; it ends with the block, even if a test hangs."""
    try:
        mounted = Mounted(at, cache, log, daemon_of(at))
    except BaseException:
        run(["fusermount3", "-u", "-z", at], limit=20)
        raise
    watchdog = threading.Timer(_MOUNT_LIMIT, mounted.take_away)
    watchdog.start()
    try:
        yield mounted
    finally:
        mounted.make_sure_it_ends()
        watchdog.cancel()
        watchdog.join()
        mounted.close()


def daemon_of(mountpoint: Path) -> int:
    """The process id of the daemon, found by its mount point in its command line."""
    found = [pid for pid in _processes() if _serves(pid, mountpoint)]
    assert len(found) == 1, f"one daemon should serve {mountpoint}, not {found}"
    return found[0]


def _processes() -> list[int]:
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def _serves(pid: int, mountpoint: Path) -> bool:
    try:
        shown = Path(f"/proc/{pid}/cmdline").read_bytes().rstrip(b"\0 ")
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return False
    return shown.startswith(b"lazyfs ") and shown.endswith(b" " + os.fsencode(mountpoint))


def mount_line(path: Path) -> str:
    """The line of /proc/self/mounts for this mount point; empty if nothing is mounted there."""
    lines = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    written = str(path).replace(" ", r"\040")  # as in getmntent(3)
    return next((line for line in reversed(lines) if line.split(" ")[1] == written), "")


def is_mounted(path: Path) -> bool:
    return mount_line(path) != ""


# Reading, in processes that can be killed


class ReadFailed(Exception):
    """A read failed, with this ``errno``."""

    def __init__(self, number: int) -> None:
        super().__init__(errno.errorcode.get(number, str(number)))
        self.errno = number


_READER = """
import os, sys
fd = os.open(sys.argv[1], os.O_RDONLY)
os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
position, left = int(sys.argv[2]), int(sys.argv[3])
try:
    while left:
        piece = os.pread(fd, min(left, 1 << 20), position)
        if not piece:
            break
        sys.stdout.buffer.write(piece)
        position, left = position + len(piece), left - len(piece)
except OSError as error:
    sys.exit(error.errno)
"""


def start_reading(path: Path, offset: int, length: int) -> subprocess.Popen[bytes]:
    """A process that reads exactly these bytes (without the kernel's read-ahead).

    Its exit code is the errno of the read, or 0.
    """
    reader = [sys.executable, "-I", "-S", "-c", _READER, str(path), str(offset), str(length)]
    return subprocess.Popen(reader, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)


def finish_reading(reader: subprocess.Popen[bytes], limit: float = COMMAND_LIMIT) -> bytes:
    """The bytes read. Raises ReadFailed, or fails if it takes longer than ``limit`` seconds."""
    with reader:
        try:
            content, _ = reader.communicate(timeout=limit)
        except subprocess.TimeoutExpired:
            reader.kill()
            reader.communicate()
            pytest.fail(f"a read did not end within {limit:g} seconds")
    if reader.returncode:
        raise ReadFailed(reader.returncode)
    return content


def read(path: Path, offset: int, length: int, limit: float = COMMAND_LIMIT) -> bytes:
    """Read exactly these bytes, without the kernel's read-ahead. Raises ReadFailed."""
    return finish_reading(start_reading(path, offset, length), limit)


def same_content(one: Path, other: Path) -> bool:
    """Whether two files are equal, by cmp(1)."""
    done = run(["cmp", one, other], limit=READ_LIMIT)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode == 0


# Loop devices


def need_loop() -> None:
    """Skip if loop devices are not available."""
    if not IS_ROOT:
        pytest.skip("loop devices need root")
    if not Path("/dev/loop-control").exists():
        pytest.skip("there is no /dev/loop-control")


def need_tool(name: str, package: str) -> str:
    """The path of a program; skips if it is not installed."""
    path = find_program(name)
    if not path:
        pytest.skip(f"{name} is not installed (Debian package {package})")
    return path


@contextlib.contextmanager
def loop_device(backing: Path) -> Iterator[Path]:
    """A read-only loop device on a file."""
    device = _attach(backing)
    try:
        yield device
    finally:
        run(["losetup", "--detach", device], limit=20)
        eventually(lambda: not _backing(device), f"{device} is detached", 20)


def _attach(backing: Path) -> Path:
    """Set up a free loop device, by name. The lock excludes other tests; retries handle others."""
    with open(Path(tempfile.gettempdir()) / "lazyfs-tests-loop.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for _ in range(10):
            device = Path(run_well(["losetup", "--find"], limit=20).strip())
            done = run(["losetup", "--read-only", device, backing], limit=20)
            if done.returncode == 0:
                return device
            assert "busy" in done.stderr, done.stderr
    pytest.fail("others took every loop device first")


def _backing(device: Path) -> bool:
    return Path(f"/sys/block/{device.name}/loop/backing_file").exists()


@contextlib.contextmanager
def loop_mounted(backing: Path, at: Path, kind: str, options: str = "ro") -> Iterator[Path]:
    """The filesystem in an image, mounted through a loop device."""
    with loop_device(backing) as device:
        done = run(["mount", "-t", kind, "-o", options, device, at])
        if "unknown filesystem type" in done.stderr:
            pytest.skip(f"this kernel has no {kind}")
        assert done.returncode == 0, done.stderr
        try:
            yield at
        finally:
            run(["umount", at], limit=20)
            eventually(lambda: not is_mounted(at), f"{at} is unmounted", 20)

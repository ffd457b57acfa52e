"""System access of the benchmark: programs with a time limit, mounts, loop devices, memory."""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

TIDY = 20.0
"""Seconds that a clean-up command may take."""

MOUNT = 600.0
"""Seconds that a mount may take; on the slowest link it reads a few blocks at 300 ms each."""

LOOP_CTL_ADD = 0x4C80
LOOP_CTL_REMOVE = 0x4C81
FIRST_LOOP = 100
"""The first number of the benchmark's loop devices, out of the way of ``losetup -f``."""


class Failed(Exception):
    """A program failed, or an event did not happen in time."""


def run(command: Sequence[str | Path], limit: float = TIDY, stdin: Path | None = None) -> str:
    """Run a program to completion; returns its standard output. Raises Failed."""
    try:
        with open(stdin or os.devnull, "rb") as file:
            done = subprocess.run(
                command, stdin=file, capture_output=True, text=True, timeout=limit, check=False
            )
    except subprocess.TimeoutExpired as error:
        raise Failed(f"{command[0]} took longer than {limit:.0f} s") from error
    except FileNotFoundError as error:
        raise Failed(f"{command[0]} is not installed") from error
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise Failed(f"{command[0]}: {said[-1]}")
    return done.stdout


def end(process: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a process that we started: with SIGTERM, and if that does not help, with SIGKILL."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        if process.poll() is None:
            process.send_signal(number)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(patience)


def drop_caches() -> None:
    """Sync, and drop the page cache, the dentries and the inodes."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def is_mounted(where: Path) -> bool:
    """Whether something is mounted there, by the kernel's list: the mount may be dead."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return any(line.split(" ")[4] == os.fspath(where) for line in lines)


def mount(file: str | Path, loop: Path, where: str | Path, fstype: str, start: int = 0) -> None:
    """Mount the filesystem at offset `start` of a file, read-only, through a loop device.

    Raises Failed.
    """
    run(["losetup", "-r", "--offset", str(start), loop, file], MOUNT)
    run(["mount", "-t", fstype, "-o", "ro", loop, where], MOUNT)


def unmount(where: Path) -> None:
    """Unmount what is mounted there, by force if necessary."""
    for how in ((), ("-f",), ("-l",)):
        if is_mounted(where):
            with contextlib.suppress(Failed):
                run(["umount", *how, where])


@contextlib.contextmanager
def loop_device() -> Iterator[Path]:
    """A new loop device, not attached to anything; removed at the end."""
    control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    try:
        number = _add_loop(control)
        device = Path(f"/dev/loop{number}")
        try:
            yield device
        finally:
            detach(device)
            with contextlib.suppress(OSError):
                fcntl.ioctl(control, LOOP_CTL_REMOVE, number)
    finally:
        os.close(control)


def _add_loop(control: int) -> int:
    for number in range(FIRST_LOOP, FIRST_LOOP + 100):
        with contextlib.suppress(FileExistsError):
            return fcntl.ioctl(control, LOOP_CTL_ADD, number)
    raise Failed("there is no free loop device")


def detach(device: Path) -> None:
    """Detach a loop device from its file, and wait up to TIDY seconds until it is detached."""
    backing = Path(f"/sys/block/{device.name}/loop")
    if backing.exists():
        with contextlib.suppress(Failed):
            run(["losetup", "-d", device])
    wait_until(lambda: not backing.exists(), TIDY)


def loops_on(directory: Path) -> list[Path]:
    """The loop devices on files below a directory."""
    attached = []
    for backing in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # it has just been detached
            if backing.read_text().startswith(f"{directory}/"):
                attached.append(Path("/dev", backing.parent.parent.name))
    return attached


def wait_until(condition: Callable[[], bool], limit: float) -> bool:
    """Poll until the condition holds; returns whether it did within `limit` seconds."""
    deadline = time.monotonic() + limit
    while not (holds := condition()) and time.monotonic() < deadline:
        time.sleep(0.005)
    return holds


def peak_memory(processes: Sequence[int]) -> int:
    """Bytes: the sum of the peaks of these processes and of their living descendants.

    Shared memory (code of the same library) counts once per process.
    """
    return sum(map(_high_water_mark, _with_descendants(processes)))


def _with_descendants(processes: Sequence[int]) -> set[int]:
    parents = dict(_parents())
    family = set(processes)
    while more := {child for child, parent in parents.items() if parent in family} - family:
        family |= more
    return family


def _parents() -> Iterator[tuple[int, int]]:
    for status in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            _, _, rest = status.read_text().rpartition(") ")
            yield int(status.parent.name), int(rest.split()[1])


def _high_water_mark(process: int) -> int:
    try:
        status = Path(f"/proc/{process}/status").read_text()
    except OSError:
        return 0
    match = re.search(r"^VmHWM:\s+(\d+) kB", status, re.MULTILINE)
    return int(match[1]) << 10 if match else 0

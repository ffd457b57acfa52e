"""The mounts of the tour, and their clean-up.

An interrupted step may or may not have happened, so each clean-up is set up before its step, and
goes by the kernel's state.
"""

import os
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import lazyfs
from lazyfs.core.errors import LazyfsError, MountError
from lazyfs.formats.tree import Extent
from lazyfs.system import programs
from lazyfs.system.loopdevice import loops_below
from lazyfs.system.mountinfo import mount_on

_LIMIT = 60.0  # seconds that a program of the system may take
_END_LIMIT = 20.0  # seconds that an unmounted daemon may take to save its cache
_LOOK_EVERY = 0.1  # seconds
# The same lazyfs, wherever it is. With -m alone, it would be looked for in the current directory.
_CODE = "import sys; sys.path.append({!r}); from lazyfs.cli.main import main; sys.exit(main())"
_PLACE = os.fspath(Path(lazyfs.__file__).resolve().parents[1])
_OURSELVES: list[str | Path] = [sys.executable, "-P", "-c", _CODE.format(_PLACE)]
_ATTEMPTS = 5  # to get a loop device, since others may take it first


@contextmanager
def lazyfs_mounted(url: str, mountpoint: Path, cache: Path, log_file: Path) -> Iterator[None]:
    """``lazyfs URL MOUNTPOINT``, as typed by a user; unmounted at the end. Raises LazyfsError."""
    command = [*_OURSELVES, url, mountpoint, "--cache-dir", cache, "--log-file", log_file]
    # Launcher and daemon inherit one end of a pipe, which is thus open as long as they live.
    ours, theirs = os.pipe()
    with open(ours, "rb") as life:
        try:
            try:
                launcher = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                    pass_fds=[theirs],
                    env={**os.environ, "no_proxy": "127.0.0.1", "NO_PROXY": "127.0.0.1"},
                    start_new_session=True,  # Ctrl-C is for the tour, which cleans up
                )
            finally:
                os.close(theirs)
            _, complaint = launcher.communicate()
            if launcher.returncode:
                raise MountError(complaint.strip().removeprefix("lazyfs: "))
            yield
        finally:
            _unmount_until_ended(mountpoint, life.fileno())


@contextmanager
def squashfs_mounted(image: Path, extent: Extent, mountpoint: Path) -> Iterator[None]:
    """A squashfs within ``image``, mounted through a loop device. Needs root. Raises LazyfsError.

    No other loop device may use ``image``.
    """
    try:
        device = _attach(image, extent)
        programs.run("mount", ["-t", "squashfs", "-o", "ro", device, mountpoint], _LIMIT)
        yield
    finally:
        _unmount("umount", [], mountpoint)
        for device in loops_below(image):
            programs.run("losetup", ["--detach", device], _LIMIT)


def can_loop_mount() -> bool:
    """Whether this process may set up and mount loop devices."""
    return os.geteuid() == 0 and os.access("/dev/loop-control", os.R_OK | os.W_OK)


def _attach(image: Path, extent: Extent) -> str:
    """Put a read-only loop device on a part of ``image``; returns the device."""
    part = ["--offset", str(extent.offset), "--sizelimit", str(extent.length)]
    for attempt in range(1, _ATTEMPTS + 1):
        device = programs.run("losetup", ["--find"], _LIMIT).strip()
        try:
            programs.run("losetup", ["--read-only", *part, device, image], _LIMIT)
        except LazyfsError:
            if attempt == _ATTEMPTS:
                raise
        else:
            return device
    raise AssertionError("the last attempt returns or raises")


def _unmount_until_ended(mountpoint: Path, life: int) -> None:
    """Unmount, and wait until no process holds the other end of the pipe ``life``.

    Repeated, since a daemon whose launch was interrupted may mount after the first check.
    """
    end = select.poll()
    end.register(life)
    give_up_at = time.monotonic() + _END_LIMIT
    while True:
        _unmount("fusermount3", ["-u"], mountpoint)
        if end.poll(_LOOK_EVERY * 1000):
            return
        if time.monotonic() > give_up_at:
            raise MountError("the daemon of the unmounted image does not end", "see: ps -C lazyfs")


def _unmount(program: str, options: list[str], mountpoint: Path) -> None:
    """Unmount what is mounted there, if anything; lazily if it is busy."""
    if mount_on(mountpoint) is None:
        return
    try:
        programs.run(program, [*options, mountpoint], _LIMIT)
    except LazyfsError:
        lazily = "-z" if program == "fusermount3" else "-l"
        programs.run(program, [*options, lazily, mountpoint], _LIMIT)

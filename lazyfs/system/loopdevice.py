"""Loop devices on files of a mount (loop(4)).

Operations that block on the backing file (attaching, changing it, mounting) must never run in the
event loop that serves that file: callers use a thread or a process for them.
"""

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.core.ranges import Span
from lazyfs.system import programs
from lazyfs.system.filelocks import mark
from lazyfs.system.mountinfo import all_mounts, mounts_of_init

LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h; struct loop_info64 begins with the file's device
LOOP_CHANGE_FD = 0x4C06
LOOP_CONFIGURE = 0x4C0A
LOOP_CTL_GET_FREE = 0x4C82
# struct loop_config: the file, and the offset, size limit and flags of its struct loop_info64.
_CONFIG = struct.Struct("=I4x24xQQ12xI160x16x64x")
_READ_ONLY, _AUTOCLEAR = 1, 4  # LO_FLAGS_*
_TRIES = 100  # to get a free device in competition with other processes
_STATUS_LENGTH = 232
_SURVIVE = frozenset({"squashfs", "erofs", "iso9660", "udf", "cramfs", "romfs"})
_MOST_NESTED = 8  # levels of loop devices on loop devices to follow
READ_AHEAD_KIB = 2048  # keeps several requests in flight, where 128 keep one or two


def loops_below(directory: Path) -> list[str]:
    """The loop devices, like ``/dev/loop0``, whose backing file is ``directory`` or below it.

    From sysfs, which never blocks: ``losetup -a`` stats each backing file and hangs at the first
    stuck mount.
    """
    devices = (
        f"/dev/{entry.parent.name}" for entry in sorted(Path("/sys/block").glob("loop*/loop"))
    )
    return [d for d in devices if (file := backing_file(d)) and file.is_relative_to(directory)]


def backing_file(device: str) -> Path | None:
    """The backing file of a loop device, even if it has been deleted; None for none."""
    try:
        text = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text()
    except OSError:  # detached in the meantime
        return None
    return Path(text.rstrip("\n").removesuffix(" (deleted)"))


def lowest_file(device: str) -> Path | None:
    """The backing file of a loop device, or of the lowest loop device below it."""
    file = backing_file(device)
    for _ in range(_MOST_NESTED):
        if file is None or not str(file).startswith("/dev/loop"):
            break
        file = backing_file(str(file))
    return file


def attach(file: Path) -> str:
    """Set up a read-only loop device with direct I/O on ``file``; returns its path. Blocks.

    Direct I/O keeps 8 to 12 requests in flight where buffered I/O keeps 2, and does not hold the
    data in memory twice. Raises ProgramFailed or ToolMissing.
    """
    options = ["--read-only", "--direct-io=on", "--find", "--show"]
    device = programs.run("losetup", [*options, file]).strip()
    Path(f"/sys/block/{Path(device).name}/queue/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")
    return device


def kinds_that_would_die(device: str) -> set[str]:
    """Types of filesystems mounted on a device that do not survive a change of its backing file.

    LOOP_CHANGE_FD tells the filesystem that its medium is gone (the kernel's bdev_mark_dead). ext4,
    which keeps a journal, then fails everything with EIO until it is unmounted (seen on Linux
    6.18); filesystems designed as read-only continue.
    """
    mounts = (*all_mounts(), *mounts_of_init())
    return {mounted.kind for mounted in mounts if mounted.source == device} - _SURVIVE


def detach(device: str) -> None:
    """Detach now or, if in use, as soon as that ends (losetup(8), lazy destruction)."""
    programs.run("losetup", ["--detach", device])


def stands_on(device: str, filesystem: str) -> bool:
    """Whether a loop device's backing file is on the filesystem with this major:minor. May block.

    Its path does not show this: something else may be mounted there now.
    """
    status = bytearray(_STATUS_LENGTH)
    loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.ioctl(loop, LOOP_GET_STATUS64, status)
    finally:
        os.close(loop)
    (number,) = struct.unpack_from("=Q", status)
    return f"{os.major(number)}:{os.minor(number)}" == filesystem


def change_backing_file(
    device: str,
    file: Path,
    still_right: Callable[[], bool] = lambda: True,
    window: Span | None = None,
) -> bool:
    """Give a read-only loop device, in use or not, another backing file of the same size. Blocks.

    ``window``: the bytes of the file that the device is to show; None for all. A second loop device
    below it shows them, and ends with it.
    ``still_right``: called after the file has been marked; if it returns False, nothing is changed,
    and the result is False.

    The device keeps the file open, and so its mark (``filelocks.py``), for as long as it uses it:
    code that would punch holes into the file can check for it. Raises OSError: EINVAL if the device
    is writable or the size differs.
    """
    with _opened(device) as loop, _opened(file) as backing:
        mark(backing)
        if not still_right():
            return False
        if window is None:
            fcntl.ioctl(loop, LOOP_CHANGE_FD, backing)
            return True
        with _windowed(backing, window) as shown:
            fcntl.ioctl(loop, LOOP_CHANGE_FD, shown)
        return True


@contextmanager
def _windowed(backing: int, window: Span) -> Iterator[int]:
    """Open a new read-only loop device that shows a part of an open file. Raises OSError.

    The kernel detaches it once it is no longer open.
    """
    config = _CONFIG.pack(backing, window.start, window.length, _READ_ONLY | _AUTOCLEAR)
    with _opened("/dev/loop-control", os.O_RDWR) as control:
        for _ in range(_TRIES):
            number = fcntl.ioctl(control, LOOP_CTL_GET_FREE)
            with _opened(f"/dev/loop{number}") as loop:
                try:
                    fcntl.ioctl(loop, LOOP_CONFIGURE, config)
                except OSError as error:
                    if error.errno != errno.EBUSY:
                        raise
                    continue  # another process has taken it
                yield loop
                return
    raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))


@contextmanager
def _opened(path: str | Path, flags: int = os.O_RDONLY) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC)
    try:
        yield fd
    finally:
        os.close(fd)

"""Loop devices on files of a mount (loop(4)).

What blocks on the file below (attaching, changing it, mounting) must never run in the loop that
serves that file: callers use a thread or a process for it.
"""

import fcntl
import os
import struct
from collections.abc import Callable
from pathlib import Path

from lazyfs.system import programs
from lazyfs.system.filelocks import mark
from lazyfs.system.mountinfo import all_mounts, mounts_of_init

LOOP_GET_STATUS64 = 0x4C05  # linux/loop.h; struct loop_info64 begins with the file's device
LOOP_CHANGE_FD = 0x4C06
_STATUS_LENGTH = 232
_SURVIVE = frozenset({"squashfs", "erofs", "iso9660", "udf", "cramfs", "romfs"})
READ_AHEAD_KIB = 2048  # keeps several requests in flight, where 128 keep one or two


def loops_below(directory: Path) -> list[str]:
    """The loop devices, like ``/dev/loop0``, whose backing file is ``directory`` or lies in it.

    From sysfs, which asks nobody: ``losetup -a`` stats each backing file and hangs with the first
    mount that is stuck.
    """
    devices = (
        f"/dev/{entry.parent.name}" for entry in sorted(Path("/sys/block").glob("loop*/loop"))
    )
    return [d for d in devices if (file := backing_file(d)) and file.is_relative_to(directory)]


def backing_file(device: str) -> Path | None:
    """The file that a loop device stands on, or stood on if it is gone; None without one."""
    try:
        text = Path(f"/sys/block/{Path(device).name}/loop/backing_file").read_text()
    except OSError:  # detached in the meantime
        return None
    return Path(text.rstrip("\n").removesuffix(" (deleted)"))


def attach(file: Path) -> str:
    """Set up a read-only loop device with direct I/O on ``file``; returns it. Blocks.

    Direct I/O keeps 8 to 12 requests in flight where the buffered way keeps 2, and does not hold
    the data in memory twice. Raises ProgramFailed or ToolMissing.
    """
    options = ["--read-only", "--direct-io=on", "--find", "--show"]
    device = programs.run("losetup", [*options, file]).strip()
    Path(f"/sys/block/{Path(device).name}/queue/read_ahead_kb").write_text(f"{READ_AHEAD_KIB}\n")
    return device


def kinds_that_would_die(device: str) -> set[str]:
    """Kinds of filesystem mounted on a device that do not survive a change of its file.

    LOOP_CHANGE_FD tells the filesystem that its medium is gone (the kernel's bdev_mark_dead). ext4,
    which keeps a journal, then answers everything with EIO until it is unmounted (seen on Linux
    6.18); what was made to be read only goes on.
    """
    mounts = (*all_mounts(), *mounts_of_init())
    return {mounted.kind for mounted in mounts if mounted.source == device} - _SURVIVE


def detach(device: str) -> None:
    """Detach now; or, while it is in use, as soon as that ends (losetup(8), lazy destruction)."""
    programs.run("losetup", ["--detach", device])


def stands_on(device: str, filesystem: str) -> bool:
    """Whether a loop device's file lies on the filesystem with this major:minor. May block.

    Its path alone does not say so: something else may be mounted there now.
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
    device: str, file: Path, still_right: Callable[[], bool] = lambda: True
) -> bool:
    """Put another file of the same size under a read-only loop device, in use or not. Blocks.

    The device keeps the file open, and with it a mark (``filelocks.py``), for as long as it stands
    on it: so who would punch holes into the file can tell. ``still_right`` is asked once that mark
    is there: if it says no, nothing is changed, and False is returned. Raises OSError: EINVAL if
    the device can be written to, or the size differs.
    """
    loop = os.open(device, os.O_RDONLY | os.O_CLOEXEC)
    try:
        backing = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
        try:
            mark(backing)
            if not still_right():
                return False
            fcntl.ioctl(loop, LOOP_CHANGE_FD, backing)
            return True
        finally:
            os.close(backing)
    finally:
        os.close(loop)

"""Unmounting from outside the daemon, and reporting the processes that hold the mount.

Separate from ``mount.py``, so that it needs neither FUSE's library nor an event loop.
"""

import os
from pathlib import Path

from lazyfs.core.errors import MountError, ProgramFailed
from lazyfs.daemon.leftovers import clear_away
from lazyfs.system import programs
from lazyfs.system.holders import holders_of_mount
from lazyfs.system.loopdevice import loops_below, lowest_file
from lazyfs.system.mountinfo import KIND, Mounted, all_mounts, mount_on


def unmount(mountpoint: Path) -> None:
    """Unmount a mount of lazyfs; its daemon then ends by itself.

    Raises MountError, ProgramFailed or ToolMissing.
    """
    mounted = mount_on(mountpoint)
    if mounted is not None and _is_loop_of_ours(mounted):
        programs.run("umount", ["--", mountpoint])
        clear_away()
    elif mounted is None or mounted.kind != KIND:
        raise MountError(f"lazyfs is not mounted on {mountpoint}", "see: findmnt -t fuse.lazyfs")
    else:
        _unmount_fuse(mountpoint)


def _unmount_fuse(mountpoint: Path) -> None:
    try:
        programs.run("fusermount3", ["-u", "--", mountpoint])
    except ProgramFailed as error:
        loops = loops_below(mountpoint)
        if loops:
            raise MountError(
                f"{mountpoint} is in use by {', '.join(loops)}",
                "unmount the filesystem on it (losetup -d detaches a bare loop device), or give "
                "--handover to let it go on without lazyfs",
            ) from error
        holders = holders_of_mount(mountpoint) if "busy" in error.message else []
        if holders:
            raise MountError(
                f"{mountpoint} is in use: {'; '.join(holders)}", "end that, or leave the directory"
            ) from error
        raise MountError(
            f"{mountpoint} cannot be unmounted: {error.message}",
            "do it as who mounted it, or as root",
        ) from error


def _is_loop_of_ours(mounted: Mounted) -> bool:
    """Whether this is a filesystem on a lazyfs image: on its mount, or on its complete cache."""
    file = lowest_file(mounted.source) if mounted.source.startswith("/dev/loop") else None
    if file is None:
        return False
    ours = [m.mountpoint for m in all_mounts() if m.kind == KIND]
    meta = (file.parent / "meta.json", file.with_name(file.name + ".json"))
    cached = any(os.path.exists(path) for path in meta)  # False, not an error, in a dead mount
    return cached or any(file.is_relative_to(mountpoint) for mountpoint in ours)

"""Unmounting from outside of the daemon, and saying who is in the way.

Apart from ``mount.py``, so that it needs neither FUSE's library nor an event loop.
"""

import os
import subprocess
from pathlib import Path

from lazyfs.errors import MountError, ToolMissing
from lazyfs.frontends.loop import loops_below


def unmount(mountpoint: Path) -> None:
    """Unmount a mount of lazyfs; its daemon ends by itself. Raises MountError or ToolMissing."""
    if not _is_ours(mountpoint):
        raise MountError(f"lazyfs is not mounted on {mountpoint}", "see: findmnt -t fuse.lazyfs")
    try:
        done = subprocess.run(
            ["fusermount3", "-u", "--", mountpoint], capture_output=True, text=True, check=False
        )
    except FileNotFoundError as error:
        raise ToolMissing("fusermount3 is not installed", "install the package fuse3") from error
    if done.returncode:
        raise _refused(mountpoint, done.stderr.strip())


def _is_ours(mountpoint: Path) -> bool:
    """Whether the topmost mount there is of lazyfs, by proc(5) mountinfo."""
    kind = ""
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        fields, _, rest = line.partition(" - ")
        where = fields.split(" ")[4].encode("latin-1", "backslashreplace").decode("unicode_escape")
        if where == os.fspath(mountpoint):
            kind = rest.split(" ")[0]
    return kind == "fuse.lazyfs"


def _refused(mountpoint: Path, why: str) -> MountError:
    loops = loops_below(mountpoint)
    if loops:
        return MountError(
            f"{mountpoint} is in use by {', '.join(loops)}",
            "unmount the filesystem on it first (losetup -d detaches a bare loop device)",
        )
    return MountError(f"{mountpoint} cannot be unmounted: {why}", f"see: fuser -vm {mountpoint}")

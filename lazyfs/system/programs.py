"""The system's programs that lazyfs runs: finding them, and telling what they complained of."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lazyfs.core.errors import ProgramFailed, ToolMissing

_PACKAGES = {  # the Debian packages that hold them
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mksquashfs": "squashfs-tools",
    "modprobe": "kmod",
    "mount": "mount",
    "umount": "mount",
}


def find(program: str) -> str:
    """The path of ``program``. Raises ToolMissing, which names the package to install."""
    # su(1) may leave root without the directories where losetup lies.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found is None:
        raise ToolMissing(
            f"{program} is not installed", f"install the package {_PACKAGES[program]}"
        )
    return found


def run(program: str, arguments: Sequence[str | Path], limit: float | None = None) -> str:
    """Run ``program`` to its end, at most ``limit`` seconds, and return what it printed.

    Raises ProgramFailed with what it complained of; ToolMissing.
    """
    try:
        done = subprocess.run(
            [find(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            start_new_session=True,  # Ctrl-C is meant for us, who clean up
            env={**os.environ, "LC_ALL": "C"},  # what they say is looked at
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{program} did not end within {limit:g} seconds") from error
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"it ended with code {done.returncode}"
        complaint = complaint.partition(" dmesg(1) may have")[0].rstrip(".")  # so says our cure
        named = complaint.startswith(f"{program}:")
        raise ProgramFailed(complaint if named else f"{program}: {complaint}")
    return done.stdout

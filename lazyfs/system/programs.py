"""Running the system's programs: finding them, and reporting their errors."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lazyfs.core.errors import ProgramFailed, ToolMissing

_PACKAGES = {  # the Debian packages that contain them
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mksquashfs": "squashfs-tools",
    "modprobe": "kmod",
    "mount": "mount",
    "umount": "mount",
}


def find(program: str) -> str:
    """The path of ``program``. Raises ToolMissing, which names the package to install."""
    # su(1) may leave root without the directories that contain losetup.
    path = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
    found = shutil.which(program, path=path)
    if found is None:
        raise ToolMissing(
            f"{program} is not installed", f"install the package {_PACKAGES[program]}"
        )
    return found


def run(program: str, arguments: Sequence[str | Path], limit: float | None = None) -> str:
    """Run ``program`` to its end, at most ``limit`` seconds, and return its stdout.

    Raises ProgramFailed, with the program's stderr, or ToolMissing.
    """
    try:
        done = subprocess.run(
            [find(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=limit,
            start_new_session=True,  # Ctrl-C is for lazyfs only, which cleans up
            env={**os.environ, "LC_ALL": "C"},  # their messages are parsed
        )
    except subprocess.TimeoutExpired as error:
        raise ProgramFailed(f"{program} did not end within {limit:g} seconds") from error
    if done.returncode:
        complaint = " ".join(done.stderr.split()) or f"it ended with code {done.returncode}"
        complaint = complaint.partition(" dmesg(1) may have")[0].rstrip(".")  # the cure says so
        named = complaint.startswith(f"{program}:")
        raise ProgramFailed(complaint if named else f"{program}: {complaint}")
    return done.stdout

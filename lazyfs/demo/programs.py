"""The system's programs that the tour runs."""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from lazyfs.errors import LazyfsError, ToolMissing

_TIME_LIMIT = 60.0  # seconds; each of them is done in one
_PACKAGES = {  # the Debian packages that hold them
    "fusermount3": "fuse3",
    "losetup": "mount",
    "mksquashfs": "squashfs-tools",
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


def run(program: str, arguments: Sequence[str | Path]) -> str:
    """Run ``program`` to its end and return what it printed.

    Raises LazyfsError with what it complained of; ToolMissing.
    """
    try:
        done = subprocess.run(
            [find(program), *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=_TIME_LIMIT,
            start_new_session=True,  # Ctrl-C is meant for the tour, which cleans up
        )
    except subprocess.TimeoutExpired as error:
        raise LazyfsError(f"{program} did not end within {_TIME_LIMIT:g} seconds") from error
    if done.returncode:
        raise LazyfsError(f"{program} failed: {' '.join(done.stderr.split())}")
    return done.stdout

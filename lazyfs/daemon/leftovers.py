"""Finding and removing mounts of ``lazyfs loop`` whose daemon was killed.

Each is on its own directory below ``RUNTIME``. While a loop device uses one, it can be repaired,
and is left alone.
"""

import errno
import logging
import os
from pathlib import Path

from lazyfs.core.errors import ProgramFailed
from lazyfs.system import programs
from lazyfs.system.loopdevice import loops_below
from lazyfs.system.mountinfo import KIND, all_mounts

log = logging.getLogger(__name__)

RUNTIME = Path("/run/lazyfs")


def answers(file: Path) -> bool:
    """Whether a daemon serves this file. Tested by open(2): the kernel may answer stat(2)."""
    try:
        os.close(os.open(file, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:  # a dead mount; or it was unmounted, and the path is gone
        return error.errno not in (errno.ENOTCONN, errno.ENOENT, errno.ECONNABORTED)
    return True


def clear_away() -> None:
    """Remove the unused mounts of dead daemons."""
    for mounted in all_mounts():
        place = mounted.mountpoint
        ours = mounted.kind == KIND and place.parent == RUNTIME
        if ours and not loops_below(place) and _is_dead(place):
            try:
                programs.run("umount", ["--lazy", "--", place])
                place.rmdir()
            except (ProgramFailed, OSError) as error:
                log.warning("%s is left behind: %s", place, error)


def _is_dead(mountpoint: Path) -> bool:
    try:
        os.close(os.open(mountpoint, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.ENOTCONN
    return False

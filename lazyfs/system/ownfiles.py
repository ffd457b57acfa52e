"""Files and directories that nobody else can have put there, or can change.

The cache of root may lie where others may write: below a home directory that sudo(8) kept, or in a
directory that is shared. A link there would lead our writes astray, and a file would be believed.
"""

import errno
import functools
import os
import stat
from collections.abc import Iterable
from pathlib import Path

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ALL_USERS = (1 << 32) - 1


def complaint(found: os.stat_result, user: int) -> str:
    """Why ``user`` cannot rely on a file or directory, in a clause; empty if they can.

    It has to be their own, or root's, and nobody else may write to it.
    """
    if found.st_uid not in (user, 0):
        return f"belongs to another user (uid {found.st_uid})"
    return "can be written to by others" if found.st_mode & _OTHERS else ""


def complaint_above(found: os.stat_result, user: int) -> str:
    """The same of a directory somewhere above a file, where others might exchange what is in it.

    In a directory like /tmp only owners can. A group that may write was chosen by the owner.
    """
    if found.st_uid not in (user, 0):
        return f"belongs to another user (uid {found.st_uid})"
    open_to_all = found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX
    return "can be written to by everybody" if open_to_all else ""


def open_own(path: Path, flags: int, mode: int = 0o600) -> int:
    """Open a regular file that is ours alone; returns its descriptor. Raises OSError.

    A link is not followed, and a FIFO not waited for. ``flags``, ``mode``: as in open(2).
    """
    safely = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        fd = os.open(path, flags | safely, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _refused(path, "is a symbolic link") from error
        raise
    try:
        check_file(path, os.fstat(fd))
    except OSError:
        os.close(fd)
        raise
    return fd


def check_file(path: Path, found: os.stat_result) -> None:
    """Raises OSError if a file is not regular, or not ours alone."""
    if stat.S_ISLNK(found.st_mode):
        raise _refused(path, "is a symbolic link")
    if not stat.S_ISREG(found.st_mode):
        raise _refused(path, "is no regular file")
    if why := complaint(found, os.geteuid()):
        raise _refused(path, why)


def make_directory(path: Path) -> None:
    """Make a directory and those above it, as far as they are missing, for us alone.

    Raises OSError.
    """
    missing = [place for place in (path, *path.parents) if not place.exists()]
    for place in [*reversed(missing), path]:
        place.mkdir(mode=0o700, exist_ok=True)


def check_directory(path: Path) -> None:
    """Raises OSError if others can exchange what we put into a directory, or the directory.

    It may be sticky, as a new tmpfs is: others can then add to it, and what they add is not ours.
    The directory may be named by a link.
    """
    real = Path(os.path.realpath(path))
    found = real.lstat()
    if not found.st_mode & stat.S_ISVTX:
        check_inner_directory(real)
    elif why := complaint_above(found, os.geteuid()):
        raise _refused(path, why)
    for above in _once((*path.absolute().parents, *real.parents)):
        found = above.stat()
        if found.st_uid == _unmapped():
            continue
        if why := complaint_above(found, os.geteuid()):
            raise _refused(path, f"is not safe there: {above} {why}")


def check_inner_directory(path: Path) -> None:
    """Raises OSError if a directory in one that is ours alone is not so itself."""
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise _refused(path, "is no directory")
    if why := complaint(found, os.geteuid()):
        raise _refused(path, why)


@functools.cache
def _unmapped() -> int | None:
    """The owner that a user namespace shows for those that it does not map; None outside of one.

    There ``/`` belongs to the root of the machine, which has no other number.
    """
    try:
        whole = Path("/proc/self/uid_map").read_text().split() == ["0", "0", str(_ALL_USERS)]
        return None if whole else int(Path("/proc/sys/kernel/overflowuid").read_text())
    except (OSError, ValueError):
        return None


def _once(paths: Iterable[Path]) -> Iterable[Path]:
    return dict.fromkeys(paths)


def _refused(path: Path, why: str) -> OSError:
    return OSError(errno.EPERM, f"it {why}", str(path))

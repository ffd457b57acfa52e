"""Writing small files atomically: our own, and those that a user named.

The new content is first written to a file of a random name beside the old one, which nobody can
have put there before us (O_EXCL), not even as a link.
"""

import contextlib
import errno
import os
import secrets
import select
import stat
import time
from collections.abc import Iterator
from pathlib import Path

PARTIAL = r"\.[0-9a-f]{16}\.new"  # the end of the temporary file's name, a regular expression
_LONGEST_NAME = 200  # bytes of a name that are kept in the temporary one, which NAME_MAX limits
_MOST_LINKS = 40  # Linux's limit
_PATIENCE = 10.0  # seconds for a FIFO or device to take something
_SHARED = stat.S_ISVTX | stat.S_IWOTH  # the mode of /tmp


def write_own(path: Path, content: bytes, *, synced: bool = False, mode: int = 0o600) -> None:
    """Replace ``path`` atomically by a new file, even if it is a link. Raises OSError.

    ``mode``: the permissions of the new file, less the umask.
    ``synced``: whether to fsync it, so that it survives a power cut.
    """
    with _replacing(path, mode) as fd:
        _write_all(fd, content)
        if synced:
            os.fsync(fd)


def write_whole(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Write a file that a user named; atomically, if it is a regular file. Raises OSError.

    Links are followed as far as ``target_of`` follows them. An existing file keeps owner and mode;
    where we may not replace it so, it is written in place. A device or FIFO is written to, and
    stays; if nothing takes the content within seconds, that is an error.

    ``mode``: the permissions of a new file, less the umask.
    """
    target = target_of(path)
    try:
        found = target.stat()
    except FileNotFoundError:
        write_own(target, content, mode=mode)
        return
    if not stat.S_ISREG(found.st_mode) or _is_open_file(target):
        _write_in_place(target, content)
        return
    try:
        with _replacing(target, mode) as fd:
            os.fchown(fd, found.st_uid, found.st_gid)
            os.fchmod(fd, stat.S_IMODE(found.st_mode))
            _write_all(fd, content)
    except PermissionError:
        _write_in_place(target, content)


def target_of(path: Path) -> Path:
    """What a path named by a user leads to, by its links; it need not exist. Raises OSError.

    In a directory where everybody may put links, like /tmp, only those of ourselves and of the
    directory's owner are followed, even if fs.protected_symlinks (proc(5)) is off.
    """
    for _ in range(_MOST_LINKS):
        try:
            found = path.lstat()
        except FileNotFoundError:
            return path
        if not stat.S_ISLNK(found.st_mode):
            return path
        within = path.parent.stat()
        shared = within.st_mode & _SHARED == _SHARED
        if shared and found.st_uid not in (os.geteuid(), within.st_uid):
            raise PermissionError(errno.EACCES, "somebody else's link is there", str(path))
        if _is_open_file(path):
            return path
        path = path.parent / os.readlink(path)
    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))


@contextlib.contextmanager
def _replacing(path: Path, mode: int) -> Iterator[int]:
    """A descriptor of a new file that replaces ``path`` when the block ends. Raises OSError."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    beginning = os.fsdecode(os.fsencode(path.name)[:_LONGEST_NAME])
    partial = f"{beginning}.{secrets.token_hex(8)}.new"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(partial, flags, mode, dir_fd=directory)
        try:
            try:
                yield fd
            finally:
                os.close(fd)
            os.replace(partial, path.name, src_dir_fd=directory, dst_dir_fd=directory)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(partial, dir_fd=directory)
            raise
    finally:
        os.close(directory)


def _write_in_place(path: Path, content: bytes) -> None:
    """Write to what is there. A FIFO without a reader is refused, rather than waited for."""
    flags = os.O_WRONLY | os.O_TRUNC | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    flags |= 0 if _is_open_file(path) else os.O_NOFOLLOW
    fd = os.open(path, flags)
    try:
        _write_all(fd, content)
    finally:
        os.close(fd)


def _is_open_file(path: Path) -> bool:
    """Whether this is a link like those in /proc/self/fd, which name no path: /dev/stdout."""
    return os.path.realpath(path.parent).startswith("/proc/")


def _write_all(fd: int, content: bytes) -> None:
    left, until = memoryview(content), time.monotonic() + _PATIENCE
    watch = select.poll()
    watch.register(fd, select.POLLOUT)
    while left:
        try:
            left = left[os.write(fd, left) :]
        except BlockingIOError:
            if not watch.poll(1000 * max(0, until - time.monotonic())):
                raise TimeoutError(errno.ETIMEDOUT, "nobody reads it") from None

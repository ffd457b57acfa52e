"""A cache directory: the caches in it, their disk usage, and their users."""

import contextlib
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lazyfs.cache.layout import CacheLock, Layout, clear
from lazyfs.core.errors import CacheBusy, CacheError
from lazyfs.system.filelocks import is_marked
from lazyfs.system.ownfiles import open_own

BRIEF = 0.2  # seconds: another process may hold the lock for a moment to look at its holder
_SECTOR = 512  # bytes; the unit of st_blocks
_KEY = re.compile(r".+-[0-9a-f]{16}")  # the name of a cache's directory, see ``address.cache_key``


@dataclass(frozen=True)
class Entry:
    """One image's cache.

    ``allocated``: bytes on disk, of all its files.
    ``used_at``: when it was last in use, in POSIX seconds.
    ``process``: the process that uses it now, from its lock; None for none.
    ``in_use_by_loop``: whether a loop device uses its data file.
    """

    paths: Layout
    allocated: int
    used_at: float
    process: str | None
    in_use_by_loop: bool

    @property
    def holder(self) -> str | None:
        """The current user, in words; None for none."""
        if self.process is not None:
            return f"process {self.process}"
        return "a loop device" if self.in_use_by_loop else None

    @property
    def directory(self) -> Path:
        return self.paths.data.parent

    @property
    def name(self) -> str:
        return self.directory.name


def entries(directory: Path) -> list[Entry]:
    """The caches in a directory, least recently used first; other entries are left out.

    Raises OSError.
    """
    found = [_entry(Path(item.path)) for item in os.scandir(directory) if _may_be_one(item)]
    return sorted((entry for entry in found if entry is not None), key=lambda e: e.used_at)


def remove(entry: Entry) -> None:
    """Delete an unused cache. Raises CacheBusy or CacheError."""
    lock = CacheLock(entry.paths.lock, patience=BRIEF, touch=False)
    try:
        if _is_stood_on(entry.paths.data):
            raise CacheBusy(f"a loop device stands on {entry.paths.data}", "unmount it first")
        clear(entry.paths)
        entry.paths.claim.unlink(missing_ok=True)
        entry.paths.lock.unlink()
        entry.directory.rmdir()
    except OSError as error:
        raise CacheError(
            f"{entry.directory} cannot be removed: {error.strerror}",
            "remove it as its owner, or as root",
        ) from error
    finally:
        lock.close()


def _may_be_one(item: os.DirEntry[str]) -> bool:
    return bool(_KEY.fullmatch(item.name)) and item.is_dir(follow_symlinks=False)


def _entry(directory: Path) -> Entry | None:
    """The cache in a directory; None if another process is removing it."""
    paths = Layout.in_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        return Entry(
            paths,
            allocated(directory),
            paths.lock.lstat().st_mtime,
            _holder(paths.lock),
            _is_stood_on(paths.data),
        )
    return None


def allocated(directory: Path) -> int:
    """Bytes on disk of the files in a cache's directory. Raises OSError."""
    found = (item.stat(follow_symlinks=False) for item in os.scandir(directory))
    return sum(status.st_blocks for status in found) * _SECTOR


def _is_stood_on(data: Path) -> bool:
    try:
        fd = open_own(data, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return is_marked(fd)
    finally:
        os.close(fd)


def _holder(lock: Path) -> str | None:
    """The process that holds a lock, as the lock file says; None for none."""
    fd = open_own(lock, os.O_RDONLY)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
    else:
        return None
    finally:
        os.close(fd)

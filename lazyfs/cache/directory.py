"""A cache directory: the caches in it, what they take, and who uses them."""

import contextlib
import fcntl
import os
import re
from dataclasses import dataclass
from pathlib import Path

from lazyfs.cache.layout import CacheLock, CachePaths, clear
from lazyfs.core.errors import CacheBusy, CacheError
from lazyfs.system.filelocks import is_marked

BRIEF = 0.2  # seconds: somebody may just be looking who has the lock
_SECTOR = 512  # bytes; the unit of st_blocks
_KEY = re.compile(r".+-[0-9a-f]{16}")  # the name of a cache's directory, see ``urls.cache_key``


@dataclass(frozen=True)
class Entry:
    """One image's cache.

    ``allocated``: bytes on the disk, of all its files. ``used_at``: when it was last in use, POSIX
    seconds. ``process``: the one that uses it now, as its lock has it; None if none does.
    ``stood_on``: whether a loop device stands on its data.
    """

    paths: CachePaths
    allocated: int
    used_at: float
    process: str | None
    stood_on: bool

    @property
    def holder(self) -> str | None:
        """Who uses it now, in words; None for nobody."""
        if self.process is not None:
            return f"process {self.process}"
        return "a loop device" if self.stood_on else None

    @property
    def directory(self) -> Path:
        return self.paths.data.parent

    @property
    def name(self) -> str:
        return self.directory.name


def entries(directory: Path) -> list[Entry]:
    """The caches in a directory, the one that was in use longest ago first.

    What is not a cache is left out. Raises OSError.
    """
    found = [_entry(Path(item.path)) for item in os.scandir(directory) if _may_be_one(item)]
    return sorted((entry for entry in found if entry is not None), key=lambda e: e.used_at)


def remove(entry: Entry) -> None:
    """Delete a cache that nobody uses. Raises CacheBusy or CacheError."""
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
    """None when it is being removed by somebody else."""
    paths = CachePaths.in_directory(directory)
    with contextlib.suppress(FileNotFoundError):
        return Entry(
            paths,
            allocated(directory),
            paths.lock.stat().st_mtime,
            _holder(paths.lock),
            _is_stood_on(paths.data),
        )
    return None


def allocated(directory: Path) -> int:
    """Bytes that the files in a cache's directory take on the disk. Raises OSError."""
    return sum(item.stat().st_blocks for item in os.scandir(directory)) * _SECTOR


def _is_stood_on(data: Path) -> bool:
    try:
        fd = os.open(data, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False
    try:
        return is_marked(fd)
    finally:
        os.close(fd)


def _holder(lock: Path) -> str | None:
    """Who has a lock, as the lock says; None for nobody."""
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
    else:
        return None
    finally:
        os.close(fd)

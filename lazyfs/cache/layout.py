"""The layout of one image's cache: its files, its lock, and its metadata.

The files are described in ``disk.py``; ``directory.py`` handles a directory of such caches.
"""

import contextlib
import fcntl
import json
import logging
import os
import re
import stat
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lazyfs.cache.bitmap import padded_bytes
from lazyfs.core.device import Identity
from lazyfs.core.errors import CacheBusy, CacheError, CacheUnknown
from lazyfs.core.options import CACHE_ENDINGS, is_block_size
from lazyfs.system.atomicfile import PARTIAL, write_own
from lazyfs.system.ownfiles import (
    check_directory,
    check_file,
    check_inner_directory,
    make_directory,
    open_own,
)

log = logging.getLogger(__name__)

FORMAT = 1
SUM = 8  # bytes of a block's checksum
_LONGEST_META = 64 << 10  # characters
_VIEW = re.compile(r"-[0-9a-f]{16}")  # the end of a view's catalog's name
_PARTIAL = re.compile(rf"(.+?)(?:{PARTIAL}|\.new)")


@dataclass(frozen=True)
class Layout:
    """The files of one image's cache."""

    data: Path
    bitmap: Path
    sums: Path
    meta: Path
    lock: Path
    claim: Path  # see ``quota.py``
    catalog: Path  # of the files in the image; its views' catalogs are beside it
    # Whether the user named the files, which then may be something other than a cache.
    foreign: bool = field(default=False, kw_only=True)

    @classmethod
    def in_directory(cls, directory: Path) -> "Layout":
        names = ("data", "bitmap", "sums", "meta.json", "lock", "claim", "catalog")
        return cls(*(directory / name for name in names))

    @classmethod
    def named(cls, bitmap: Path, data: Path) -> "Layout":
        """The layout for two files that the user named; the others are beside the data file."""
        beside = [data.with_name(data.name + ending) for ending in CACHE_ENDINGS]
        return cls(data, bitmap, *beside, foreign=True)

    def catalog_of(self, view: str) -> Path:
        """The catalog of a view, given the digest of its layers; empty for the image itself."""
        return self.catalog.with_name(f"{self.catalog.name}-{view}") if view else self.catalog

    @property
    def files(self) -> list[Path]:
        """All files, which need not exist."""
        named = self.data, self.bitmap, self.sums, self.meta, self.lock, self.claim
        return [*named, *self.catalogs]

    @property
    def catalogs(self) -> list[Path]:
        """The catalogs of the image and of its existing views."""
        views = (name for name in self._beside() if self._is_view(name))
        return [self.catalog, *(self.catalog.with_name(view) for view in views)]

    @property
    def partial(self) -> list[Path]:
        """Temporary files that a process may have left behind while writing."""
        found = ((name, _PARTIAL.fullmatch(name)) for name in self._beside())
        return [self.meta.with_name(n) for n, match in found if match and self._is_ours(match[1])]

    def _is_ours(self, name: str) -> bool:
        return name in (self.meta.name, self.catalog.name) or self._is_view(name)

    def _is_view(self, name: str) -> bool:
        beginning = self.catalog.name
        return name.startswith(beginning) and bool(_VIEW.fullmatch(name[len(beginning) :]))

    def _beside(self) -> list[str]:
        """The names of the files in the directory of metadata and catalogs."""
        try:
            return sorted(os.listdir(self.catalog.parent))
        except OSError:
            return []


class CacheLock:
    """The exclusive lock of a cache, held until ``close``."""

    def __init__(self, path: Path, patience: float = 5.0, *, touch: bool = True) -> None:
        """Take the lock.

        ``patience``: seconds to wait for a daemon that is just ending: it saves its cache first,
        which takes a while on a busy disk.
        ``touch``: whether this counts as a use of the cache.

        Raises CacheBusy or CacheError.
        """
        try:
            self._fd = self._taken(path, time.monotonic() + patience)
        except OSError as error:
            raise CacheError(
                f"the cache directory {path.parent} cannot be used: {error.strerror}",
                "name another with --cache-dir, or use --no-cache",
            ) from error
        self._used_at = None if touch else _times(self._fd)
        with contextlib.suppress(OSError):  # a full disk: others then see an unknown process
            os.ftruncate(self._fd, 0)
            os.pwrite(self._fd, f"{os.getpid()}\n".encode(), 0)

    def close(self) -> None:
        """Release the lock; the file's time then says when the cache was last in use."""
        fd, self._fd = self._fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # a read-only disk: the time stays unchanged
                if self._used_at is None:
                    os.utime(fd)
                else:
                    os.utime(fd, ns=self._used_at)
            os.close(fd)

    def _taken(self, path: Path, until: float) -> int:
        """A descriptor that holds the lock. Raises CacheBusy, CacheError or OSError."""
        while True:
            make_directory(path.parent)
            fd = open_own(path, os.O_RDWR | os.O_CREAT)
            try:
                if _flock(fd):
                    if not _HOLDER.fullmatch(os.pread(fd, 32, 0)):
                        raise CacheError(
                            f"{path} exists and is no lock of lazyfs", "name another cache"
                        )
                    if _is_at(fd, path):
                        return os.dup(fd)
                elif time.monotonic() > until:
                    holder = os.pread(fd, 32, 0).decode(errors="replace").strip() or "unknown"
                    raise CacheBusy(
                        f"the cache {path.parent} is in use by another lazyfs (process {holder})",
                        "use its mount, name another place with --cache-dir, or use --no-cache",
                    )
                else:
                    time.sleep(0.05)
            finally:
                os.close(fd)


_HOLDER = re.compile(rb"(\d{1,10}\n)?\0*")  # a lock file's content; zeros after a power cut


def _times(fd: int) -> tuple[int, int]:
    found = os.fstat(fd)
    return found.st_atime_ns, found.st_mtime_ns


def _flock(fd: int) -> bool:
    """Take the lock if it is free."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(fd: int, path: Path) -> bool:
    """Whether ``path`` is still this file: the last lock holder may have removed the cache."""
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@dataclass(frozen=True)
class Meta:
    """The content of ``meta.json``."""

    url: str
    identity: Identity
    block_size: int

    def save(self, path: Path) -> None:
        content = {
            "format": FORMAT,
            "url": self.url,
            "identity": asdict(self.identity),
            "block_size": self.block_size,
        }
        text = json.dumps(content, indent=2) + "\n"
        write_own(path, text.encode(), synced=True)

    @classmethod
    def load(cls, path: Path) -> "Meta | None":
        """Load the file; None if there is none.

        Raises CacheUnknown if its content is not understood, CacheError if it cannot be read: a
        momentary disk failure must not cost the cache.
        """
        try:
            with open(open_own(path, os.O_RDONLY), encoding="utf-8") as file:
                content = json.loads(file.read(_LONGEST_META))
            if content["format"] != FORMAT:
                raise CacheUnknown(f"{path} is of another format")
            return cls._checked(content)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise CacheError(
                f"{path} cannot be read: {error.strerror}",
                "name another place with --cache-dir, or use --no-cache",
            ) from error
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CacheUnknown(f"{path} cannot be understood ({error})") from error

    @classmethod
    def _checked(cls, content: Any) -> "Meta":
        """Raises ValueError, KeyError or TypeError if ``save`` did not write this content."""
        identity, block_size = Identity(**content["identity"]), content["block_size"]
        if type(block_size) is not int or not is_block_size(block_size):
            raise ValueError(f"block size {block_size!r}")
        if type(identity.size) is not int or identity.size <= 0:
            raise ValueError(f"size {identity.size!r}")
        for validator in (identity.etag, identity.last_modified, identity.weak_etag):
            if not isinstance(validator, str | None):
                raise TypeError(f"validator {validator!r}")
        return cls(str(content["url"]), identity, block_size)


def prepare(paths: Layout) -> None:
    """Make the directories of a cache, and see that nobody else has anything there.

    The directory of files that a user named is theirs to choose. Raises CacheError.
    """
    if not paths.foreign:
        _prepare_directory(paths.lock.parent)
    for path in paths.files:
        try:
            check_file(path, path.lstat())
        except FileNotFoundError:
            continue
        except OSError as error:
            raise CacheError(
                f"the cache file {path} cannot be used: {error.strerror}",
                "name another place with --cache-dir, or use --no-cache",
            ) from error


def _prepare_directory(directory: Path) -> None:
    try:
        make_directory(directory)
        check_directory(directory.parent)
        check_inner_directory(directory)
    except OSError as error:
        raise CacheError(
            f"the cache directory {error.filename or directory} cannot be used: {error.strerror}",
            "name another with --cache-dir, or use --no-cache",
        ) from error


def check_foreign(paths: Layout, meta: Meta | None) -> None:
    """Raises CacheError if files that a user named may be something other than a cache."""
    expected = {path: {0} for path in (paths.data, paths.bitmap, paths.sums, paths.meta)}
    if meta is not None:
        blocks = -(-meta.identity.size // meta.block_size)
        expected[paths.data].add(meta.identity.size)
        expected[paths.bitmap].add(padded_bytes(blocks))
        expected[paths.sums].add(blocks * SUM)
        del expected[paths.meta]
    for path, sizes in expected.items():
        try:
            found = path.stat()
        except FileNotFoundError:
            continue
        if not stat.S_ISREG(found.st_mode) or found.st_size not in sizes:
            raise CacheError(
                f"{path} exists and is no cache of lazyfs",
                "name another file, or remove it yourself",
            )


def clear(paths: Layout) -> None:
    """Delete a cache's files. The bitmap goes first: without it nothing else counts."""
    files = paths.bitmap, *paths.partial, *paths.catalogs, paths.sums, paths.data, paths.meta
    for path in files:
        path.unlink(missing_ok=True)

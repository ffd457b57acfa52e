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
from lazyfs.system.atomicfile import write_whole

log = logging.getLogger(__name__)

FORMAT = 1
SUM = 8  # bytes of a block's checksum
_LONGEST_META = 64 << 10  # characters
_VIEW = re.compile(r"-[0-9a-f]{16}(\.new)?")  # the end of a view's catalog's name


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
    def catalogs(self) -> list[Path]:
        """The catalogs of the image and of its existing views."""
        try:
            beside = sorted(os.listdir(self.catalog.parent))
        except OSError:
            beside = []
        name = self.catalog.name
        views = (n for n in beside if n.startswith(name) and _VIEW.fullmatch(n[len(name) :]))
        return [self.catalog, *(self.catalog.with_name(view) for view in views)]

    @property
    def partial(self) -> list[Path]:
        """Temporary files that a process may have left behind while writing."""
        return [path.with_name(f"{path.name}.new") for path in (self.meta, *self.catalogs)]


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
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o600)
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
        write_whole(path, text.encode(), synced=True)

    @classmethod
    def load(cls, path: Path) -> "Meta | None":
        """Load the file; None if there is none.

        Raises CacheUnknown if its content is not understood, CacheError if it cannot be read: a
        momentary disk failure must not cost the cache.
        """
        try:
            with open(path, encoding="utf-8", opener=_at_once) as file:
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


def _at_once(path: str, flags: int) -> int:
    """Open a file; if it is a pipe, do not wait for a writer."""
    return os.open(path, flags | os.O_NONBLOCK)


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

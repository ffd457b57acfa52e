"""The quota of one image's cache within the limit of its cache directory.

The limit applies to the whole directory and all daemons that use it. Each daemon *claims* the size
that its caches may grow to, in steps, in a file ``claim`` beside the data, and writes only within
its claim; claims are made under one lock of the directory. The claim of a dead daemon is void: its
cache counts with its disk usage.

When the directory is full, unused caches are removed first, least recently used first. If that is
not enough, the cache has to evict its own blocks.

Rejected: a separate daemon that watches the directory (one more thing that can be absent);
checking the disk usage now and then (the limit would be exceeded between two checks).
"""

import contextlib
import fcntl
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lazyfs.cache.directory import Entry, entries, remove
from lazyfs.core.errors import CacheError
from lazyfs.system.atomicfile import write_own
from lazyfs.system.ownfiles import open_own

log = logging.getLogger(__name__)

_PAGE = 4096  # bytes; the allocation unit of disks
_BESIDE = 3 * _PAGE  # bytes that checksums and bitmap may take for one write
_FIXED = 16 * _PAGE  # bytes: lock, metadata, claim and the directories themselves
_LARGEST_STEP = 64 << 20


class Quota:
    """The bytes that the cache in ``place`` may write."""

    def __init__(
        self,
        place: Path,
        allocated: Callable[[], int],
        limit: int | None = None,
        min_free: int | None = None,
    ) -> None:
        """``place``: a directory below the one that ``limit`` applies to.

        ``allocated``: returns the cache's current disk usage, in bytes.
        ``limit``, ``min_free``: bytes; see ``CacheOptions``.
        """
        self._place = place
        self._allocated = allocated
        self._limit = limit
        self._min_free = min_free
        self._step = _LARGEST_STEP if limit is None else min(_LARGEST_STEP, limit // 16)
        self._taken = 0  # bytes that the cache takes at most
        self._claim = 0
        self._needed = 0  # bytes that the last requested write takes
        self.shortage = 0  # bytes to free before more can be written within the limit
        self.refusal = ""  # why ``take`` refused, if freeing blocks would not help but time might

    @property
    def limited(self) -> bool:
        """Whether new blocks may require evictions."""
        return self._limit is not None

    def take(self, length: int) -> bool:
        """Reserve bytes to write; returns whether they may be written. Raises OSError."""
        if self._limit is None and self._min_free is None:
            return True
        self.refusal = ""
        cost = -(-length // _PAGE) * _PAGE + _BESIDE
        self._needed = cost
        if self._taken + cost > self._claim and not self.shortage:
            self.measure()
        if self._taken + cost > self._claim:
            return False
        self._taken += cost
        return True

    def measure(self) -> None:
        """Measure the disk usage and claim up to one more step. Raises OSError.

        Nothing is claimed while another daemon makes its claim: the event loop must not block.
        """
        self._claim, self.shortage = 0, 0
        self._taken = self._allocated() + _FIXED
        step = max(self._step, self._needed)
        most = self._taken + step
        if self._min_free is not None:
            found = os.statvfs(self._place)
            most = min(most, self._taken + found.f_bavail * found.f_frsize - self._min_free)
            if most < self._taken + self._needed:
                self.refusal = "its disk has no more than --min-free left"
        if self._limit is None:
            self._claim = most
            return
        with self._directory_locked() as alone:
            if alone:
                self._claim_within(self._limit, most, step)

    def _claim_within(self, limit: int, wanted: int, step: int) -> None:
        others = [e for e in entries(self._place.parent) if e.directory != self._place]
        sizes = {e.name: max(e.allocated, _claim_of(e)) for e in others}
        for entry in others:
            if sum(sizes.values()) + wanted <= limit:
                break
            if entry.holder is None and _removed(entry):
                del sizes[entry.name]
        claim = min(wanted, limit - sum(sizes.values()))
        write_own(self._place / "claim", f"{max(0, claim)}\n".encode())
        self._claim = claim
        if claim < wanted and claim < self._taken + self._needed:
            self.shortage = max(step, self._taken - claim)

    @contextlib.contextmanager
    def _directory_locked(self) -> Iterator[bool]:
        """Try to lock the directory for making claims; yields whether that succeeded."""
        path = self._place.parent / "limit.lock"
        fd = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield True
        except BlockingIOError:
            yield False
        finally:
            os.close(fd)


def _claim_of(entry: Entry) -> int:
    """The claim of the daemon that uses this cache, in bytes; 0 for none."""
    if entry.process is None:
        return 0
    try:
        with open(open_own(entry.paths.claim, os.O_RDONLY), encoding="ascii") as file:
            return int(file.read(20))
    except (OSError, ValueError):
        return 0


def _removed(entry: Entry) -> bool:
    """Remove an unused cache, unless a daemon has just begun to use it."""
    try:
        remove(entry)
    except CacheError as error:
        log.debug("%s stays: %s", entry.directory, error)
        return False
    log.info("the cache %s made room: it was in use longest ago", entry.name)
    return True

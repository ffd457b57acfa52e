"""Sparse files, read and written exactly at any offset.

The store accesses the disk only through ``File``. Tests replace it (``Opener``) by a disk that
loses, reorders and tears unsynced writes.
"""

import ctypes
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from lazyfs.core.ranges import Span
from lazyfs.system.filelocks import is_marked
from lazyfs.system.ownfiles import open_own

_KEEP_SIZE, _PUNCH_HOLE = 1, 2  # linux/falloc.h
_SECTOR = 512  # bytes; the unit of st_blocks


class File:
    """One open sparse file of a fixed length. All errors are OSErrors."""

    def __init__(self, path: Path, length: int) -> None:
        """Open the file, or create it with mode 0600; truncate or extend it to ``length`` bytes.

        It must be ours alone (``system/ownfiles.py``).
        """
        self.path = path
        self.length = length
        self._fd = open_own(path, os.O_RDWR | os.O_CREAT)
        try:
            if os.fstat(self._fd).st_size != length:
                os.ftruncate(self._fd, length)
        except OSError:
            self.close()
            raise

    def read(self, span: Span) -> bytes:
        """Read exactly these bytes."""
        content = os.pread(self._fd, span.length, span.start)
        while len(content) < span.length:
            more = os.pread(self._fd, span.length - len(content), span.start + len(content))
            if not more:
                raise OSError(0, "the file has become shorter")
            content += more
        return content

    def write(self, content: bytes | memoryview, offset: int) -> None:
        """Write all of these bytes."""
        written = os.pwrite(self._fd, content, offset)
        while written < len(content):
            written += os.pwrite(self._fd, memoryview(content)[written:], offset + written)

    def extents(self) -> Iterator[Span]:
        """The extents that hold data (lseek(2), SEEK_DATA)."""
        position = 0
        while position < self.length:
            try:
                start = os.lseek(self._fd, position, os.SEEK_DATA)
            except OSError:  # ENXIO: only a hole is left
                return
            position = os.lseek(self._fd, start, os.SEEK_HOLE)
            yield Span(start, min(position, self.length))

    def punch(self, span: Span) -> None:
        """Free the space of these bytes; they then read as zeros (fallocate(2))."""
        offset, length = ctypes.c_int64(span.start), ctypes.c_int64(span.length)
        if _fallocate(self._fd, _KEEP_SIZE | _PUNCH_HOLE, offset, length) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(self.path))

    def in_use_by_loop(self) -> bool:
        """Whether a loop device uses the file, which is then marked (``system/loopdevice.py``)."""
        return is_marked(self._fd)

    def allocated(self) -> int:
        """Bytes that it takes on disk."""
        return os.fstat(self._fd).st_blocks * _SECTOR

    def sync(self) -> None:
        """Sync all written data to disk (fdatasync)."""
        os.fdatasync(self._fd)

    @property
    def link(self) -> Path:
        """A path to this file that is valid in this process even after its deletion (proc(5))."""
        return Path(f"/proc/self/fd/{self._fd}")

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)


Opener = Callable[[Path, int], File]  # path, length

_fallocate = ctypes.CDLL(None, use_errno=True).fallocate64

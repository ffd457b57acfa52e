"""A local file as an image: a whole Device by itself, for it needs no cache."""

import os
from pathlib import Path

import trio

from lazyfs.device import Identity, Link, Priority, Statistics
from lazyfs.errors import ImageError
from lazyfs.ranges import clamp
from lazyfs.sources.link import Link as LocalLink


class FileDevice:
    """A file or a block device. On a mount of lazyfs, that mount's cache is behind it."""

    def __init__(self, path: Path) -> None:
        """Raises ImageError when it cannot be opened."""
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
            try:
                size = os.lseek(self._fd, 0, os.SEEK_END)
                self.modified = os.fstat(self._fd).st_mtime
            except OSError:
                os.close(self._fd)
                raise
        except OSError as error:
            raise ImageError(f"{path} cannot be read: {error.strerror}") from error
        self.identity = Identity(size)
        self.link: Link = LocalLink()

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        try:
            content = await trio.to_thread.run_sync(os.pread, self._fd, span.length, span.start)
        except OSError as error:
            raise ImageError(f"{self._path} cannot be read: {error.strerror}") from error
        if len(content) < span.length:
            raise ImageError(f"{self._path} has become shorter")
        return content

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """It is all here."""

    async def wait_complete(self) -> None:
        """It is all here."""

    def statistics(self) -> Statistics:
        return Statistics(size=self.identity.size, cached=self.identity.size)

    async def aclose(self) -> None:
        os.close(self._fd)

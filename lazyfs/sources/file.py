"""A local file as an image: a complete Device, since it needs no cache."""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from lazyfs.core.device import Identity, Link, Priority, Statistics
from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import clamp
from lazyfs.sources.link import LinkEstimate


class FileDevice:
    """A file or a block device. A file on a lazyfs mount is cached by that mount."""

    def __init__(self, path: Path, identity: Identity | None = None) -> None:
        """``identity``: of the content, if known. Raises ImageError."""
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
            raise ImageError(
                f"{path} cannot be read: {error.strerror}",
                "see that it is there, and who may read it",
            ) from error
        known = identity is not None and identity.size == size
        self.identity = identity if identity is not None and known else Identity(size)
        self.link: Link = LinkEstimate()

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        try:
            content = await trio.to_thread.run_sync(os.pread, self._fd, span.length, span.start)
        except OSError as error:
            raise ImageError(
                f"{self._path} cannot be read: {error.strerror}", "look at the disk that it is on"
            ) from error
        if len(content) < span.length:
            raise ImageError(
                f"{self._path} has become shorter", "try again when nobody writes to it"
            )
        return content

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """Does nothing: the whole file is local."""

    def ready(self, offset: int, length: int) -> bool:  # noqa: ARG002
        """False: the disk, or the mount that the file is on, may be slow."""
        return False

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        here = clamp(offset, length, self.identity.size).length
        if here:
            yield here, True

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        here = clamp(offset, length, self.identity.size).length
        return [(here, False)] if here else []

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        """Does nothing: the whole file is local."""

    def statistics(self) -> Statistics:
        return Statistics(size=self.identity.size, cached=self.identity.size)

    async def aclose(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

"""Copying files, directories and links from an ISO image to the local disk.

Nothing is written outside the destination, whatever the image contains: every name is created and
opened relative to the open file descriptor of its directory, and symbolic links in the destination
are never followed.
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import ImageError, OutputError, UsageError
from lazyfs.formats.filecontent import Content
from lazyfs.formats.tree import Kind, Node, Tree

log = logging.getLogger(__name__)

_IN_THE_WAY = "something that is no file is in the way"
# Errors after which no further file could be written either.
_HOPELESS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO})


@dataclass(frozen=True)
class CopyOptions:
    """``preserve``: copy modes and times too, and owners if we are root."""

    recursive: bool = False
    preserve: bool = False


class Copier:
    """Copies from one image. ``failed``: the number of files that could not be copied."""

    def __init__(
        self,
        device: Device,
        tree: Tree,
        options: CopyOptions,
        copied: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``copied``: called with the number of bytes after each write."""
        self._device = device
        self._tree = tree
        self._options = options
        self._copied = copied
        self.failed = 0

    def size_of(self, paths: Sequence[str]) -> int:
        """The bytes that copying these paths will write. Raises ImageError."""
        return sum(self._size_of(path) for path in paths)

    async def copy(self, paths: Sequence[str], destination: Path) -> None:
        """Copy like cp(1): into a directory under the same names, or one entry under a new name.

        Unreadable files are logged and counted, and the rest is copied. Raises ImageError for a
        missing path, OutputError if nothing more can be written, UsageError.
        """
        nodes = [self._tree.node(path, follow=not self._options.recursive) for path in paths]
        for path, node in zip(paths, nodes, strict=True):
            if node.kind is Kind.DIRECTORY and not self._options.recursive:
                raise UsageError(f"{path} is a directory", "give -r to copy directories")
        place, name = _place_and_name(destination, len(nodes))
        try:
            opened = _open_directory(place)
        except OSError as error:
            raise _output_error(place, error) from error
        try:
            for path, node in zip(paths, nodes, strict=True):
                where = name or PurePosixPath(path).name
                if where in ("", ".", ".."):
                    await self._copy_children(node, opened, place)
                else:
                    await self._copy(node, opened, where, place / where)
        finally:
            os.close(opened)

    def _size_of(self, path: str) -> int:
        if self._tree.node(path, follow=not self._options.recursive).kind is Kind.SYMLINK:
            return 0
        return sum(node.size for _, node in self._tree.walk(path) if node.kind is Kind.FILE)

    async def _copy(self, node: Node, directory: int, name: str, shown: Path) -> None:
        """Copy one entry and everything below it. Failures are logged, counted and skipped."""
        try:
            if node.kind is Kind.DIRECTORY:
                await self._copy_directory(node, directory, name, shown)
            elif node.kind is Kind.SYMLINK:
                self._make_link(node, directory, name)
            elif node.kind is Kind.FILE:
                await self._copy_file(node, directory, name)
            else:
                kind = node.kind.name.lower().replace("_", " ")
                log.warning("%s is left out: it is a %s", shown, kind)
        except ImageError as error:
            self._left_out(shown, str(error))
        except OSError as error:
            if error.errno in _HOPELESS:
                raise _output_error(shown, error) from error
            self._left_out(shown, _reason(error))

    def _left_out(self, shown: Path, why: str) -> None:
        self.failed += 1
        log.error("%s is not copied: %s", shown, why)

    async def _copy_directory(self, node: Node, directory: int, name: str, shown: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=directory)
        made = _open_directory(name, directory)
        try:
            await self._copy_children(node, made, shown)
            self._keep(made, node)
        finally:
            os.close(made)

    async def _copy_children(self, node: Node, directory: int, shown: Path) -> None:
        for name, child in node.children.items():
            await self._copy(child, directory, name, shown / name)

    async def _copy_file(self, node: Node, directory: int, name: str) -> None:
        content = Content(self._device, self._tree.extents_of(node, node.name))
        with _new_file(name, directory, node.mode) as fd:
            position = 0
            async with aclosing(content.whole()) as pieces:
                async for piece in pieces:
                    await trio.to_thread.run_sync(_write, fd, piece, position)
                    position += len(piece)
                    self._copied(len(piece))
            os.ftruncate(fd, position)
            self._keep(fd, node)

    def _make_link(self, node: Node, directory: int, name: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
                os.unlink(name, dir_fd=directory)
        os.symlink(node.target, name, dir_fd=directory)
        if self._options.preserve:
            if os.geteuid() == 0:
                os.chown(name, node.uid, node.gid, dir_fd=directory, follow_symlinks=False)
            times = (node.mtime, node.mtime)
            os.utime(name, times, dir_fd=directory, follow_symlinks=False)

    def _keep(self, fd: int, node: Node) -> None:
        """Give the copy the mode, times and owner of the original, if ``preserve`` is set."""
        if self._options.preserve:
            owned = os.geteuid() == 0
            if owned:
                os.fchown(fd, node.uid, node.gid)
            # Without the original owner, set-id bits would grant the wrong user's rights.
            os.fchmod(fd, node.mode if owned else node.mode & 0o1777)
            os.utime(fd, (node.mtime, node.mtime))


def _place_and_name(destination: Path, count: int) -> tuple[Path, str]:
    """The directory to copy into, and the new name there; empty to keep the original names.

    Raises UsageError.
    """
    if destination.is_dir():
        return destination, ""
    if count > 1:
        raise UsageError(f"{destination} is not a directory", f"make it first: mkdir {destination}")
    return destination.parent, destination.name


def _open_directory(name: str | Path, within: int | None = None) -> int:
    """Open a directory; a symbolic link to one only if the user named it (``within`` is None)."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if within is None else os.O_NOFOLLOW)
    return os.open(name, flags, dir_fd=within)


@contextlib.contextmanager
def _new_file(name: str, directory: int, mode: int) -> Iterator[int]:
    """A file to write; removed again on failure."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, mode & 0o777 | stat.S_IWUSR, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OSError(errno.EEXIST, _IN_THE_WAY)
        os.ftruncate(fd, 0)
        try:
            yield fd
        except BaseException:
            os.unlink(name, dir_fd=directory)
            raise
    finally:
        os.close(fd)


def _write(fd: int, piece: bytes, position: int) -> None:
    """Write a piece, unless it is all zeros, which leaves a hole."""
    view = memoryview(piece if any(piece) else b"")
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written


def _output_error(path: Path, error: OSError) -> OutputError:
    return OutputError(f"{path} cannot be written: {_reason(error)}")


def _reason(error: OSError) -> str:
    if error.errno in (errno.ELOOP, errno.ENOTDIR):
        return "a symbolic link, or something else that is no directory, is in the way"
    if error.errno == errno.ENXIO:  # a FIFO without a reader
        return _IN_THE_WAY
    return error.strerror or str(error)

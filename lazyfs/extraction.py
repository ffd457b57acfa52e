"""Files, directories and links out of an ISO image onto the local disk.

Nothing is written outside the destination, whatever the image holds: every name is made and opened
relative to the open directory that it belongs in, and a symbolic link in the way is never followed.
"""

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import trio

from lazyfs.device import Device
from lazyfs.errors import LazyfsError, OutputError, UsageError
from lazyfs.iso.tree import Kind, Node, Tree
from lazyfs.isofile import Content

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class CopyOptions:
    """``preserve``: modes and times too, and owners if we are root."""

    recursive: bool = False
    preserve: bool = False


class Copier:
    """Copies out of one image. ``failed``: how many files could not be copied."""

    def __init__(
        self,
        device: Device,
        tree: Tree,
        options: CopyOptions,
        copied: Callable[[int], None] = lambda _: None,
    ) -> None:
        """``copied`` is told how many bytes were written, each time."""
        self._device = device
        self._tree = tree
        self._options = options
        self._copied = copied
        self.failed = 0

    def size_of(self, paths: Sequence[str]) -> int:
        """Bytes that copying these paths will write. Raises ImageError."""
        return sum(node.size for path in paths for _, node in self._tree.walk(path)
                   if node.kind is Kind.FILE)  # fmt: skip

    async def copy(self, paths: Sequence[str], destination: Path) -> None:
        """As cp(1) does: into a directory under the same names, or one thing under a new name.

        What cannot be read is said and counted, and the rest is copied. Raises ImageError for a
        path that is not there, OutputError when something cannot be written, UsageError.
        """
        nodes = [self._tree.node(path, follow=not self._options.recursive) for path in paths]
        for path, node in zip(paths, nodes, strict=True):
            if node.kind is Kind.DIRECTORY and not self._options.recursive:
                raise UsageError(f"{path} is a directory", "give -r to copy directories")
        place, name = _place_and_name(destination, len(nodes))
        with _translated(destination), _directory(place) as directory:
            for path, node in zip(paths, nodes, strict=True):
                where = name or PurePosixPath(path).name
                if where in ("", ".", ".."):
                    await self._copy_children(node, directory, place)
                else:
                    await self._copy(node, directory, where, place / where)

    async def _copy(self, node: Node, directory: int, name: str, shown: Path) -> None:
        with _translated(shown):
            if node.kind is Kind.DIRECTORY:
                await self._copy_directory(node, directory, name, shown)
            elif node.kind is Kind.SYMLINK:
                _make_link(node, directory, name)
            elif node.kind is Kind.FILE:
                await self._copy_file(node, directory, name, shown)
            else:
                kind = node.kind.name.lower().replace("_", " ")
                log.warning("%s is left out: it is a %s", shown, kind)

    async def _copy_directory(self, node: Node, directory: int, name: str, shown: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.mkdir(name, 0o777, dir_fd=directory)
        with _directory(name, directory) as made:
            await self._copy_children(node, made, shown)
            self._keep(made, node)

    async def _copy_children(self, node: Node, directory: int, shown: Path) -> None:
        for name, child in node.children.items():
            await self._copy(child, directory, name, shown / name)

    async def _copy_file(self, node: Node, directory: int, name: str, shown: Path) -> None:
        try:
            content = Content(self._device, self._tree.extents_of(node, str(shown)))
            with _new_file(name, directory, node.mode) as fd:
                position = 0
                async for piece in content.whole():
                    await trio.to_thread.run_sync(_write, fd, piece, position)
                    position += len(piece)
                    self._copied(len(piece))
                os.ftruncate(fd, position)
                self._keep(fd, node)
        except OutputError:
            raise
        except LazyfsError as error:
            self.failed += 1
            log.error("%s is not copied: %s", shown, error)

    def _keep(self, fd: int, node: Node) -> None:
        """Give what was made the modes and times of the original, if that was asked for."""
        if self._options.preserve:
            if os.geteuid() == 0:
                os.fchown(fd, node.uid, node.gid)
            os.fchmod(fd, node.mode)
            os.utime(fd, (node.mtime, node.mtime))


def _place_and_name(destination: Path, count: int) -> tuple[Path, str]:
    """The directory to copy into, and the name to give there; empty for the things' own names.

    Raises UsageError.
    """
    if destination.is_dir():
        return destination, ""
    if count > 1:
        raise UsageError(f"{destination} is not a directory", f"make it first: mkdir {destination}")
    return destination.parent, destination.name


@contextlib.contextmanager
def _directory(name: str | Path, within: int | None = None) -> Iterator[int]:
    """An open directory; a link to one only if the user named it himself."""
    flags = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | (0 if within is None else os.O_NOFOLLOW)
    fd = os.open(name, flags, dir_fd=within)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def _new_file(name: str, directory: int, mode: int) -> Iterator[int]:
    """A file to write; removed again if that fails."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    fd = os.open(name, flags, mode & 0o777 | stat.S_IWUSR, dir_fd=directory)
    try:
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise OutputError("it exists and is no regular file")
        os.ftruncate(fd, 0)
        try:
            yield fd
        except BaseException:
            os.unlink(name, dir_fd=directory)
            raise
    finally:
        os.close(fd)


def _make_link(node: Node, directory: int, name: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        if stat.S_ISLNK(os.lstat(name, dir_fd=directory).st_mode):
            os.unlink(name, dir_fd=directory)
    os.symlink(node.target, name, dir_fd=directory)


def _write(fd: int, piece: bytes, position: int) -> None:
    """Write a piece; nothing where it is all zeros, so that holes stay holes."""
    view = memoryview(piece if any(piece) else b"")
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written


@contextlib.contextmanager
def _translated(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        why = "a symbolic link is in the way" if error.errno == errno.ELOOP else error.strerror
        raise OutputError(f"{path} cannot be written: {why}") from error

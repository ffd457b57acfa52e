"""A FUSE mount: mounting, serving requests, unmounting. Other modules provide the content.

Lessons learnt:

- any exception but FUSEError that leaves a handler ends the whole mount;
- the kernel never cancels handlers: a killed reader leaves its handler behind, and ``pyfuse3.main``
  ends only after all handlers have. So ``FuseMount.run`` watches for the end of the connection and
  cancels the remaining handlers;
- ``direct_io`` leaves killed readers in D state; ``keep_cache`` makes re-reads native;
- ``invalidate_inode`` and ``notify_store`` from the loop's thread can hang the daemon beyond
  ``kill -9``: not used;
- ``max_read`` as a mount option kills the daemon after mounting: the kernel's reads are widened
  through the backing device's ``read_ahead_kb`` instead (1.5 to 2 times the speed).
"""

import errno
import functools
import logging
import os
import select
import subprocess
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import pyfuse3
import trio

from lazyfs.core.errors import LazyfsError, MountError
from lazyfs.system.mountinfo import mount_on

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024  # makes 1 MiB reads, the largest that the kernel sends
P = ParamSpec("P")
T = TypeVar("T")
Handler = Callable[P, Coroutine[Any, Any, T]]

_NAME_TIMEOUT = 3600.0  # names never change
_WATCH_EVERY = 0.5  # seconds


def answering(handler: Handler[P, T]) -> Handler[P, T]:
    """Make a handler fail with EIO, where an exception other than FUSEError would end the mount."""

    @functools.wraps(handler)
    async def guarded(*arguments: P.args, **named: P.kwargs) -> T:
        try:
            return await handler(*arguments, **named)
        except pyfuse3.FUSEError:
            raise
        except Exception as error:
            log.exception("%s failed in an unforeseen way", handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from error

    return guarded


class ReadOnlyFilesystem(pyfuse3.Operations, ABC):
    """The base class of our filesystems. File handles are inode numbers, without further state.

    A subclass defines the inodes: ``attributes``, ``content``, and the lookup of names.
    """

    supports_dot_lookup = True
    enable_writeback_cache = False

    def __init__(self, attr_timeout: float) -> None:
        """``attr_timeout``: seconds that the kernel may cache attributes (stat(2), ``du``)."""
        super().__init__()
        self._attr_timeout = attr_timeout
        self.reading = 0  # handlers that wait for data
        self.opened = 0
        self.unused = trio.Event()  # set when all opened files have been closed

    @abstractmethod
    def attributes(self, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        """The attributes of an inode, for stat(2)."""

    @abstractmethod
    async def content(self, inode: pyfuse3.InodeT, offset: int, length: int) -> bytes:
        """Bytes of a file. Raises a LazyfsError."""

    @abstractmethod
    def xattrs(self, inode: pyfuse3.InodeT) -> Mapping[bytes, bytes]:
        """The extended attributes of a file."""

    @answering
    async def getattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self.attributes(inode)

    async def opendir(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileHandleT:
        return pyfuse3.FileHandleT(inode)

    async def open(
        self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileInfo:
        if flags & (os.O_WRONLY | os.O_RDWR):
            raise pyfuse3.FUSEError(errno.EROFS)
        self.opened += 1
        if self.unused.is_set():
            self.unused = trio.Event()
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        self.opened -= 1
        if not self.opened:
            self.unused.set()

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        self.reading += 1
        try:
            return await self.content(pyfuse3.InodeT(fh), off, size)
        except LazyfsError as error:
            log.debug("read of %d bytes at %d of inode %d failed: %s", size, off, fh, error)
            raise pyfuse3.FUSEError(error.errno) from error
        except Exception as error:
            log.exception("read of %d bytes at %d of inode %d failed", size, off, fh)
            raise pyfuse3.FUSEError(errno.EIO) from error
        finally:
            self.reading -= 1

    @answering
    async def getxattr(
        self, inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> bytes:
        value = self.xattrs(inode).get(name)
        if value is None:
            raise pyfuse3.FUSEError(pyfuse3.ENOATTR)
        return value

    @answering
    async def listxattr(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> Sequence[pyfuse3.XAttrNameT]:
        return [pyfuse3.XAttrNameT(name) for name in self.xattrs(inode)]

    def new_attributes(self, inode: pyfuse3.InodeT, mode: int) -> pyfuse3.EntryAttributes:
        """Attributes with the values common to all inodes. ``mode``: st_mode."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.entry_timeout = _NAME_TIMEOUT
        entry.attr_timeout = self._attr_timeout
        return entry


def filesystem_statistics(size: int, files: int) -> pyfuse3.StatvfsData:
    """The data for df(1) of a full filesystem of ``size`` bytes."""
    reply = pyfuse3.StatvfsData()
    reply.f_bsize = reply.f_frsize = 4096
    reply.f_blocks = -(-size // reply.f_frsize)
    reply.f_files = files
    reply.f_bfree = reply.f_bavail = reply.f_ffree = reply.f_favail = 0
    reply.f_namemax = 255
    return reply


class FuseMount:
    """A mounted filesystem, from ``mount`` to ``close``."""

    def __init__(
        self,
        mountpoint: Path,
        filesystem: ReadOnlyFilesystem,
        options: set[str],
    ) -> None:
        """Mount. Must be called outside of any handler. Raises MountError."""
        self._mountpoint = mountpoint
        self._operations = filesystem
        before = _fuse_descriptors()
        complaints: list[str] = []
        try:
            with _collecting_stderr(complaints):
                pyfuse3.init(self._operations, os.fspath(mountpoint), options)
        except RuntimeError as error:
            why = "; ".join(complaints) or str(error)
            raise MountError(
                f"cannot mount on {mountpoint}: {why}",
                "see who owns it, and what /etc/fuse.conf allows",
            ) from error
        self._connections = _fuse_descriptors() - before
        mounted = mount_on(mountpoint)
        self.device = mounted.device if mounted else ""  # major:minor
        _widen_reads(self.device)

    async def run(self) -> None:
        """Answer the kernel until the filesystem is unmounted."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_when_gone, nursery.cancel_scope)
            await pyfuse3.main()
            nursery.cancel_scope.cancel()

    async def wait_unused(self) -> None:
        """Wait until at least one file has been opened and all are closed."""
        while not self._operations.unused.is_set():
            await self._operations.unused.wait()

    def abort(self) -> None:
        """Abort the connection and unmount: all pending requests fail. Only for root.

        Otherwise processes that wait for us in the kernel would keep us from ending. May block: run
        it in a thread.
        """
        subprocess.run(
            ["umount", "--force", "--lazy", "--", os.fspath(self._mountpoint)],
            capture_output=True,
            check=False,
        )

    def close(self) -> None:
        """Unmount, unless already unmounted."""
        pyfuse3.close()

    async def _cancel_when_gone(self, scope: trio.CancelScope) -> None:
        """Cancel the remaining reads once the filesystem has been unmounted."""
        watch = select.poll()
        for fd in self._connections:
            watch.register(fd, 0)  # POLLERR only, which the kernel sets at the connection's end
        while True:
            await trio.sleep(_WATCH_EVERY)
            if self._operations.reading and watch.poll(0):
                scope.cancel()


def _fuse_descriptors() -> set[int]:
    """This process's open file descriptors on /dev/fuse."""
    found = set()
    for entry in os.scandir("/proc/self/fd"):
        try:
            if os.readlink(entry.path) == "/dev/fuse":
                found.add(int(entry.name))
        except FileNotFoundError:  # scandir's own descriptor
            continue
    return found


@contextmanager
def _collecting_stderr(lines: list[str]) -> Iterator[None]:
    """Collect in ``lines`` the stderr of C code and child processes."""
    with tempfile.TemporaryFile() as file:
        saved = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(saved, 2)
            os.close(saved)
            file.seek(0)
            lines.extend(line.strip() for line in file.read().decode(errors="replace").splitlines())


def _widen_reads(device: str) -> None:
    """Let the kernel read 1 MiB at a time from this device (major:minor). Works only for root."""
    knob = Path(f"/sys/class/bdi/{device}/read_ahead_kb")
    try:
        knob.write_text(f"{READ_AHEAD_KIB}\n")
    except OSError as error:
        log.debug("the kernel's read-ahead stays as it is: %s", error)

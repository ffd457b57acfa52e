"""The life cycle of a mount: start, readiness, signals, unmount."""

import contextlib
import errno
import logging
import os
import signal
import stat
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import ControlError, MountError, UsageError
from lazyfs.core.options import MountOptions
from lazyfs.daemon import lifecycle
from lazyfs.daemon.commands import FrontEnd
from lazyfs.daemon.handover import (
    ExportedFile,
    LocalCopy,
    Outcome,
    hand_over,
    hand_over_when_complete,
)
from lazyfs.daemon.lifecycle import Daemon, Life, Report
from lazyfs.formats.filecontent import Content
from lazyfs.formats.tree import Node, Tree
from lazyfs.frontends.fuse import FuseMount, ReadOnlyFilesystem
from lazyfs.frontends.fuseimages import ImageFile, ImageFiles
from lazyfs.frontends.fusetree import TreeFiles
from lazyfs.images.catalogs import naming, tree_of
from lazyfs.images.image import Image
from lazyfs.system.holders import holders_of_mount
from lazyfs.system.loopdevice import loops_below
from lazyfs.system.mountinfo import KIND, mount_on

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Consumer:
    """The single consumer of a private mount.

    When every file that ``begin`` opened is closed again, the mount ends, and its mount point is
    removed.

    ``begin``: called when the image is readable, before readiness is announced.
    ``front_end``, ``where``: the front end and the place that the user sees.
    """

    begin: Callable[[], Awaitable[None]]
    front_end: str
    where: Path


def mount(options: MountOptions, report: Report, consumer: Consumer | None = None) -> int:
    """Mount and serve; returns the exit code for the shell.

    In the background unless ``options.foreground``. ``report``: see ``lifecycle.run``.
    """
    check_mountpoint(options)
    return lifecycle.run(options, report, _Mounted(options, consumer))


def check_mountpoint(options: MountOptions) -> None:
    """Refuse early, with a clear reason, what FUSE would refuse late. Raises MountError.

    Raises UsageError if the mount point is a file that cannot show this.
    """
    mountpoint = options.mountpoint
    try:
        mode = mountpoint.stat().st_mode
    except FileNotFoundError as error:
        raise MountError(f"{mountpoint} does not exist", f"mkdir {mountpoint}") from error
    except OSError as error:
        left = f"if a dead mount is left there: fusermount3 -u {mountpoint}"
        cure = left if error.errno == errno.ENOTCONN else "name another place"
        raise MountError(f"{mountpoint} cannot be used: {error.strerror}", cure) from error
    mounted = mount_on(mountpoint)
    if mounted is not None and mounted.kind == KIND:
        raise MountError(
            f"lazyfs is mounted on {mountpoint} already", f"lazyfs umount {mountpoint}"
        )
    if stat.S_ISREG(mode) and options.browse:
        raise UsageError(f"{mountpoint} is a file and cannot show a tree", "give a directory")
    if stat.S_ISREG(mode) and len(options.images) > 1:
        raise UsageError(f"{mountpoint} is a file and can show one image only", "give a directory")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MountError(f"{mountpoint} is neither a directory nor a file", "give a directory")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        why = "may not be opened" if Path("/dev/fuse").exists() else "does not exist"
        raise MountError(f"/dev/fuse {why}", "load the kernel module fuse, or ask for access to it")


class _Mounted(Daemon):
    """A mount with its images."""

    begun = "is mounted on"

    def __init__(self, options: MountOptions, consumer: Consumer | None) -> None:
        self._options = options
        self._mountpoint = options.mountpoint
        self._consumer = consumer
        self._warned = False
        self.ended = f"{options.mountpoint} is unmounted"

    async def begin(self, life: Life) -> FrontEnd:
        options, consumer = self._options, self._consumer
        # Later, on our own mount, this call would wait for the event loop that makes it.
        single = self._mountpoint.is_file()
        images = life.stack.images
        filesystem = await _filesystem(options, images, single, consumer is not None)
        self._fuse = FuseMount(self._mountpoint, filesystem, _fuse_options(options, images))
        life.closing.callback(self._fuse.close)
        life.nursery.start_soon(self._answer, life)
        self._exported = {} if options.browse else self._files_of(images, single)
        return FrontEnd(
            "fuse" if consumer is None else consumer.front_end,
            (str(self._mountpoint if consumer is None else consumer.where),),
            self._end_if_unused,
            self._hand_over,
        )

    async def finish(self, life: Life) -> None:
        if self._consumer is not None:
            await self._consumer.begin()
            life.nursery.start_soon(self._end_when_unused, life)
        for file in self._exported.values():
            life.nursery.start_soon(hand_over_when_complete, file)

    async def signalled(self, number: int, life: Life) -> None:
        """End; but if a loop device would lose its file, log that and wait until it is detached.

        A second signal ends the daemon regardless, and so does the first one before readiness.
        """
        loops = loops_below(self._mountpoint)
        if not loops or self._warned or not life.ready.is_set():
            log.info("ending on %s", signal.Signals(number).name)
            if os.geteuid() == 0:
                await trio.to_thread.run_sync(self._fuse.abort)
            life.end()
            return
        self._warned = True
        log.error(
            "not ending yet: %s is in use by %s; unmount what stands on it "
            "(a second signal ends lazyfs all the same)",
            self._mountpoint,
            ", ".join(loops),
        )
        life.nursery.start_soon(self._end_when_unused, life)

    async def _answer(self, life: Life) -> None:
        await self._fuse.run()
        life.end()

    async def _end_when_unused(self, life: Life) -> None:
        await self._fuse.wait_unused()
        life.end()

    async def _end_if_unused(self) -> None:
        """End as on a signal. Raises ControlError if the mount is in use."""
        holders = await trio.to_thread.run_sync(_holders, self._mountpoint)
        if holders:
            raise ControlError(f"it is in use: {'; '.join(holders)}", "end that first")
        signal.raise_signal(signal.SIGTERM)

    async def _hand_over(self, image: Image) -> list[Outcome]:
        if self._options.browse:
            raise ControlError("a tree is shown here, and no image", "mount without --browse")
        return await hand_over(self._exported[image.name])

    def _files_of(self, images: Sequence[Image], single: bool) -> dict[str, ExportedFile]:
        """The image files of this mount, by image name."""
        return {
            image.name: ExportedFile(
                image.device,
                LocalCopy.of(image),
                self._mountpoint if single else self._mountpoint / image.name,
                self._fuse.device,
            )
            for image in images
        }

    def clean_up(self) -> None:
        if self._consumer is not None:
            with contextlib.suppress(OSError):  # still mounted, somewhere else in use
                self._mountpoint.rmdir()


async def _filesystem(
    options: MountOptions, images: Sequence[Image], single: bool, for_ever: bool
) -> ReadOnlyFilesystem:
    """The filesystem to mount: the images, or the tree in the only one. Raises a LazyfsError.

    ``single``: the mount point itself is to be the image.
    ``for_ever``: the kernel may cache sizes, and so knows them after our death. The repair of a
    loop device needs this: its size is compared with the dead file's.
    """
    files = [ImageFile(i.name, i.device, i.url, i.view_id, i.mtime) for i in images]
    if options.browse:
        with naming(images[0].url):
            tree = await tree_of(images[0].device, images[0].catalog_file)
        return TreeFiles(tree.root, partial(_reader, images[0].device), files[0])
    return ImageFiles(files, single, 1e9 if for_ever else 1.0)


def _reader(device: Device, node: Node) -> Callable[[int, int], Awaitable[bytes]]:
    """A reader of the content of a file in an image's tree. Raises ImageError."""
    return Content(device, Tree.extents_of(node, node.name)).read


def _fuse_options(options: MountOptions, images: Sequence[Image]) -> set[str]:
    """The options for the kernel and fusermount3.

    A user who browses alone may read everything in the image, which came over their own connection.
    With other users, modes and owners are enforced.
    """
    what = images[0].url if len(images) == 1 else "lazyfs"
    what = what.encode("ascii", "replace").decode()
    escaped = what.replace("\\", "\\\\").replace(",", "\\,")
    shown = {f"fsname={escaped}", "subtype=lazyfs", "ro"}
    if options.browse:
        shown |= {"nosuid", "nodev"} - {f"no{option}" for option in options.fuse}
    alone = options.browse and not {"allow_other", "allow_root"}.intersection(options.fuse)
    return {*options.fuse, *shown} | (set() if alone else {"default_permissions"})


def _holders(mountpoint: Path) -> list[str]:
    loops = [f"{loop} stands on it" for loop in loops_below(mountpoint)]
    return loops + holders_of_mount(mountpoint)

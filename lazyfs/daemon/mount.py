"""The life of a mount: start, ready, signals, unmount."""

import contextlib
import errno
import logging
import os
import signal
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import trio

from lazyfs.core import address
from lazyfs.core.device import Device
from lazyfs.core.errors import ControlError, LazyfsError, MountError, UsageError
from lazyfs.core.options import MountOptions
from lazyfs.daemon import logs
from lazyfs.daemon.commands import Front, let_steer
from lazyfs.daemon.daemonize import Ready
from lazyfs.daemon.handover import Exposed, Outcome, hand_over, hand_over_when_complete
from lazyfs.daemon.lifecycle import Report, images_of, live
from lazyfs.formats.filecontent import Content
from lazyfs.formats.tree import Node, Tree
from lazyfs.frontends.fuse import FuseMount, ReadOnlyFilesystem
from lazyfs.frontends.fuseimages import ImageFile, ImageFiles
from lazyfs.frontends.fusetree import TreeFiles
from lazyfs.images.catalogs import naming, tree_of
from lazyfs.images.open import Image, Stack
from lazyfs.images.preloading import preload
from lazyfs.system.eventloop import signals_until_saved
from lazyfs.system.holders import holders_of_mount
from lazyfs.system.loopdevice import loops_below
from lazyfs.system.mountinfo import KIND, mount_on

log = logging.getLogger(__name__)

_ENDING = signal.SIGTERM, signal.SIGINT


@dataclass(frozen=True)
class Use:
    """The one use that a mount is made for.

    ``begin`` is called when the image can be read, and before the caller is told so; when what it
    has opened is closed again, the mount ends, and its mount point, which belongs to it, is
    removed. ``front_end`` and ``where``: what the user knows of it.
    """

    begin: Callable[[], Awaitable[None]]
    front_end: str
    where: Path


def mount(options: MountOptions, report: Report, use: Use | None = None) -> int:
    """Mount and serve; returns the exit code for the shell.

    In the background unless ``options.foreground``. ``report`` tells the user of an error that
    comes before the image is readable, and says the exit code for it.
    """
    check_mountpoint(options)

    async def life(ready: Ready) -> int:
        try:
            await _serve(options, ready, use)
        finally:
            if use is not None:
                with contextlib.suppress(OSError):  # still mounted, somewhere else in use
                    options.mountpoint.rmdir()
        return 0

    return live(options, report, life)


def check_mountpoint(options: MountOptions) -> None:
    """Refuse early, with the reason, what FUSE would refuse late and darkly. Raises MountError."""
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


async def _serve(options: MountOptions, ready: Ready, use: Use | None) -> None:
    """Open the images, mount them, and answer until unmounted or told to end."""
    failure: LazyfsError | None = None
    async with images_of(options) as (stack, saved), contextlib.AsyncExitStack() as closing:
        log_handler = logs.destination(options)
        # Asked of our own mount, from the loop that serves it, this would wait for itself.
        single = options.mountpoint.is_file()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(stack.run)
            try:
                filesystem = await _filesystem(options, stack.images, single, use is not None)
                fuse_mount = FuseMount(options.mountpoint, filesystem, _fuse_options(options))
                closing.callback(fuse_mount.close)
                in_use = trio.Event()
                signals = saved.enter_context(signals_until_saved(*_ENDING))
                hear = partial(_end_on_signal, signals, options.mountpoint, fuse_mount, in_use)
                nursery.start_soon(hear, nursery)
                _start_serving(nursery, options, stack, fuse_mount)
                exposed = _exposed(options, stack, single, fuse_mount)
                let_steer(_front(options, use, exposed), stack, nursery, closing)
                if use is not None:
                    await use.begin()
                    nursery.start_soon(_end_when_unused, fuse_mount, nursery.cancel_scope)
                for one in exposed.values():
                    nursery.start_soon(hand_over_when_complete, one)
                logs.use(log_handler, options.log.level)
                ready()
                in_use.set()
            except LazyfsError as error:
                failure = error
                nursery.cancel_scope.cancel()
            else:
                for image in stack.images:
                    log.info("%s is mounted on %s", image.url, options.mountpoint)
    if failure is not None:
        raise failure
    log.info("%s is unmounted", options.mountpoint)


def _exposed(
    options: MountOptions, stack: Stack, single: bool, fuse_mount: FuseMount
) -> dict[str, Exposed]:
    """The files of this mount that are images, by the images' names."""
    place = options.mountpoint
    return {
        image.name: Exposed(
            image.device,
            image.local_copy,
            place if single else place / image.name,
            fuse_mount.device,
        )
        for image in (() if options.browse else stack.images)
    }


def _front(options: MountOptions, use: Use | None, exposed: dict[str, Exposed]) -> Front:
    async def give_away(image: Image) -> list[Outcome]:
        if options.browse:
            raise ControlError("a tree is shown here, and no image", "mount without --browse")
        return await hand_over(exposed[image.name])

    return Front(
        "fuse" if use is None else use.front_end,
        (str(options.mountpoint if use is None else use.where),),
        partial(_end_if_unused, options.mountpoint),
        give_away,
    )


def _start_serving(
    nursery: trio.Nursery,
    options: MountOptions,
    stack: Stack,
    fuse_mount: FuseMount,
) -> None:
    """Start all that runs while a mount lives; it ends with the mount."""

    async def answer() -> None:
        await fuse_mount.run()
        nursery.cancel_scope.cancel()

    nursery.start_soon(answer)
    for image in stack.images:
        nursery.start_soon(preload, image, options.preload)


async def _end_when_unused(fuse_mount: FuseMount, scope: trio.CancelScope) -> None:
    await fuse_mount.wait_unused()
    scope.cancel()


async def _filesystem(
    options: MountOptions, images: Sequence[Image], single: bool, for_ever: bool
) -> ReadOnlyFilesystem:
    """What to mount: the images, or the tree in the only one. Raises a LazyfsError.

    ``single``: the mount point itself is to be the image. ``for_ever``: the kernel may remember
    sizes, and so knows them when we are dead. That is what the repair of a loop device needs: its
    size is compared with the dead file's.
    """
    files = [ImageFile(i.name, i.device, i.url, i.key, i.mtime) for i in images]
    if options.browse:
        with naming(images[0].url):
            tree = await tree_of(images[0].device, images[0].notebook)
        return TreeFiles(tree.root, partial(_reader, images[0].device), files[0])
    return ImageFiles(files, single, 1e9 if for_ever else 1.0)


def _reader(device: Device, node: Node) -> Callable[[int, int], Awaitable[bytes]]:
    """What reads the content of a file in the tree of an image. Raises ImageError."""
    return Content(device, Tree.extents_of(node, node.name)).read


def _fuse_options(options: MountOptions) -> set[str]:
    """The options for the kernel and fusermount3.

    Who browses alone may read whatever is in the image: it came over his own connection. Where
    others may look in as well, modes and owners count.
    """
    images = options.images
    what = address.shown(images[0].url) if len(images) == 1 else "lazyfs"
    what = what.encode("ascii", "replace").decode()
    escaped = what.replace("\\", "\\\\").replace(",", "\\,")
    shown = {f"fsname={escaped}", "subtype=lazyfs", "ro"}
    if options.browse:
        shown |= {"nosuid", "nodev"} - {f"no{option}" for option in options.fuse}
    alone = options.browse and not {"allow_other", "allow_root"}.intersection(options.fuse)
    return {*options.fuse, *shown} | (set() if alone else {"default_permissions"})


async def _end_if_unused(mountpoint: Path) -> None:
    """End as on a signal. Raises ControlError if anybody would be in the way."""
    holders = await trio.to_thread.run_sync(_holders, mountpoint)
    if holders:
        raise ControlError(f"it is in use: {'; '.join(holders)}", "end that first")
    signal.raise_signal(signal.SIGTERM)


def _holders(mountpoint: Path) -> list[str]:
    loops = [f"{loop} stands on it" for loop in loops_below(mountpoint)]
    return loops + holders_of_mount(mountpoint)


async def _end_on_signal(
    signals: AsyncIterator[int],
    mountpoint: Path,
    fuse_mount: FuseMount,
    in_use: trio.Event,
    nursery: trio.Nursery,
) -> None:
    """End on SIGTERM or SIGINT, unless a loop device would lose its file: say so, and wait for it.

    A second signal ends it all the same, and so does the first while ``in_use`` is not set: nobody
    has been told yet that he may use it.
    """
    warned = False
    async for number in signals:
        loops = loops_below(mountpoint)
        if not loops or warned or not in_use.is_set():
            log.info("ending on %s", signal.Signals(number).name)
            if os.geteuid() == 0:
                await trio.to_thread.run_sync(fuse_mount.abort)
            nursery.cancel_scope.cancel()
            return
        warned = True
        log.error(
            "not ending yet: %s is in use by %s; unmount what stands on it "
            "(a second signal ends lazyfs all the same)",
            mountpoint,
            ", ".join(loops),
        )
        nursery.start_soon(_end_when_unused, fuse_mount, nursery.cancel_scope)

"""The life of a mount: start, ready, signals, unmount."""

import logging
import os
import signal
import stat
from collections.abc import Callable, Sequence
from pathlib import Path

import trio

from lazyfs import logs
from lazyfs.background import run_in_background
from lazyfs.errors import LazyfsError, MountError, UsageError
from lazyfs.frontends.fuse import FuseMount, ImageFile
from lazyfs.frontends.loop import loops_below
from lazyfs.options import MountOptions
from lazyfs.stack import Image, open_stack

log = logging.getLogger(__name__)


def mount(options: MountOptions, report: Callable[[LazyfsError], int]) -> int:
    """Mount and serve; returns the exit code for the shell.

    In the background unless ``options.foreground``. ``report`` tells the user of an error that
    comes before the image is readable, and says the exit code for it.
    """
    check_mountpoint(options)
    if options.foreground:
        logs.use(logs.terminal(options.log), options.log.level)
        trio.run(_serve, options, lambda: None)
        return 0

    def work(ready: Callable[[], None]) -> int:
        # Until then the user looks on, and is told what he would want to know.
        logs.use(logs.terminal(options.log), max(logging.WARNING, options.log.level))
        try:
            trio.run(_serve, options, ready)
        except LazyfsError as error:
            return report(error)
        return 0

    return run_in_background(work)


def check_mountpoint(options: MountOptions) -> None:
    """Refuse early, with the reason, what FUSE would refuse late and darkly. Raises MountError."""
    mountpoint = options.mountpoint
    try:
        mode = mountpoint.stat().st_mode
    except FileNotFoundError as error:
        raise MountError(f"{mountpoint} does not exist", f"mkdir {mountpoint}") from error
    except OSError as error:
        raise MountError(
            f"{mountpoint} cannot be used: {error.strerror}",
            f"if a dead mount is left there: fusermount3 -u {mountpoint}",
        ) from error
    if stat.S_ISREG(mode) and len(options.images) > 1:
        raise UsageError(f"{mountpoint} is a file and can show one image only", "give a directory")
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise MountError(f"{mountpoint} is neither a directory nor a file")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        why = "may not be opened" if Path("/dev/fuse").exists() else "does not exist"
        raise MountError(f"/dev/fuse {why}", "load the kernel module fuse, or ask for access to it")


async def _serve(options: MountOptions, ready: Callable[[], None]) -> None:
    """Open the images, mount them, and answer until unmounted or told to end."""
    async with open_stack(options) as stack:
        log_handler = logs.destination(options)
        fuse_mount = _mount_files(options, stack.images)
        try:
            logs.use(log_handler, options.log.level)
            ready()
            for image in stack.images:
                log.info("%s is mounted on %s", image.url, options.mountpoint)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(stack.run)
                nursery.start_soon(_end_on_signal, options.mountpoint, nursery.cancel_scope)
                await fuse_mount.run()
                nursery.cancel_scope.cancel()
        finally:
            fuse_mount.close()
    log.info("%s is unmounted", options.mountpoint)


def _mount_files(options: MountOptions, images: Sequence[Image]) -> FuseMount:
    files = [ImageFile(i.name, i.device, i.url, i.mtime) for i in images]
    what = images[0].url if len(images) == 1 else "lazyfs"
    what = what.encode("ascii", "replace").decode()
    escaped = what.replace("\\", "\\\\").replace(",", "\\,")
    shown = {f"fsname={escaped}", "subtype=lazyfs", "ro"}
    return FuseMount(options.mountpoint, files, {*options.fuse, "default_permissions", *shown})


async def _end_on_signal(mountpoint: Path, scope: trio.CancelScope) -> None:
    """End on SIGTERM or SIGINT, unless a loop device would lose its file: then say so.

    A second signal ends it all the same.
    """
    warned = False
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            loops = loops_below(mountpoint)
            if not loops or warned:
                log.info("ending on %s", signal.Signals(number).name)
                scope.cancel()
                return
            warned = True
            log.error(
                "not ending: %s in use by %s; unmount what stands on it first "
                "(a second signal ends lazyfs all the same)",
                mountpoint,
                ", ".join(loops),
            )

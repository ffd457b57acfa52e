"""The life of an attachment: an image as a block device, from its start to its detaching.

The counterpart of ``mount.py``.
"""

import contextlib
import logging
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from functools import partial

import trio

from lazyfs.core.errors import DeviceError, LazyfsError
from lazyfs.core.options import DaemonOptions, OnChange
from lazyfs.daemon import logs
from lazyfs.daemon.commands import Front, let_steer
from lazyfs.daemon.daemonize import Ready
from lazyfs.daemon.detach import detach
from lazyfs.daemon.lifecycle import Report, images_of, live
from lazyfs.frontends.nbdcontrol import index_of, load_module, scan_partitions, tune
from lazyfs.frontends.nbdioctl import open_control
from lazyfs.frontends.nbdkernel import AnyControl, KernelDevice
from lazyfs.images.open import Image
from lazyfs.images.preloading import preload
from lazyfs.system.eventloop import signals_until_saved

log = logging.getLogger(__name__)

_ENDING = signal.SIGTERM, signal.SIGINT


@dataclass(frozen=True, kw_only=True)
class AttachOptions(DaemonOptions):
    """How an image is attached. ``device``: as which, like ``/dev/nbd0``; None for any free one.

    ``repair``: whether it is taken over from a daemon that died, if it is attached;
    ``dead_timeout``: seconds that readers wait for that.
    """

    device: str | None = None
    repair: bool = False
    dead_timeout: int = 300


def attach(options: AttachOptions, report: Report) -> int:
    """Attach the image and serve it; returns the exit code for the shell.

    In the background unless ``options.foreground``. The device is printed when it can be used.
    ``report`` tells the user of an error that comes before, and says the exit code for it.
    Raises DeviceError or ToolMissing.
    """
    if os.geteuid() != 0:
        raise DeviceError("only root can attach block devices", "use sudo")
    if options.device is not None:
        index_of(options.device)  # refused before the daemon starts
    load_module()
    if options.repair:
        # What is taken over must not find another version of the image under it.
        options = replace(options, cache=replace(options.cache, on_change=OnChange.FAIL))

    async def life(ready: Ready) -> int:
        await _serve(options, ready)
        return 0

    return live(options, report, life)


async def _serve(options: AttachOptions, ready: Ready) -> None:
    """Open the image, attach it, and answer until it is detached. Raises a LazyfsError."""
    failure: LazyfsError | None = None
    async with images_of(options) as (stack, saved), contextlib.AsyncExitStack() as closing:
        log_handler = logs.destination(options)
        control = closing.enter_context(contextlib.closing(open_control()))
        (image,) = stack.images
        async with trio.open_nursery() as nursery:

            async def answer() -> None:
                nonlocal failure
                try:
                    await device.run(image.device)
                except LazyfsError as error:
                    log.error("%s", error)
                    failure = error
                nursery.cancel_scope.cancel()

            nursery.start_soon(stack.run)
            try:
                device = await _attached(control, image, options)
            except LazyfsError as error:
                failure = error
                nursery.cancel_scope.cancel()
            else:
                closing.callback(device.close)
                nursery.start_soon(answer)
                signals = saved.enter_context(signals_until_saved(*_ENDING))
                nursery.start_soon(_end_on_signal, signals, device, nursery.cancel_scope)
                nursery.start_soon(preload, image, options.preload)
                await trio.to_thread.run_sync(tune, device.index)
                await trio.to_thread.run_sync(scan_partitions, device.index)
                end = partial(trio.to_thread.run_sync, detach, device.path)
                let_steer(Front("nbd", (device.path,), end), stack, nursery, closing)
                print(device.path, flush=True)
                logs.use(log_handler, options.log.level)
                ready()
                log.info("%s is attached as %s", image.url, device.path)
    if failure is not None:
        raise failure
    log.info("%s is no longer attached", image.url)


async def _attached(control: AnyControl, image: Image, options: AttachOptions) -> KernelDevice:
    index = None if options.device is None else index_of(options.device)
    if options.repair and index is not None and control.is_attached(index):
        return await trio.to_thread.run_sync(
            KernelDevice.revive, control, index, image.device, image.key
        )
    # In the main thread, whose number the kernel will show as that of the device's owner.
    return KernelDevice.attach(control, index, image.device, image.key, options.dead_timeout)


async def _end_on_signal(
    signals: AsyncIterator[int], device: KernelDevice, scope: trio.CancelScope
) -> None:
    """On SIGTERM or SIGINT, detach the device, which ends us; while it is in use, say so instead.

    If it still is at the second signal, lazyfs ends and the device stays: it can be repaired.
    """
    warned = False
    async for number in signals:
        name = signal.Signals(number).name
        try:
            await trio.to_thread.run_sync(detach, device.path)
        except DeviceError as error:
            if warned:
                log.error("ending on %s; who repairs %s may have it", name, device.path)
                scope.cancel()
                return
            warned = True
            log.error("not ending on %s: %s (a second signal ends lazyfs)", name, error)
        else:
            log.info("ending on %s", name)
            return

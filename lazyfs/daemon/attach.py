"""``lazyfs attach``: an image as a block device, from start to detach."""

import contextlib
import logging
import os
import signal
from dataclasses import dataclass, replace
from functools import partial

import trio

from lazyfs.core.errors import DeviceError, LazyfsError
from lazyfs.core.options import DaemonOptions, OnChange
from lazyfs.daemon import lifecycle
from lazyfs.daemon.commands import FrontEnd
from lazyfs.daemon.detach import detach
from lazyfs.daemon.lifecycle import Daemon, Life, Report
from lazyfs.frontends.nbdcontrol import index_of, load_module, scan_partitions, tune
from lazyfs.frontends.nbdioctl import open_control
from lazyfs.frontends.nbdkernel import AnyControl, KernelDevice
from lazyfs.images.image import Image

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class AttachOptions(DaemonOptions):
    """How an image is attached.

    ``device``: the device, like ``/dev/nbd0``; None for any free one.
    ``repair``: whether to take the device over from a dead daemon, if it is attached.
    ``dead_timeout``: seconds that readers wait for a repair.
    """

    device: str | None = None
    repair: bool = False
    dead_timeout: int = 300


def attach(options: AttachOptions, report: Report) -> int:
    """Attach the image and serve it; returns the exit code for the shell.

    In the background unless ``options.foreground``. Prints the device when it is usable.
    ``report``: see ``lifecycle.run``. Raises DeviceError or ToolMissing.
    """
    if os.geteuid() != 0:
        raise DeviceError("only root can attach block devices", "use sudo")
    index = None if options.device is None else index_of(options.device)
    load_module()
    if options.repair:
        # The filesystem on the device must not see another version of the image.
        options = replace(options, cache=replace(options.cache, on_change=OnChange.FAIL))
    return lifecycle.run(options, report, _Attached(options, index))


class _Attached(Daemon):
    """An image attached as a device."""

    begun = "is attached as"

    def __init__(self, options: AttachOptions, index: int | None) -> None:
        self._options = options
        self._index = index
        self._warned = False

    async def begin(self, life: Life) -> FrontEnd:
        (image,) = life.stack.images
        control = life.closing.enter_context(contextlib.closing(open_control()))
        self._device = await self._attached(control, image)
        life.closing.callback(self._device.close)
        life.nursery.start_soon(self._serve, image, life)
        self.ended = f"{image.url} is no longer attached"
        end = partial(trio.to_thread.run_sync, detach, self._device.path)
        return FrontEnd("nbd", (self._device.path,), end)

    async def finish(self, life: Life) -> None:  # noqa: ARG002
        await trio.to_thread.run_sync(tune, self._device.index)
        await trio.to_thread.run_sync(scan_partitions, self._device.index)
        print(self._device.path, flush=True)

    async def signalled(self, number: int, life: Life) -> None:
        """Detach the device, which ends the daemon; if it is in use, only log that.

        If it is still in use at the second signal, the daemon ends and the device stays, to be
        repaired.
        """
        name = signal.Signals(number).name
        try:
            await trio.to_thread.run_sync(detach, self._device.path)
        except DeviceError as error:
            if self._warned:
                log.error("ending on %s; a repair can take %s over", name, self._device.path)
                life.end()
                return
            self._warned = True
            log.error("not ending on %s: %s (a second signal ends lazyfs)", name, error)
        else:
            log.info("ending on %s", name)

    async def _attached(self, control: AnyControl, image: Image) -> KernelDevice:
        index = self._index
        if self._options.repair and index is not None and control.is_attached(index):
            return await trio.to_thread.run_sync(
                KernelDevice.revive, control, index, image.device, image.view_id
            )
        # In the main thread, because the kernel reports its id as that of the device's owner.
        return KernelDevice.attach(
            control, index, image.device, image.view_id, self._options.dead_timeout
        )

    async def _serve(self, image: Image, life: Life) -> None:
        """Answer the kernel until the device is detached."""
        try:
            await self._device.run(image.device)
        except LazyfsError as error:
            log.error("%s", error)
            life.fail(error)
        life.end()

"""An image as /dev/nbdN: the kernel is a client that needs no handshake.

The device uses a socket pair, so there is no listening socket. While the daemon lives, a dead
connection is replaced. If it is killed, the kernel holds requests for ``dead_timeout`` seconds, and
a daemon with an image of the same identity can take the device over in that time (``revive``): the
filesystem on it stays mounted, and its readers only wait.

When the device is detached, the kernel sends a DISC request. Only that ends the device: if the
connection is merely lost, the kernel gets another.

There is only one connection, because of the requests that are in flight when the daemon dies. The
kernel gives them to the next connection when their timer expires. With several connections, that
timer also ends a connection that is only slow, so it would have to be longer than any answer may
take: a minute and more. With one connection and NBD_ATTR_TIMEOUT of 0, it has no other effect, and
may be short. (nbd_xmit_timeout in the kernel's drivers/block/nbd.c)
"""

import logging
import socket
import time
from hashlib import sha256

import trio

from lazyfs.core.device import Device, Identity
from lazyfs.core.errors import DeviceError, LazyfsError
from lazyfs.frontends.nbdcontrol import (
    SECTOR,
    Control,
    backend_of,
    offered,
    path_of,
    was_taken,
)
from lazyfs.frontends.nbdioctl import IoctlControl
from lazyfs.frontends.nbdserver import MOST_BYTES, Pool, Transmission
from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import Command, Style
from lazyfs.protocols.nbdnetlink import Setup
from lazyfs.protocols.nbdserver import ExportInfo, Session
from lazyfs.protocols.wire import Wire

log = logging.getLogger(__name__)

_DEAD_WITHIN = 5.0  # seconds for the kernel to notice that a connection is dead
_FLAGS = nbd.HAS_FLAGS | nbd.READ_ONLY


AnyControl = Control | IoctlControl


def backend_id(identity: Identity, view: str) -> str:
    """The kernel's identifier of an image, which a daemon that revives the device must match.

    ``view``: the id that tells views of one identity apart.
    """
    what = [view, identity.size, identity.etag, identity.last_modified]
    return "lazyfs:" + sha256(repr(what).encode()).hexdigest()[:32]


class KernelDevice:
    """An attached device that this process serves.

    ``renewer``: the control that can replace its connection; None if it dies with this one.
    ``ours``: our end of its connection.
    """

    def __init__(
        self, renewer: Control | None, index: int, backend: str, ours: socket.socket
    ) -> None:
        self.index = index
        self._renewer = renewer
        self._backend = backend
        self._ours = ours
        self._links = renewer.dead_links(index) if renewer else None

    @property
    def path(self) -> str:
        return path_of(self.index)

    @classmethod
    def attach(
        cls, control: AnyControl, index: int | None, device: Device, view: str, dead_timeout: int
    ) -> "KernelDevice":
        """Attach an image to device ``index``, or to any if None. Raises DeviceError."""
        size = device.identity.size
        if size < SECTOR:
            raise DeviceError(
                f"an image of {size} bytes is too small for a block device",
                "mount it instead: lazyfs URL MOUNTPOINT",
            )
        if size % SECTOR:
            log.warning(
                "the last %d bytes of the image cannot be seen: a block device has whole sectors",
                size % SECTOR,
            )
        backend = backend_id(device.identity, view)
        setup = Setup(size - size % SECTOR, SECTOR, _FLAGS, dead_timeout, backend)
        with offered() as (ours, kernels):
            made = control.connect(index, setup, kernels)
        return cls(None if isinstance(control, IoctlControl) else control, made, backend, ours)

    @classmethod
    def revive(cls, control: AnyControl, index: int, device: Device, view: str) -> "KernelDevice":
        """Take over a device whose daemon was killed. Blocks. Raises DeviceError."""
        if isinstance(control, IoctlControl):
            raise DeviceError(
                f"{path_of(index)} cannot be repaired: that needs netlink", _again(path_of(index))
            )
        backend, found = backend_id(device.identity, view), backend_of(index)
        if found is None or not found.startswith("lazyfs:"):
            raise DeviceError(
                f"{path_of(index)} was not attached by lazyfs", "name the device that was"
            )
        if found != backend:
            raise DeviceError(
                f"{path_of(index)} shows another image, or another version of it",
                f"detach it: lazyfs detach {path_of(index)}",
            )
        ours = _connect_again(control, index, backend)
        if ours is None:
            raise DeviceError(
                f"{path_of(index)} needs no repair: it is being served", "use it as it is"
            )
        return cls(control, index, backend, ours)

    async def run(self, device: Device) -> None:
        """Answer the kernel until the device is detached. Raises DeviceError.

        When this is cancelled, the connection breaks as if the daemon were killed: requests in
        flight are not failed, and go to the daemon that revives the device.
        """
        pool = Pool(MOST_BYTES)
        size = device.identity.size
        session = Session(ExportInfo("", "", size - size % SECTOR), Style.SIMPLE)
        while not await self._serve(device, session, pool):
            await self._renew()

    async def _serve(self, device: Device, session: Session, pool: Pool) -> bool:
        """Answer on one connection; returns whether it ended with the kernel's DISC."""
        wire = _KernelWire(trio.SocketStream(trio.socket.from_stdlib_socket(self._ours)))
        ended = trio.Event()

        async def answer() -> None:
            with trio.CancelScope(shield=True):
                try:
                    await Transmission(wire, session, device, pool).run()
                except LazyfsError as error:
                    log.error("%s: the connection is given up: %s", self.path, error)
            ended.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(answer)
            try:
                await ended.wait()
            finally:
                self._ours.shutdown(socket.SHUT_RDWR)
        self._ours.close()
        return wire.said_goodbye

    async def _renew(self) -> None:
        """Give the kernel another connection. Raises DeviceError."""
        if self._renewer is None or self._links is None:
            raise DeviceError(f"{self.path} has lost its connection", _again(self.path))
        log.warning("%s: the connection died; the kernel gets another", self.path)
        with trio.move_on_after(_DEAD_WITHIN):
            while not self._links.take():
                await trio.lowlevel.wait_readable(self._links.socket)
        renewed = await trio.to_thread.run_sync(
            _connect_again, self._renewer, self.index, self._backend
        )
        if renewed is None:
            raise DeviceError(
                f"{self.path} has lost its connection, and takes no other", _again(self.path)
            )
        self._ours = renewed

    def close(self) -> None:
        if self._links is not None:
            self._links.close()
        self._ours.close()


def _again(device: str) -> str:
    """The cure for a device that can no longer be served."""
    return f"detach it, and attach it again: lazyfs detach {device}"


def _connect_again(control: Control, index: int, backend: str) -> socket.socket | None:
    """Replace the dead connection; returns our end of the new one. Blocks.

    None if the old one is still alive. Raises DeviceError.
    """
    until = time.monotonic() + _DEAD_WITHIN
    while time.monotonic() < until:
        with offered() as (ours, kernels):
            control.reconfigure(index, backend, kernels)
        if was_taken(ours):
            return ours
        ours.close()
        time.sleep(0.02)  # the kernel does not report when a killed process's end is gone
    return None


class _KernelWire(Wire):
    """Keeps the kernel's last request. All have one length, since the kernel never writes."""

    _last = b""

    async def receive_some(self, most: int = 256 << 10) -> bytes:
        received = await super().receive_some(most)
        self._last = (self._last + received)[-nbd.COMPACT_REQUEST.size :]
        return received

    @property
    def said_goodbye(self) -> bool:
        """Whether the last request was DISC."""
        if len(self._last) < nbd.COMPACT_REQUEST.size:
            return False
        return bool(nbd.COMPACT_REQUEST.unpack(self._last)[2] == Command.DISC)

"""An image as /dev/nbdN: the kernel is a client that needs no handshake.

The device stands on a socket pair, so nothing listens anywhere. While we live, a connection that
dies is replaced. If we are killed, the kernel keeps what is asked for ``dead_timeout`` seconds, and
who comes in that time with an image of the same identity takes the device over (``revive``): the
filesystem on it stays mounted, and its readers only wait.

When the device is detached, the kernel says goodbye. That, and nothing else, is the end: who has
merely lost the connection is given another.

There is one connection, for the sake of requests that are under way when we die. The kernel gives
them to the next connection when their timer runs out. With several connections, that timer also
ends a connection that is only slow, and it would have to be longer than any answer may take: a
minute and more. With one, and NBD_ATTR_TIMEOUT of 0, it does nothing else, and may be short.
(nbd_xmit_timeout in the kernel's drivers/block/nbd.c)
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


def backend_id(identity: Identity, key: str) -> str:
    """What the kernel calls an image, and what whoever revives its device has to know as well.

    ``key``: tells images of one identity apart.
    """
    what = [key, identity.size, identity.etag, identity.last_modified]
    return "lazyfs:" + sha256(repr(what).encode()).hexdigest()[:32]


class KernelDevice:
    """An attached device that we serve. ``ours``: our end of its connection.

    ``renewer``: by what it can be given another; None if it dies with this one.
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
        cls, control: AnyControl, index: int | None, device: Device, key: str, dead_timeout: int
    ) -> "KernelDevice":
        """Make a device of an image; ``index``: which one, None for any. Raises DeviceError."""
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
        backend = backend_id(device.identity, key)
        setup = Setup(size - size % SECTOR, SECTOR, _FLAGS, dead_timeout, backend)
        with offered() as (ours, kernels):
            made = control.connect(index, setup, kernels)
        return cls(None if isinstance(control, IoctlControl) else control, made, backend, ours)

    @classmethod
    def revive(cls, control: AnyControl, index: int, device: Device, key: str) -> "KernelDevice":
        """Take over a device whose daemon was killed. Blocks. Raises DeviceError."""
        if isinstance(control, IoctlControl):
            raise DeviceError(
                f"{path_of(index)} cannot be repaired: that needs netlink", _again(path_of(index))
            )
        backend, found = backend_id(device.identity, key), backend_of(index)
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

        When this is cancelled, the connection breaks as if we were killed: requests that are under
        way are not answered with errors, and who revives the device is asked again.
        """
        pool = Pool(MOST_BYTES)
        size = device.identity.size
        session = Session(ExportInfo("", "", size - size % SECTOR), Style.SIMPLE)
        while not await self._serve(device, session, pool):
            await self._renew()

    async def _serve(self, device: Device, session: Session, pool: Pool) -> bool:
        """Answer on one connection; returns whether it ended with the kernel's goodbye."""
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
    """The cure for a device that cannot be served any more."""
    return f"detach it, and attach it again: lazyfs detach {device}"


def _connect_again(control: Control, index: int, backend: str) -> socket.socket | None:
    """Put a new connection in the place of the dead one; returns our end. Blocks.

    None: the old one is still alive. Raises DeviceError.
    """
    until = time.monotonic() + _DEAD_WITHIN
    while time.monotonic() < until:
        with offered() as (ours, kernels):
            control.reconfigure(index, backend, kernels)
        if was_taken(ours):
            return ours
        ours.close()
        time.sleep(0.02)  # of a process that was killed, the kernel says to nobody when it is gone
    return None


class _KernelWire(Wire):
    """Notices how the kernel's requests end: it writes nothing, so all are of one length."""

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

"""NBD devices without netlink: the ioctls of linux/nbd.h. All of it blocks.

The fallback for kernels and network namespaces without the netlink family "nbd". A thread stays in
the kernel for as long as the device is attached, and the device dies with it: it cannot be
repaired.
"""

import contextlib
import ctypes
import errno
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from lazyfs.core.errors import DeviceError
from lazyfs.frontends.nbdcontrol import (
    Control,
    NoNetlink,
    path_of,
    wait_until_free,
)
from lazyfs.protocols.nbdnetlink import Setup

_SET_SOCKET = 0xAB00
_SET_BLOCK_SIZE = 0xAB01
_SET_SIZE = 0xAB02
_DO_IT = 0xAB03
_DISCONNECT = 0xAB08
_SET_TIMEOUT = 0xAB09
_SET_FLAGS = 0xAB0A
_STARTS_WITHIN = 5.0  # seconds

_libc = ctypes.CDLL(None, use_errno=True)


class IoctlControl:
    """The subset of ``nbdcontrol.Control`` that is possible with ioctls."""

    def close(self) -> None:
        """Nothing to close."""

    def connect(self, index: int | None, setup: Setup, kernels: socket.socket) -> int:
        """Attach a device (a free one if ``index`` is None); returns its index.

        Raises DeviceError.
        """
        for candidate in _free_devices() if index is None else [index]:
            try:
                _start(candidate, setup, kernels)
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise _translated(error, f"{path_of(candidate)} cannot be attached") from error
            else:
                return candidate
        name = "every NBD device" if index is None else path_of(index)
        raise DeviceError(f"{name} is in use", "name another, or none")

    def disconnect(self, index: int) -> None:
        """Detach an unused device, and wait until it is free. Raises DeviceError."""
        try:
            with _opened(index, os.O_RDONLY) as device:
                _ioctl(device, _DISCONNECT, 0)
        except OSError as error:
            raise _translated(error, f"{path_of(index)} cannot be detached") from error
        wait_until_free(index, self.is_attached)

    def is_attached(self, index: int) -> bool:
        return Path(f"/sys/block/nbd{index}/pid").exists()


def open_control() -> Control | IoctlControl:
    """Netlink control if this kernel has it, else ioctls."""
    try:
        return Control()
    except NoNetlink:
        return IoctlControl()


def _free_devices() -> Iterator[int]:
    for disk in sorted(Path("/sys/block").glob("nbd*"), key=lambda d: int(d.name[3:])):
        if not (disk / "pid").exists():
            yield int(disk.name[3:])


def _start(index: int, setup: Setup, kernels: socket.socket) -> None:
    """Set a device up, and wait until the kernel has started it. Raises OSError."""
    with _opened(index, os.O_RDWR) as device:
        _ioctl(device, _SET_SOCKET, kernels.fileno())  # EBUSY: it has another process's socket
        _ioctl(device, _SET_BLOCK_SIZE, setup.block_size)
        _ioctl(device, _SET_SIZE, setup.size)
        _ioctl(device, _SET_TIMEOUT, 0)
        _ioctl(device, _SET_FLAGS, setup.flags)
        work = threading.Thread(target=_live, args=(os.dup(device),), daemon=True)
        work.start()
    alive = Path(f"/sys/block/nbd{index}/pid")
    until = time.monotonic() + _STARTS_WITHIN
    while not alive.exists():
        if not work.is_alive() or time.monotonic() > until:
            raise OSError(errno.EIO, "the kernel does not start it")
        time.sleep(0.01)


def _live(device: int) -> None:
    """Run a device until it is detached or its connection breaks."""
    try:
        with contextlib.suppress(OSError):  # our end of the connection shows how it ended
            _ioctl(device, _DO_IT, 0)
    finally:
        os.close(device)


@contextlib.contextmanager
def _opened(index: int, mode: int) -> Iterator[int]:
    device = os.open(path_of(index), mode | os.O_CLOEXEC)
    try:
        yield device
    finally:
        os.close(device)


def _ioctl(device: int, request: int, value: int) -> None:
    # fcntl.ioctl takes 32 bits; sizes have more.
    if _libc.ioctl(device, ctypes.c_ulong(request), ctypes.c_ulong(value)) < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _translated(error: OSError, what: str) -> DeviceError:
    cure = "run it as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return DeviceError(f"{what}: {error.strerror}", cure)

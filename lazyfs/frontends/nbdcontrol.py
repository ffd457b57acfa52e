"""Control of the kernel's NBD devices through netlink and sysfs. All of it blocks.

Code that opens a device must not run in the event loop that serves it: the first open waits for the
partitions to be read.
"""

import contextlib
import errno
import fcntl
import logging
import os
import re
import select
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from lazyfs.core.errors import DeviceError, ProgramFailed
from lazyfs.protocols import nbdnetlink
from lazyfs.protocols.nbdnetlink import Command, Family, Message, Setup
from lazyfs.system import programs

log = logging.getLogger(__name__)

SECTOR = 512  # bytes; also the unit of partition tables, so devices have no other block size
LARGEST_REQUEST = 1 << 20  # bytes; see nbdserver.PIECE

# Values for a device's queue directory in sysfs, instead of the kernel's defaults.
_QUEUE = {
    "io_timeout": 5000,  # ms until a dead daemon's requests go to the next; instead of 30,000
    "max_sectors_kb": LARGEST_REQUEST >> 10,  # instead of 128
    "read_ahead_kb": 2048,  # keeps several requests in flight, where 128 keep one or two
}

_GENERIC = 16  # NETLINK_GENERIC, missing in the socket module
_ADD_MEMBERSHIP = 1  # NETLINK_ADD_MEMBERSHIP
_SOL_NETLINK = 270
_REREAD_PARTITIONS = 0x125F  # BLKRRPART of linux/fs.h
_ANSWER = 64 << 10  # bytes; enough for any datagram
_GONE_WITHIN = 10.0  # seconds for the last user of a device to close it
_SYS = Path("/sys/block")
_NAME = re.compile(r"/dev/nbd(0|[1-9][0-9]{0,5})")


class NoNetlink(DeviceError):
    """The kernel's NBD devices cannot be controlled through netlink."""


def index_of(device: str) -> int:
    """N of ``/dev/nbdN``. Raises DeviceError."""
    found = _NAME.fullmatch(device)
    if found is None:
        raise DeviceError(f"{device} is not an NBD device", "write it like /dev/nbd0")
    return int(found[1])


def path_of(index: int) -> str:
    return f"/dev/nbd{index}"


class Control:
    """A netlink connection to the NBD driver. Raises NoNetlink if there is none."""

    def __init__(self) -> None:
        self._socket = _netlink_socket()
        self._sequence = 0
        try:
            self._family = self._find_family()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        self._socket.close()

    def connect(self, index: int | None, setup: Setup, kernels: socket.socket) -> int:
        """Attach a device (a free one if ``index`` is None); returns its index.

        Raises DeviceError.
        """
        try:
            answers = self._ask(
                lambda sequence: nbdnetlink.connect(
                    self._family, sequence, index, setup, kernels.fileno()
                )
            )
        except OSError as error:
            name = "a free NBD device" if index is None else path_of(index)
            if error.errno == errno.EBUSY:
                raise DeviceError(f"{name} is in use", "name another, or none") from error
            raise _translated(error, f"{name} cannot be attached") from error
        return nbdnetlink.index_in(answers[0])

    def reconfigure(self, index: int, backend: str, kernels: socket.socket) -> None:
        """Offer a socket to replace a dead one. Raises DeviceError."""
        try:
            self._ask(
                lambda sequence: nbdnetlink.reconfigure(
                    self._family, sequence, index, backend, kernels.fileno()
                )
            )
        except OSError as error:
            raise _translated(error, f"{path_of(index)} takes no other connection") from error

    def disconnect(self, index: int) -> None:
        """Detach an unused device, and wait until it is free. Raises DeviceError."""
        try:
            self._ask(lambda sequence: nbdnetlink.disconnect(self._family, sequence, index))
        except OSError as error:
            raise _translated(error, f"{path_of(index)} cannot be detached") from error
        wait_until_free(index, self.is_attached)

    def is_attached(self, index: int) -> bool:
        """Whether a device is attached, or detached but still open."""
        try:
            answers = self._ask(lambda sequence: nbdnetlink.status(self._family, sequence, index))
        except OSError as error:
            raise _translated(error, f"nothing is known of {path_of(index)}") from error
        return any(nbdnetlink.connected_in(answer).get(index, False) for answer in answers)

    def dead_links(self, index: int) -> "DeadLinks":
        return DeadLinks(self._family, index)

    def _find_family(self) -> Family:
        try:
            (answer,) = self._ask(nbdnetlink.get_family)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise _translated(error, "the kernel cannot be asked about NBD") from error
            raise NoNetlink(
                "this kernel has no NBD devices that can be reached from here", "modprobe nbd"
            ) from error
        return nbdnetlink.family_in(answer)

    def _ask(self, message: Callable[[int], bytes]) -> list[Message]:
        """Send a message; returns the answers before its acknowledgement.

        Raises OSError with the kernel's error.
        """
        self._sequence += 1
        self._socket.send(message(self._sequence))
        answers: list[Message] = []
        while True:
            for answer in nbdnetlink.messages(self._socket.recv(_ANSWER)):
                if answer.sequence != self._sequence:
                    continue
                if answer.error is None:
                    answers.append(answer)
                elif answer.error:
                    raise OSError(answer.error, os.strerror(answer.error))
                else:
                    return answers


class DeadLinks:
    """The kernel's notifications of dead connections of a device."""

    def __init__(self, family: Family, index: int) -> None:
        self._index = index
        self.socket = _netlink_socket()
        self.socket.setsockopt(_SOL_NETLINK, _ADD_MEMBERSHIP, family.group)
        self.socket.settimeout(0)

    def close(self) -> None:
        self.socket.close()

    def take(self) -> bool:
        """Whether a dead connection has been reported. Never waits."""
        try:
            told = nbdnetlink.messages(self.socket.recv(_ANSWER))
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            return True  # notifications were lost, perhaps this one
        return any(
            message.command == Command.LINK_DEAD and nbdnetlink.index_in(message) == self._index
            for message in told
        )


def wait_until_free(index: int, is_attached: Callable[[int], bool]) -> None:
    """Wait until a detached device is no longer open. Raises DeviceError."""
    until = time.monotonic() + _GONE_WITHIN
    while is_attached(index):
        if time.monotonic() > until:
            raise DeviceError(
                f"{path_of(index)} is detached, but somebody still has it open",
                f"see: lazyfs detach {path_of(index)}",
            )
        time.sleep(0.02)  # udev and the like open every device that changes


def owner_of(index: int) -> str | None:
    """The id of the thread that attached a device; None if it is not attached."""
    try:
        return (_SYS / f"nbd{index}/pid").read_text().strip()
    except OSError:
        return None


def load_module() -> None:
    """Load the kernel's nbd module. Raises DeviceError or ToolMissing."""
    if not Path("/sys/module/nbd").exists():
        try:
            programs.run("modprobe", ["nbd"])
        except ProgramFailed as error:
            raise DeviceError(
                f"the kernel module nbd cannot be loaded: {error.message}",
                "mount it instead: lazyfs URL MOUNTPOINT",
            ) from error


def backend_of(index: int) -> str | None:
    """The identifier that a device was attached with; None for none."""
    try:
        return (_SYS / f"nbd{index}/backend").read_text().rstrip("\n")
    except OSError:
        return None


def tune(index: int) -> None:
    """Let the kernel send large requests, and repeat them soon after the daemon was replaced."""
    for name, value in _QUEUE.items():
        try:
            (_SYS / f"nbd{index}/queue/{name}").write_text(f"{value}\n")
        except OSError as error:
            log.warning("%s: %s stays as it is: %s", path_of(index), name, error.strerror)


def scan_partitions(index: int) -> None:
    """Have the kernel read the partition table. Blocks until that succeeds or fails."""
    try:
        device = os.open(path_of(index), os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        log.warning("%s: no partitions are looked for: %s", path_of(index), error.strerror)
        return
    try:
        # EINVAL: the module is configured without partitions.
        with contextlib.suppress(OSError):
            fcntl.ioctl(device, _REREAD_PARTITIONS)
    finally:
        os.close(device)


def was_taken(ours: socket.socket) -> bool:
    """Whether the kernel holds the other end of a socket pair that it was offered.

    Our own copy of that end must be closed: then it is open only if the kernel has taken it.
    """
    watch = select.poll()
    watch.register(ours, select.POLLRDHUP)
    return not watch.poll(0)


@contextlib.contextmanager
def offered() -> Iterator[tuple[socket.socket, socket.socket]]:
    """A socket pair: our end, and the kernel's, which is closed at the end of the block."""
    ours, kernels = socket.socketpair()
    with kernels:
        try:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LARGEST_REQUEST)
            yield ours, kernels
        except BaseException:
            ours.close()
            raise


def _netlink_socket() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _GENERIC)
    netlink.bind((0, 0))
    return netlink


def _translated(error: OSError, what: str) -> DeviceError:
    cure = "run it as root" if error.errno in (errno.EPERM, errno.EACCES) else ""
    return DeviceError(f"{what}: {error.strerror}", cure)

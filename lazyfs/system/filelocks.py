"""Marks on open files that other processes can detect: open file description locks (fcntl(2)).

Such a lock belongs to the open file, not to a process: every holder of the open file keeps it, even
a loop device in the kernel. And it can be tested without being taken, unlike flock(2).
"""

import fcntl
import struct

_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux: type, whence, start, length, pid


def mark(fd: int) -> None:
    """Put a mark on an open file. Raises OSError."""
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, 0, 0, 0))


def is_marked(fd: int) -> bool:
    """Whether the file has a mark set through another open of it. Raises OSError."""
    found = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, 0, 0, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)

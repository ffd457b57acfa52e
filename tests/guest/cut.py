"""Runs in the guest: breaks the connection between a daemon of lazyfs and its NBD device.

cut.py PID
"""

import ctypes
import os
import socket
import sys

PIDFD_GETFD = 438  # the same on all architectures; Python has no name for it


def main(pid: int) -> None:
    process = os.pidfd_open(pid)
    libc = ctypes.CDLL(None, use_errno=True)
    for name in os.listdir(f"/proc/{pid}/fd"):
        if not os.readlink(f"/proc/{pid}/fd/{name}").startswith("socket:"):
            continue
        copy = libc.syscall(PIDFD_GETFD, process, int(name), 0)
        with socket.socket(fileno=copy) as found:
            # Not trio's wake-up socket pairs, which have both ends in one process.
            if (
                found.family == socket.AF_UNIX
                and found.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF) > 300_000
            ):
                found.shutdown(socket.SHUT_RDWR)
                return
    sys.exit("this process has no such connection")


if __name__ == "__main__":
    main(int(sys.argv[1]))

"""A daemon that a root filesystem stands on: what it takes to outlive the lack of memory, and init.

If such a daemon needs memory that can only be had by writing to what it serves, or reads its own
program from there, nothing ever goes on.
"""

import ctypes
import os
from pathlib import Path

from setproctitle import getproctitle, setproctitle

from lazyfs.core.errors import DeviceError

_LOCK_ALL = 1 | 2  # MCL_CURRENT, MCL_FUTURE: what is in memory, and what will be
_SET_IO_FLUSHER = 57  # PR_SET_IO_FLUSHER of prctl(2)


def harden() -> None:
    """Make this process one that a root filesystem can stand on. Raises DeviceError.

    Its memory is locked; the kernel kills others first when there is none left, and writes nothing
    out on its behalf to get some; and systemd leaves it alone at shutdown, by the ``@`` in front of
    its name (https://systemd.io/ROOT_STORAGE_DAEMONS).
    """
    libc = ctypes.CDLL(None, use_errno=True)
    _check(libc.mlockall(_LOCK_ALL), "lock its memory")
    _check(libc.prctl(_SET_IO_FLUSHER, 1, 0, 0, 0), "be exempt from writing out")
    try:
        Path("/proc/self/oom_score_adj").write_text("-1000")
    except OSError as error:
        raise _refused("be exempt from the kernel's killing", error.errno or 0) from error
    setproctitle("@" + getproctitle())


def _check(result: int, what: str) -> None:
    if result != 0:
        raise _refused(what, ctypes.get_errno())


def _refused(what: str, number: int) -> DeviceError:
    return DeviceError(f"lazyfs may not {what}: {os.strerror(number)}", "run it as root")

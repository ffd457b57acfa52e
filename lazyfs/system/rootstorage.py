"""Hardening a daemon that serves a root filesystem against lack of memory and against shutdown.

If such a daemon needs memory that can only be freed by writing to the filesystem it serves, or
reads its own program from there, it deadlocks.
"""

import ctypes
import os
from pathlib import Path

from setproctitle import getproctitle, setproctitle

from lazyfs.core.errors import DeviceError

_LOCK_ALL = 1 | 2  # MCL_CURRENT, MCL_FUTURE: present and future pages
_SET_IO_FLUSHER = 57  # PR_SET_IO_FLUSHER of prctl(2)


def harden() -> None:
    """Make this process fit to serve a root filesystem. Raises DeviceError.

    Its memory is locked; the OOM killer spares it; the kernel does no write-back on its behalf to
    free memory; and systemd leaves it alone at shutdown, because of the ``@`` in front of its name
    (https://systemd.io/ROOT_STORAGE_DAEMONS).
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

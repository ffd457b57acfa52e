"""Daemonizing and readiness: the shell gets its prompt back, or systemd is notified."""

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from typing import NoReturn

from lazyfs.daemon import logs

log = logging.getLogger(__name__)

Ready = Callable[[], None]


def run_daemon(work: Callable[[Ready], int], *, foreground: bool) -> int:
    """Run ``work`` here, or in the background; returns the exit code for the shell."""
    return work(tell_ready) if foreground else run_in_background(work)


def raise_descriptor_limit() -> None:
    """Allow as many open files as may be: connections, clients and caches need some each."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):  # a hard limit above what the kernel takes
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def tell_ready() -> None:
    """Notify the service manager of readiness, if there is one."""
    _tell("READY=1", "that we are ready")


def tell_failure(why: str) -> None:
    """Notify the service manager of the reason for ending: a line for ``systemctl status``."""
    _tell(f"STATUS={why}", "why we end")


def _tell(state: str, what: str) -> None:
    """Send a line in the protocol of sd_notify(3)."""
    place = os.environ.get("NOTIFY_SOCKET", "")
    if not place.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.connect(place.replace("@", "\0", 1) if place[0] == "@" else place)
            _send(manager, state.encode())
    except OSError as error:
        log.warning("systemd cannot be told %s: %s", what, error.strerror)


def _send(manager: socket.socket, line: bytes) -> None:
    """Send now, or in a thread as soon as a manager that is busy takes it. Raises OSError."""
    try:
        manager.send(line, socket.MSG_DONTWAIT)
    except BlockingIOError:
        later = manager.dup()
        threading.Thread(target=_send_and_close, args=(later, line), daemon=True).start()


def _send_and_close(manager: socket.socket, line: bytes) -> None:
    with manager, contextlib.suppress(OSError):
        manager.send(line)


def run_in_background(work: Callable[[Ready], int]) -> int:
    """Run ``work`` in a process of its own; returns the exit code for the shell.

    ``work`` calls its argument once, when it is ready: this function then returns 0, and the work
    continues in its own session, without a terminal. If ``work`` ends before that, its exit code is
    returned. Until then it shares our stderr, and our process group: at a mount point of
    systemd.automount(5), processes outside systemd's group wait for the mount, so the daemon would
    wait for itself.
    """
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _be_daemon(work, writer)
    os.close(writer)
    with open(reader, "rb") as pipe:
        try:
            if pipe.read(1):
                return 0
        except KeyboardInterrupt:
            os.kill(child, signal.SIGTERM)  # it ignores SIGINT
            os.waitpid(child, 0)
            raise
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _be_daemon(work: Callable[[Ready], int], writer: int) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # our parent receives it, and terminates us
    os.chdir("/")
    os.umask(0o077)

    def ready() -> None:
        os.setsid()
        nothing = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(nothing, standard)
        os.close(nothing)
        with contextlib.suppress(BrokenPipeError):  # our starter was killed: nobody wants to know
            os.write(writer, b"1")
        os.close(writer)

    code = 1
    try:
        code = work(ready)
    except BaseException:
        # A defect, since work reports expected errors. Once detached, only the log shows it.
        log.exception("lazyfs failed in an unforeseen way")
    finally:
        logs.flush()
        with contextlib.suppress(OSError):  # nobody reads it any more
            sys.stderr.flush()
        os._exit(code)

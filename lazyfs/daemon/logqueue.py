"""A log handler that never waits: a thread passes its lines on to a *sink*, which may block.

The event loop logs, and a mount must not stand still because syslog, the reader of a pipe or the
disk of a log file does. Lines wait in a queue of bounded size; those that find it full are counted,
and the log says how many are missing as soon as it works again.

Tried: a socket that does not block. The queue of a datagram socket is short (10 packets unless the
administrator raised net.unix.max_dgram_qlen), so that it loses lines although syslog reads.
"""

import contextlib
import logging
import os
import select
import socket
import threading
import time
from collections import deque
from pathlib import Path
from typing import Protocol

from lazyfs.system.ownfiles import open_own

_MOST = 1 << 20  # characters that wait
_PATIENCE = 0.5  # seconds that the end waits for one line to be taken
_LONGEST_END = 2.0  # seconds that the end waits for all of them
_DAEMON = 3 << 3  # the facility LOG_DAEMON (syslog(3))
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6))
_DEBUG = 7
_SYSLOG_RETRIES = 2  # connections tried for one line: syslog may have been restarted


class Sink(Protocol):
    """A destination of lines. Its methods run in a thread, may block, and raise OSError."""

    def write(self, level: int, text: str) -> None:
        """Write one line, without its newline."""
        ...

    def reopen(self) -> None:
        """Open the destination anew, for log rotation."""
        ...

    def close(self) -> None:
        """Release what it has opened."""
        ...


class Descriptor:
    """The sink on an open file descriptor, which stays open."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def write(self, level: int, text: str) -> None:  # noqa: ARG002
        left = f"{text}\n".encode(errors="backslashreplace")
        while left:
            try:
                left = left[os.write(self._fd, left) :]
            except BlockingIOError:  # another process made the terminal or pipe non-blocking
                watch = select.poll()
                watch.register(self._fd, select.POLLOUT)
                watch.poll()

    def reopen(self) -> None:
        """Nothing: what was inherited has no name."""

    def close(self) -> None:
        """Nothing: its owner closes it."""


class LogFile(Descriptor):
    """The sink that is a file, which may also be a device or a FIFO with a reader."""

    def __init__(self, path: Path, *, named: bool) -> None:
        """Open the file, or create it with mode 0600. Raises OSError.

        ``named``: whether a user named it; otherwise it must be ours alone.
        """
        self._path = path
        self._open = os.open if named else open_own
        super().__init__(self._opened())

    def reopen(self) -> None:
        new = self._opened()
        os.close(self._fd)
        self._fd = new

    def close(self) -> None:
        os.close(self._fd)

    def _opened(self) -> int:
        """A new descriptor. A FIFO without a reader is refused, rather than waited for."""
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
        fd = self._open(self._path, flags, 0o600)
        os.set_blocking(fd, True)
        return fd


class Syslog:
    """The sink that is a syslog socket, of datagrams or of a stream (RFC 3164 as in /dev/log)."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._socket: socket.socket | None = None

    def write(self, level: int, text: str) -> None:
        packet = f"<{_DAEMON | priority(level)}>{text}".encode(errors="backslashreplace") + b"\0"
        for attempt in range(_SYSLOG_RETRIES):
            try:
                self._socket = self._socket or self._connected()
                self._socket.sendall(packet)
            except OSError:
                self.close()
                if attempt + 1 == _SYSLOG_RETRIES:
                    raise
            else:
                return

    def reopen(self) -> None:
        """Nothing: a new syslog is connected to when the old one has gone."""

    def close(self) -> None:
        if self._socket is not None:
            self._socket.close()
        self._socket = None

    def _connected(self) -> socket.socket:
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            found = socket.socket(socket.AF_UNIX, kind)
            try:
                found.connect(os.fspath(self._path))
            except OSError:
                found.close()
                if kind == socket.SOCK_STREAM:
                    raise
            else:
                return found
        raise AssertionError("the last kind returns or raises")


def priority(level: int) -> int:
    """The priority of syslog(3) for a level of logging."""
    return next((number for least, number in _PRIORITIES if level >= least), _DEBUG)


class QueuedHandler(logging.Handler):
    """Passes formatted records on to a sink, in a thread of its own."""

    def __init__(self, sink: Sink) -> None:
        super().__init__()
        self._sink = sink
        self._changed = threading.Condition()
        self._waiting: deque[tuple[int, str]] = deque()  # levels and lines
        self._size = 0  # characters in ``_waiting``
        self._lost = 0  # lines that are missing between the last one written and those that wait
        self._reopening = False
        self._began: float | None = None  # since when the thread is in the sink
        self._thread: threading.Thread | None = None
        self._closing = False

    def emit(self, record: logging.LogRecord) -> None:
        text = self.format(record)
        with self._changed:
            self._waiting.append((record.levelno, text))
            self._size += len(text)
            while self._size > _MOST:
                self._size -= len(self._waiting.popleft()[1])
                self._lost += 1
            self._wake()

    def reopen(self) -> None:
        """Open the sink anew, before the next line."""
        with self._changed:
            self._reopening = True
            self._wake()

    def flush(self) -> None:
        """Wait until everything is written, but not for a sink that takes nothing."""
        until = time.monotonic() + _LONGEST_END
        with self._changed:
            while self._has_work() or self._began is not None:
                now = time.monotonic()
                left = min(until, (self._began or now) + _PATIENCE) - now
                if left <= 0:
                    return
                self._changed.wait(left)

    def close(self) -> None:
        self.flush()
        with self._changed:
            self._closing = True
            self._wake()
        super().close()

    def _wake(self) -> None:
        self._changed.notify_all()
        if self._thread is None:  # begun here, because a thread does not survive a fork
            self._thread = threading.Thread(target=self._pass_on, name="log", daemon=True)
            self._thread.start()

    def _has_work(self) -> bool:
        return bool(self._waiting) or self._reopening

    def _pass_on(self) -> None:
        while self._is_needed():
            if self._reopening:
                self._reopening = False
                self._reopen_sink()
            if self._waiting:
                self._write_next()
            with self._changed:
                self._began = None
                self._changed.notify_all()
        self._sink.close()

    def _is_needed(self) -> bool:
        """Wait for something to do; False at the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._has_work() or self._closing)
            self._began = time.monotonic() if self._has_work() else None
            return self._has_work()

    def _write_next(self) -> None:
        with self._changed:
            lost = self._lost
            level, text = self._waiting.popleft()
            self._size -= len(text)
        try:
            if lost:
                self._sink.write(*self._own(_missing(lost)))
                self._count_lost(-lost)
            self._sink.write(level, text)
        except OSError:
            self._count_lost(1)

    def _count_lost(self, more: int) -> None:
        with self._changed:
            self._lost += more

    def _reopen_sink(self) -> None:
        try:
            self._sink.reopen()
        except OSError as error:
            with contextlib.suppress(OSError):
                self._sink.write(*self._own(f"this log cannot be opened anew: {error.strerror}"))

    def _own(self, text: str) -> tuple[int, str]:
        """A warning of the log itself: level and line."""
        level = logging.WARNING
        record = logging.LogRecord(__name__, level, __file__, 0, text, None, None)
        return level, self.format(record)


def _missing(lost: int) -> str:
    """The words that stand in the place of lost lines."""
    what = "line is" if lost == 1 else "lines are"
    return f"{lost} {what} missing here, because this log took no more for a while"

"""Log destinations: stderr while a user sees it, else the system log or a file."""

import json
import logging
import os
import select
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from lazyfs.core.errors import LogError
from lazyfs.core.options import EACH_REQUEST, DaemonOptions, LogOptions
from lazyfs.core.texts import printable
from lazyfs.daemon.logqueue import Descriptor, LogFile, QueuedHandler, Syslog
from lazyfs.system.ownfiles import check_directory, make_directory

_SYSLOG = Path("/dev/log")
_TERMINAL = "lazyfs: %(message)s"
_REMEMBERED = 50  # lines
_REQUEST = "REQUEST"  # the level's name


class _Json(logging.Formatter):
    """One JSON object per line: time (ISO 8601, UTC), level, message; error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        content = {
            "time": self.formatTime(record),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        if record.exc_info:
            content["error"] = self.formatException(record.exc_info)
        return json.dumps(content)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        from datetime import UTC, datetime

        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")


class _Plain(logging.Formatter):
    """Lines without terminal control sequences, which servers and images could put in."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        record.message = printable(record.message)
        return super().formatMessage(record)


def terminal(options: LogOptions) -> logging.Handler:
    """A handler for the terminal of a command, which waits until its lines are taken."""
    return _formatted(logging.StreamHandler(sys.stderr), options, _TERMINAL)


def stderr(options: LogOptions) -> logging.Handler:
    """A handler for the stderr of a daemon, which never waits."""
    return _formatted(QueuedHandler(Descriptor(2)), options, _TERMINAL)


def destination(daemon: DaemonOptions) -> logging.Handler:
    """A handler for a daemon's log destination while it serves.

    This is the file named by the user; else, in the foreground, the terminal; else syslog or the
    journal; else ``lazyfs.log`` in the cache directory. It never waits. Raises LogError.
    """
    options = daemon.log
    if options.file is None and daemon.foreground:
        return stderr(options)
    if options.file is None and _SYSLOG.exists():
        syslog = QueuedHandler(Syslog(_SYSLOG))
        return _formatted(syslog, options, f"lazyfs[{os.getpid()}]: %(message)s")
    path = options.file or daemon.cache.directory / "lazyfs.log"
    try:
        make_directory(path.parent)
        if options.file is None:
            check_directory(path.parent)
        file = QueuedHandler(LogFile(path, named=options.file is not None))
    except OSError as error:
        raise LogError(
            f"the log file {path} cannot be written: {error.strerror}",
            "name another with --log-file",
        ) from error
    return _formatted(file, options, "%(asctime)s %(process)d %(levelname)s %(message)s")


def use(handler: logging.Handler, level: int) -> None:
    """Log to this handler only: ours from ``level`` on, other libraries from WARNING on."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.addLevelName(EACH_REQUEST, _REQUEST)
    logging.getLogger("lazyfs").setLevel(level)


def flush() -> None:
    """Wait until what was logged is written, but not for long."""
    for handler in logging.getLogger().handlers:
        handler.flush()


def stderr_takes_more() -> bool:
    """Whether a line on stderr would not wait for a reader that sleeps, as in a full pipe."""
    watch = select.poll()
    watch.register(2, select.POLLOUT)
    return bool(watch.poll(0))


def reopen() -> None:
    """Open the log's file anew, as after its rotation."""
    for handler in logging.getLogger().handlers:
        if isinstance(handler, QueuedHandler):
            handler.reopen()


class _Remembering(logging.Handler):
    """Keeps the last lines."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: deque[str] = deque(maxlen=_REMEMBERED)
        self.setFormatter(_Plain("%(asctime)s %(levelname)s %(message)s", "%H:%M:%S"))

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@contextmanager
def remembering() -> Iterator[Iterable[str]]:
    """A live view of the last lines logged since the block began."""
    handler = _Remembering()
    ours = logging.getLogger("lazyfs")
    ours.addHandler(handler)
    try:
        yield handler.lines
    finally:
        ours.removeHandler(handler)


def _formatted(handler: logging.Handler, options: LogOptions, plain: str) -> logging.Handler:
    handler.setFormatter(_Json() if options.json else _Plain(plain))
    return handler

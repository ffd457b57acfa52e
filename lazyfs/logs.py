"""Where log lines go: stderr while somebody looks at it, else the system log or a file."""

import json
import logging
import logging.handlers
import os
import sys
from pathlib import Path

from lazyfs.options import LogOptions

_SYSLOG = Path("/dev/log")


class _Json(logging.Formatter):
    """One JSON object a line: time (ISO 8601, UTC), level, message; error with its traceback."""

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


def to_stderr(options: LogOptions) -> None:
    """Log to the terminal of the person who started us."""
    _use(logging.StreamHandler(sys.stderr), options, "lazyfs: %(message)s")


def to_background(options: LogOptions, fallback: Path) -> None:
    """Log to ``options.file``, else to syslog or the journal, else to the file ``fallback``."""
    if options.file is None and _SYSLOG.exists():
        handler: logging.Handler = logging.handlers.SysLogHandler(
            os.fspath(_SYSLOG), logging.handlers.SysLogHandler.LOG_DAEMON
        )
        _use(handler, options, f"lazyfs[{os.getpid()}]: %(message)s")
        return
    path = options.file or fallback
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    _use(handler, options, "%(asctime)s %(process)d %(levelname)s %(message)s")


def _use(handler: logging.Handler, options: LogOptions, plain: str) -> None:
    """Make ``handler`` the only one. Other libraries are heard from WARNING on."""
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    handler.setFormatter(_Json() if options.json else logging.Formatter(plain))
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("lazyfs").setLevel(options.level)

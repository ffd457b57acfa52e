"""The control sockets of running daemons: where they are, and how to ask one."""

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lazyfs.errors import ControlError
from lazyfs.protocols import control

PATIENCE = 10.0  # seconds that a daemon is waited for
_RUN, _USERS = Path("/run/lazyfs"), Path("/run/user")
_BOOT = _RUN / "run/lazyfs"  # of the daemon below a root filesystem, for which _RUN is /


def own_socket() -> Path:
    """Where the socket of this very process belongs."""
    return _own_directory() / f"{os.getpid()}.sock"


@dataclass(frozen=True)
class Daemon:
    """A running lazyfs. ``status``: what it said of itself, see docs/control.rst."""

    socket: Path
    status: dict[str, Any]

    @property
    def where(self) -> str:
        """Its mount point, device or URI."""
        return str(self.status.get("where", ""))

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """What comes of a command. Raises ControlError."""
        return ask(self.socket, command, **fields)

    def is_at(self, where: str) -> bool:
        """Whether this is its place, a path in that, or the URL of one of its images."""
        if any(image.get("url") == where for image in self.status.get("images", [])):
            return True
        if not self.where or "://" in self.where:
            return self.where == where
        return Path(os.path.abspath(where)).is_relative_to(self.where)


def running() -> list[Daemon]:
    """All daemons that we may ask: our own, and as root everybody's; by their places."""
    return sorted(_running(), key=lambda daemon: daemon.where)


def daemon_at(where: str) -> Daemon:
    """The daemon that serves a mount point, a device or a URL. Raises ControlError."""
    found = [daemon for daemon in _running() if daemon.is_at(where)]
    if not found:
        raise ControlError(f"no lazyfs serves {where}", "lazyfs status shows those that run")
    return max(found, key=lambda daemon: len(daemon.where))  # of mounts in mounts, the innermost


def ask(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Send a command to the daemon behind a socket; returns its answer. Raises ControlError."""
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PATIENCE)
            connection.connect(os.fspath(path))
            connection.sendall(control.asking(command, fields))
            with connection.makefile("rb") as lines:
                line = lines.readline(control.LONGEST)
    except OSError as error:
        raise ControlError(
            f"the daemon at {path} cannot be asked: {error.strerror or error}"
        ) from error
    if not line:
        raise ControlError(f"the daemon at {path} has ended")
    return control.answered(line)


def _running() -> Iterator[Daemon]:
    for directory in _directories():
        for path in sorted(directory.glob("*.sock")):
            try:
                yield Daemon(path, ask(path, "status"))
            except ControlError:  # dead, just ending, or another version: not ours to ask
                continue


def _own_directory() -> Path:
    if os.geteuid() == 0:
        return _RUN
    place = os.environ.get("XDG_RUNTIME_DIR")
    if place:
        return Path(place, "lazyfs")
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache, "lazyfs/run")


def _directories() -> list[Path]:
    """Where sockets may be that we can use."""
    others = [_BOOT, *sorted(_USERS.glob("*/lazyfs"))] if os.geteuid() == 0 else []
    return [_own_directory(), *others]

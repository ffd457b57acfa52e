"""Client of the control sockets: finding running daemons and sending them commands.

Root sees the daemons of all users. Answers of other users' daemons are untrusted: they are
validated, have a time limit, and never decide which daemon a command is sent to.
"""

import errno
import logging
import os
import socket
import stat
import struct
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from lazyfs.core.errors import ControlError
from lazyfs.core.texts import printable
from lazyfs.protocols import control
from lazyfs.system.mountinfo import KIND, all_mounts

log = logging.getLogger(__name__)

PATIENCE = 10.0  # seconds to wait for a daemon's answer, or for those of all together
_RUN, _USERS = Path("/run/lazyfs"), Path("/run/user")
_BOOT = _RUN / "run/lazyfs"  # of the daemon that serves a root filesystem, chrooted in _RUN
_AT_ONCE = 64  # daemons asked concurrently
_MOST_DAEMONS = 1000  # of a user
_SEE_LOG = "see what it says: journalctl -t lazyfs"
_CREDENTIALS = struct.Struct("3i")  # struct ucred: process, user, group
_MOST_LINKS = 40  # symbolic links followed in one path; Linux's limit


def own_socket() -> Path:
    """The path of this process's control socket."""
    return _own_directory() / f"{os.getpid()}.sock"


_STATUS = {"pid": int, "front_end": str, "where": str, "places": list, "images": list}
_IMAGE = {
    **dict.fromkeys(("name", "url", "trouble"), str),
    **dict.fromkeys(("size", "cached", "wanted", "hits", "misses", "fetched", "unused"), int),
    **dict.fromkeys(("prefetched", "requests", "failures", "damaged", "evicted", "under_way"), int),
    **dict.fromkeys(("complete", "filling", "paused"), bool),
    **dict.fromkeys(("flow", "trouble_for", "round_trip"), int | float),
    "seconds_left": int | float | None,
    "view": dict | None,
    "slowest": list,
}
_VIEW = {"chain": str, "size": int, "cached": int}
_READ = {"ago": int | float, "offset": int, "length": int, "seconds": int | float}


@dataclass(frozen=True)
class Daemon:
    """A running daemon. ``status``: its answer to ``status``, see docs/control.rst."""

    socket: Path
    status: dict[str, Any]

    @property
    def where(self) -> str:
        """Its mount point, device or URI."""
        return str(self.status["where"])

    @property
    def images(self) -> list[str]:
        """The names of its images."""
        return [image["name"] for image in self.status["images"]]

    def ask(self, command: str, **fields: Any) -> dict[str, Any]:
        """Send a command; returns its result. Raises ControlError."""
        return _checked(command, ask(self.socket, command, **fields))

    def cells(self, image: str, count: int) -> list[list[float]]:
        """An image in about ``count`` parts, each [local, ahead, coming]. Raises ControlError."""
        count = max(1, min(count, control.MOST_CELLS))
        cells: list[list[float]] = self.ask("map", image=image, cells=count)["images"][0]["cells"]
        return cells

    def is_at(self, names: list[str]) -> bool:
        """Whether one of ``names`` is its place, a path within, or the URL of one of its images."""
        urls = {image["url"] for image in self.status["images"]}
        places = set(self.status["places"])
        return any(name in urls | places or _is_within(name, self.where) for name in names)


def running() -> list[Daemon]:
    """Our own daemons, and as root those of other users, sorted by place.

    A daemon that does not answer is named in a warning. Raises ControlError if others can have put
    sockets where our own are.
    """
    return sorted(_answering(_directories()), key=lambda daemon: daemon.where)


def daemon_at(where: str) -> Daemon:
    """The daemon that serves a mount point, a device or a URL. Raises ControlError."""
    names = _names_of(where)
    found = [daemon for daemon in _answering(_trusted()) if daemon.is_at(names)]
    if not found:
        raise ControlError(f"no lazyfs serves {where}", "lazyfs status shows those that run")
    if "://" in where and len(found) > 1:
        places = ", ".join(sorted(daemon.where for daemon in found))
        raise ControlError(f"{where} is served more than once", f"say which: {places}")
    return max(found, key=lambda daemon: len(daemon.where))  # of mounts in mounts, the innermost


def ask(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    """Send a command to the daemon behind a socket; returns its answer. Raises ControlError.

    The daemon must be that of the owner of the socket's directory.
    """
    return _asked(path, control.asking(command, fields), time.monotonic() + PATIENCE)


def _asked(path: Path, request: bytes, until: float) -> dict[str, Any]:
    """The answer to a request, by the time ``until``. Raises ControlError."""
    try:
        line = _exchanged(path, request, until)
    except OSError as error:
        raise ControlError(
            f"the daemon at {path} cannot be asked: {error.strerror or error}", _SEE_LOG
        ) from error
    if not line.endswith(b"\n"):
        why = "has ended" if len(line) < control.LONGEST else "says more than can be taken"
        raise ControlError(f"the daemon at {path} {why}", _SEE_LOG)
    return control.answered(line)


def _exchanged(path: Path, line: bytes, until: float) -> bytes:
    """The answer to a line; without a final newline if it was cut off. Raises OSError."""
    answer = bytearray()
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(max(0.001, until - time.monotonic()))
        connection.connect(os.fspath(path))
        _check_peer(connection, path.parent.lstat().st_uid)
        connection.sendall(line)
        while not answer.endswith(b"\n") and len(answer) < control.LONGEST:
            connection.settimeout(max(0.001, until - time.monotonic()))
            piece = connection.recv(1 << 16)
            if not piece:
                break
            answer += piece
    return bytes(answer)


def _check_peer(connection: socket.socket, user: int) -> None:
    """Raises OSError if the other end is not a process of ``user`` (SO_PEERCRED of unix(7))."""
    raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
    _, found, _ = _CREDENTIALS.unpack(raw)
    if found != user:
        raise OSError(errno.EPERM, f"another user is there (uid {found})")


def _answering(directories: list[Path]) -> Iterator[Daemon]:
    paths = [path for directory in directories for path in _sockets(directory)]
    introduced = partial(_introduced, until=time.monotonic() + PATIENCE)
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        for daemon in pool.map(introduced, paths):
            if daemon is not None:
                yield daemon


def _sockets(directory: Path) -> list[Path]:
    """The sockets in a directory, as many as may be daemons."""
    return sorted(directory.glob("*.sock"))[:_MOST_DAEMONS]


def _introduced(path: Path, until: float) -> Daemon | None:
    """The daemon behind a socket; None if it has ended or does not answer by ``until``."""
    try:
        return Daemon(path, _checked("status", _asked(path, control.asking("status", {}), until)))
    except ControlError as error:
        if isinstance(error.__cause__, ConnectionRefusedError):
            _clear_away(path)
        elif not isinstance(error.__cause__, FileNotFoundError):
            log.warning("%s", printable(str(error)))
        return None


def _clear_away(path: Path) -> None:
    """Remove a killed daemon's socket. A daemon that is just starting also refuses connections."""
    if not Path("/proc", path.stem).exists():
        with suppress(OSError):
            path.unlink()


def _checked(command: str, answer: dict[str, Any]) -> dict[str, Any]:
    """The answer to a command, if it has the fields that we use. Raises ControlError."""
    if not _ANSWERS.get(command, _is_anything)(answer):
        raise ControlError(
            "a daemon says of itself what makes no sense", "use the same lazyfs on both sides"
        )
    return answer


def _is_anything(_: Any) -> bool:
    return True


def _is_status(value: Any) -> bool:
    return (
        _has(value, _STATUS)
        and all(isinstance(place, str) for place in value["places"])
        and all(_is_image(image) for image in value["images"])
    )


def _is_image(value: Any) -> bool:
    return (
        _has(value, _IMAGE)
        and (value["view"] is None or _has(value["view"], _VIEW))
        and all(_has(read, _READ) for read in value["slowest"])
    )


def _is_map(value: Any) -> bool:
    """Whether this is the map of one image."""
    if not _has(value, {"images": list}) or len(value["images"]) != 1:
        return False
    (image,) = value["images"]
    return _has(image, {"cells": list}) and all(_is_cell(cell) for cell in image["cells"])


def _is_cell(value: Any) -> bool:
    return (
        isinstance(value, list)
        and len(value) == 3  # local, ahead, coming
        and all(isinstance(share, int | float) and 0 <= share <= 1 for share in value)
    )


def _is_log(value: Any) -> bool:
    return _has(value, {"lines": list}) and all(isinstance(line, str) for line in value["lines"])


def _is_handover(value: Any) -> bool:
    return _has(value, {"devices": list}) and all(
        _has(device, {"device": str, "stays": str}) for device in value["devices"]
    )


def _is_preload(value: Any) -> bool:
    return _has(value, {"bytes": int})


_ANSWERS = {
    "status": _is_status,
    "map": _is_map,
    "log": _is_log,
    "handover": _is_handover,
    "preload": _is_preload,
}


def _has(value: Any, fields: Mapping[str, Any]) -> bool:
    """Whether this is a JSON object with these fields, of these types."""
    return isinstance(value, dict) and all(
        isinstance(value.get(name), kind) for name, kind in fields.items()
    )


def _names_of(where: str) -> list[str]:
    """The names under which a daemon may serve this place."""
    if "://" in where:
        return [where]
    path = os.path.abspath(where)
    return [path, os.fspath(_resolved(path))]


def _resolved(path: str) -> Path:
    """Follow links, up to a lazyfs mount: looking inside asks its daemon, which may be dead."""
    ours = {mounted.mountpoint for mounted in all_mounts() if mounted.kind == KIND}
    done, waiting, links = Path("/"), path.split("/")[::-1], 0
    while waiting and links < _MOST_LINKS:
        part = waiting.pop()
        done = done.parent if part == ".." else done / part
        if done in ours:
            break
        try:
            target = os.readlink(done)
        except OSError:
            continue
        links += 1
        done = Path("/") if target.startswith("/") else done.parent
        waiting += target.split("/")[::-1]
    return done.joinpath(*reversed(waiting))


def _is_within(name: str, where: str) -> bool:
    if "://" in name or "://" in where or not where:
        return False
    return Path(name).is_relative_to(where)


def _own_directory() -> Path:
    if os.geteuid() == 0:
        return _RUN
    place = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(place):
        return Path(place, "lazyfs")
    return Path(tempfile.gettempdir(), f"lazyfs-{os.geteuid()}")


def check_own(directory: Path) -> None:
    """See that only we can create files in a directory. Raises OSError, ControlError."""
    found = directory.lstat()
    ours = stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid()
    if not ours or found.st_mode & 0o022:
        raise ControlError(
            f"{directory} is open to others",
            "remove it, or set XDG_RUNTIME_DIR to a directory of your own",
        )


def _trusted() -> list[Path]:
    """The socket directories of daemons with our privileges. Raises ControlError."""
    found = [_own_directory(), *([_BOOT] if os.geteuid() == 0 else [])]
    for directory in found:
        with suppress(FileNotFoundError):
            check_own(directory)
    return found


def _directories() -> list[Path]:
    """All directories with sockets that we may use. Raises ControlError."""
    others = sorted(_USERS.glob("*/lazyfs")) if os.geteuid() == 0 else []
    return [*_trusted(), *(directory for directory in others if _is_of_its_user(directory))]


def _is_of_its_user(directory: Path) -> bool:
    """Whether the user of this runtime directory has put it there, and not as a link."""
    try:
        found, above = directory.lstat(), directory.parent.lstat()
    except OSError:  # it has just been removed
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == above.st_uid

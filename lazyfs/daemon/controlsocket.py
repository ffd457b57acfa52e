"""The control socket of a daemon: one line per command, one line per answer.

The commands themselves are handlers, passed in. The protocol is ``protocols/control.py``.
"""

import logging
import os
import socket
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import trio

from lazyfs.core.errors import ControlError, LazyfsError
from lazyfs.daemon.client import check_own
from lazyfs.protocols import control

log = logging.getLogger(__name__)

MOST_CLIENTS = 32  # served at once; further ones wait
_PATIENCE = 60.0  # seconds a client has to send its next line, or to take an answer

Handler = Callable[[dict[str, Any]], Awaitable[Mapping[str, Any]]]


@contextmanager
def listening_at(path: Path) -> Iterator[socket.socket]:
    """A socket at ``path``, accessible to its owner only, while the block runs.

    The directory is made, accessible to its owner only, and removed with its last socket (except
    root's, which has other files too). An existing ``path`` is left over from a dead daemon, and
    replaced. Raises ControlError.
    """
    try:
        _make_own(path.parent)
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(os.fspath(path))
            path.chmod(0o600)
            listener.listen()
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        why = error.strerror or error
        raise ControlError(
            f"the control socket {path} cannot be made: {why}", "see who may write there"
        ) from error
    try:
        yield listener
    finally:
        listener.close()
        path.unlink(missing_ok=True)
        if os.geteuid() != 0:
            with suppress(OSError):  # it contains other sockets
                path.parent.rmdir()


def _make_own(directory: Path) -> None:
    """Make a directory in which only its owner can create files. Raises OSError, ControlError."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    check_own(directory)


class ControlServer:
    """Answers clients with ``handlers``, by command, each called with the other fields.

    A handler returns the fields of the answer, or raises a LazyfsError, which goes to the client.
    """

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers
        self._places = trio.Semaphore(MOST_CLIENTS)

    async def listen(self, listener: socket.socket) -> None:
        """Accept and answer clients, until cancelled."""
        own = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
        await trio.serve_listeners(self.attend, [own])

    async def attend(self, stream: trio.abc.Stream) -> None:
        """Answer one client, until it disconnects or is silent for too long."""
        async with self._places, stream:
            with suppress(trio.BrokenResourceError):  # the client has disconnected
                await self._converse(stream)

    async def _converse(self, stream: trio.abc.Stream) -> None:
        received = bytearray()
        while True:
            with trio.move_on_after(_PATIENCE) as scope:
                line = await _line(stream, received)
            if scope.cancelled_caught or line is None:
                return
            answer = await self._answer(line)
            with trio.move_on_after(_PATIENCE) as scope:
                await stream.send_all(answer)
            if scope.cancelled_caught:
                return

    async def _answer(self, line: bytes) -> bytes:
        try:
            command, fields = control.asked(line)
            return control.answering(await self._handler(command)(fields))
        except LazyfsError as error:
            return control.refusing(error.message, error.cure)
        except Exception as error:
            log.exception("a command over the control socket failed in an unforeseen way")
            return control.refusing(f"the daemon failed: {error!r}")

    def _handler(self, command: str) -> Handler:
        if command not in self._handlers:
            known = ", ".join(self._handlers)
            raise ControlError(f"{command!r} is no command here", f"commands are {known}")
        return self._handlers[command]


async def _line(stream: trio.abc.Stream, received: bytearray) -> bytes | None:
    """The next line; None at the end, or if the line is too long or has no newline."""
    while (end := received.find(b"\n")) < 0:
        piece = await stream.receive_some(4096)
        if not piece or len(received) > control.LONGEST:
            return None
        received += piece
    line = bytes(received[:end])
    del received[: end + 1]
    return line

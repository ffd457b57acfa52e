"""The life cycle of an NBD server: listen, readiness, signals, end."""

import contextlib
import logging
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from lazyfs.core.errors import ServeError, UsageError
from lazyfs.core.options import DaemonOptions, TlsOptions
from lazyfs.daemon import lifecycle
from lazyfs.daemon.commands import FrontEnd
from lazyfs.daemon.lifecycle import Daemon, Life, Report, end_by_signal
from lazyfs.frontends.nbdserver import Export, NbdServer
from lazyfs.frontends.nbdsockets import passed_sockets, tcp_sockets, unix_socket, uri
from lazyfs.frontends.nbdtls import tls_context
from lazyfs.images.image import Image
from lazyfs.system.atomicfile import target_of, write_whole

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class ServeOptions(DaemonOptions):
    """One server.

    ``tcp``: address and port.
    ``single``: one client, on stdin and stdout, unless a listening socket was passed to us (the
    brackets of libnbd's tools used to do the former, and now do the latter).
    ``command``: for the shell; the server ends with it.
    ``allow_plain``: serve other machines without TLS too.
    ``pid_file``: written at readiness.
    """

    unix: Path | None = None
    tcp: tuple[str, int] | None = None
    single: bool = False
    command: str | None = None
    tls: TlsOptions | None = None
    allow_plain: bool = False
    pid_file: Path | None = None


def serve(options: ServeOptions, report: Report) -> int:
    """Serve; returns the exit code for the shell.

    In the background, unless ``options.foreground`` or the client already exists: on stdin, as a
    command, or behind a passed listening socket (socket activation). ``report``: see
    ``lifecycle.run``. Raises UsageError if there is nowhere to serve.
    """
    passed = passed_sockets()
    if not (options.unix or options.tcp or options.single or options.command or passed):
        raise UsageError("where to serve is not said", "give --unix PATH or --tcp PORT")
    tls = tls_context(options.tls) if options.tls else None
    if options.single or options.command or passed:
        options = replace(options, foreground=True)

    return lifecycle.run(options, report, _Served(options, passed, tls))


@contextmanager
def _listening(options: ServeOptions) -> Iterator[list[socket.socket]]:
    """The requested sockets; for a command only, a private one."""
    with contextlib.ExitStack() as closing:
        listeners = []
        path = options.unix
        if path is None and options.tcp is None and options.command is not None:
            path = Path(closing.enter_context(tempfile.TemporaryDirectory("", "lazyfs-")), "socket")
        if path is not None:
            listeners.append(closing.enter_context(unix_socket(path)))
        if options.tcp is not None:
            anywhere = options.tls is not None or options.allow_plain
            found = tcp_sockets(*options.tcp, plain_anywhere=anywhere)
            listeners += [closing.enter_context(listener) for listener in found]
        yield listeners


def _pid_line() -> bytes:
    return f"{os.getpid()}\n".encode()


def _remove_pid_file(path: Path) -> None:
    """Remove the file that we wrote; a device, or what somebody else has written, stays."""
    with contextlib.suppress(OSError):
        target = target_of(path)
        if target.is_file() and target.read_bytes() == _pid_line():
            target.unlink()


class _Served(Daemon):
    """A server with its images."""

    def __init__(
        self,
        options: ServeOptions,
        passed: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
    ) -> None:
        """``passed``: listening sockets from socket activation."""
        self._options = options
        self._passed = passed
        self._tls = tls

    async def begin(self, life: Life) -> FrontEnd:
        options = self._options
        self._opened = life.closing.enter_context(_listening(options))
        self._listeners = [*self._passed, *self._opened]
        images = life.stack.images
        server = NbdServer([Export(i.name, i.url, i.device) for i in images], self._tls)
        if options.single and not self._listeners:
            life.nursery.start_soon(self._serve_stdin, server, life)
        else:
            listeners = [
                trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                for listener in self._listeners
            ]
            life.nursery.start_soon(server.listen, listeners)
        if options.command is not None:
            life.nursery.start_soon(self._run_command, options.command, life)
        return FrontEnd("serve", tuple(self._uris(images, self._listeners)), end_by_signal)

    async def finish(self, life: Life) -> None:
        """Write the PID file, and print the URIs. Raises ServeError."""
        options = self._options
        if options.pid_file is not None:
            life.closing.callback(_remove_pid_file, options.pid_file)
            try:
                write_whole(options.pid_file, _pid_line(), 0o666)
            except OSError as error:
                raise ServeError(
                    f"{options.pid_file} cannot be written: {error.strerror}",
                    "give another --pidfile",
                ) from error
        if options.command is None:
            for place in self._uris(life.stack.images, self._opened):
                print(place, flush=True)

    async def signalled(self, number: int, life: Life) -> None:
        log.info("ending on %s", signal.Signals(number).name)
        life.end()

    def _uris(self, images: Sequence[Image], listeners: Sequence[socket.socket]) -> list[str]:
        """The URI of each image on each of these sockets."""
        names = [image.name for image in images] if len(images) > 1 else [""]
        tls = self._tls is not None
        return [uri(listener, name, tls=tls) for listener in listeners for name in names]

    async def _serve_stdin(self, server: NbdServer, life: Life) -> None:
        """Serve the one client on stdin and stdout; nothing else may be printed there."""
        receive, send = os.dup(0), os.dup(1)
        os.dup2(2, 1)
        stream = trio.StapledStream(trio.lowlevel.FdStream(send), trio.lowlevel.FdStream(receive))
        await server.attend(stream)
        life.end()

    async def _run_command(self, command: str, life: Life) -> None:
        """Run a shell command that finds the server through its environment; end with it."""
        listener = self._listeners[0]
        env = {**os.environ, "uri": uri(listener, tls=self._tls is not None)}
        if listener.family == socket.AF_UNIX:
            env["unixsocket"] = listener.getsockname()
        done = await trio.run_process(["/bin/sh", "-c", command], env=env, stdin=None, check=False)
        life.exit_code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        life.end()

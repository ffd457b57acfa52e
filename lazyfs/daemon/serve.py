"""The life of a server: listen, ready, signals, end."""

import contextlib
import logging
import os
import signal
import socket
import ssl
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from lazyfs.core.errors import LazyfsError, ServeError, UsageError
from lazyfs.core.options import DaemonOptions, TlsOptions
from lazyfs.daemon import logs
from lazyfs.daemon.commands import Front, let_steer
from lazyfs.daemon.daemonize import Ready
from lazyfs.daemon.lifecycle import Report, images_of, live
from lazyfs.frontends.nbdserver import Export, NbdServer
from lazyfs.frontends.nbdsockets import passed_sockets, tcp_sockets, unix_socket, uri
from lazyfs.frontends.nbdtls import tls_context
from lazyfs.images.open import Stack
from lazyfs.images.preloading import preload
from lazyfs.system.eventloop import signals_until_saved

log = logging.getLogger(__name__)

_ENDING = signal.SIGTERM, signal.SIGINT, signal.SIGHUP


@dataclass(frozen=True, kw_only=True)
class ServeOptions(DaemonOptions):
    """One server. ``tcp``: address and port. ``allow_plain``: without TLS for other machines too.

    ``single``: one client, on stdin and stdout, unless a listening socket was passed to us: the
    brackets of libnbd's tools did the one, and now do the other. ``command``: for the shell; the
    server ends with it.
    ``pid_file``: is written when clients may come.
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

    In the background, unless ``options.foreground`` or a client is there already: on stdin, as a
    command, or behind a listening socket that was passed to us. ``report`` tells the user of an
    error that comes before clients are answered, and says the exit code for it.
    """
    passed = passed_sockets()
    if not (options.unix or options.tcp or options.single or options.command or passed):
        raise UsageError("where to serve is not said", "give --unix PATH or --tcp PORT")
    tls = tls_context(options.tls) if options.tls else None
    if options.single or options.command or passed:
        options = replace(options, foreground=True)

    async def life(ready: Ready) -> int:
        with _listening(options) as opened:
            return await _Life(options, passed, opened, tls, ready).run()

    return live(options, report, life)


@contextmanager
def _listening(options: ServeOptions) -> Iterator[list[socket.socket]]:
    """The sockets that were asked for; for a command alone, one that nobody else can find."""
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


class _Life:
    """One run of a server. ``ready`` is called when clients are answered."""

    def __init__(
        self,
        options: ServeOptions,
        passed: Sequence[socket.socket],
        opened: Sequence[socket.socket],
        tls: ssl.SSLContext | None,
        ready: Ready,
    ) -> None:
        self._options = options
        self._opened = opened
        self._listeners = [*passed, *opened]
        self._tls = tls
        self._ready = ready
        self._code = 0

    async def run(self) -> int:
        """Open the images and serve them to the end; returns the exit code."""
        failure: LazyfsError | None = None
        handler = logs.destination(self._options)
        async with images_of(self._options) as (stack, saved), trio.open_nursery() as nursery:
            signals = saved.enter_context(signals_until_saved(*_ENDING))
            nursery.start_soon(_end_on_signal, signals, nursery.cancel_scope)
            try:
                self._start(nursery, stack)
                front = Front("serve", tuple(self._uris(stack, self._listeners)), _end)
                let_steer(front, stack, nursery, saved)
                logs.use(handler, self._options.log.level)
                self._announce(stack)
            except LazyfsError as error:
                failure = error
                nursery.cancel_scope.cancel()
        self._remove_pid_file()
        if failure is not None:
            raise failure
        return self._code

    def _start(self, nursery: trio.Nursery, stack: Stack) -> None:
        """Start all that runs while the server lives; it ends with a signal, or with its client."""
        exports = [Export(image.name, image.url, image.device) for image in stack.images]
        server = NbdServer(exports, self._tls)
        nursery.start_soon(stack.run)
        for image in stack.images:
            nursery.start_soon(preload, image, self._options.preload)
        if self._options.single and not self._listeners:
            nursery.start_soon(self._serve_stdin, server, nursery.cancel_scope)
        else:
            listeners = [
                trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                for listener in self._listeners
            ]
            nursery.start_soon(server.listen, listeners)
        if self._options.command is not None:
            nursery.start_soon(self._run_command, self._options.command, nursery.cancel_scope)

    def _uris(self, stack: Stack, listeners: Sequence[socket.socket]) -> list[str]:
        """Where each image is, on each of these sockets."""
        names = [image.name for image in stack.images] if len(stack.images) > 1 else [""]
        tls = self._tls is not None
        return [uri(listener, name, tls=tls) for listener in listeners for name in names]

    def _announce(self, stack: Stack) -> None:
        """Say that clients may come, and where. Raises ServeError."""
        options = self._options
        if options.pid_file is not None:
            try:
                options.pid_file.write_text(f"{os.getpid()}\n")
            except OSError as error:
                raise ServeError(
                    f"{options.pid_file} cannot be written: {error.strerror}",
                    "give another --pidfile",
                ) from error
        if options.command is None:
            for place in self._uris(stack, self._opened):
                print(place, flush=True)
        self._ready()

    def _remove_pid_file(self) -> None:
        if self._options.pid_file is not None:
            self._options.pid_file.unlink(missing_ok=True)

    async def _serve_stdin(self, server: NbdServer, scope: trio.CancelScope) -> None:
        """Serve the one client on stdin and stdout; what anybody prints must not reach him."""
        receive, send = os.dup(0), os.dup(1)
        os.dup2(2, 1)
        stream = trio.StapledStream(trio.lowlevel.FdStream(send), trio.lowlevel.FdStream(receive))
        await server.attend(stream)
        scope.cancel()

    async def _run_command(self, command: str, scope: trio.CancelScope) -> None:
        """Let the shell run a command that knows where we are; the server ends with it."""
        listener = self._listeners[0]
        env = {**os.environ, "uri": uri(listener, tls=self._tls is not None)}
        if listener.family == socket.AF_UNIX:
            env["unixsocket"] = listener.getsockname()
        done = await trio.run_process(["/bin/sh", "-c", command], env=env, stdin=None, check=False)
        self._code = done.returncode if done.returncode >= 0 else 128 - done.returncode
        scope.cancel()


async def _end() -> None:
    signal.raise_signal(signal.SIGTERM)


async def _end_on_signal(signals: AsyncIterator[int], scope: trio.CancelScope) -> None:
    number = await anext(aiter(signals))
    log.info("ending on %s", signal.Signals(number).name)
    scope.cancel()

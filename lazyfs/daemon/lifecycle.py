"""The life cycle of a daemon, the same for all front ends.

1. The images are opened, and fetching starts.
2. The front end starts (``Daemon.begin``) and serves.
3. Signals are handled from here on.
4. Preloads start, and the control socket answers.
5. The last steps before readiness (``Daemon.finish``).
6. The log goes to its destination, and the starter of the daemon is notified of readiness.
7. The end: by a signal, a command, or the front end itself (``Life.end``, ``Life.fail``).
8. The front end closes, then the images are saved. Signals during this are ignored.
"""

import contextlib
import logging
import signal
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable

import trio

from lazyfs.core.errors import LazyfsError
from lazyfs.core.options import DaemonOptions, Prefetch
from lazyfs.core.texts import printable
from lazyfs.daemon import logs
from lazyfs.daemon.commands import FrontEnd, serve_control
from lazyfs.daemon.daemonize import Ready, raise_descriptor_limit, run_daemon, tell_failure
from lazyfs.images.open import Stack, open_stack
from lazyfs.images.preloading import preload, preload_metadata
from lazyfs.system import rootstorage
from lazyfs.system.eventloop import run_to_the_end, signals_until_saved

log = logging.getLogger(__name__)

# With a timer, and by those who ask other programs for a report, or to rotate their logs.
_STRAY = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)

Report = Callable[[LazyfsError], int]


class Life:
    """One run of a daemon.

    ``closing``: closes the front end, before the images are saved.
    ``ready``: set once readiness has been announced.
    ``exit_code``: for the shell.
    """

    def __init__(
        self, stack: Stack, nursery: trio.Nursery, closing: contextlib.AsyncExitStack
    ) -> None:
        self.stack = stack
        self.nursery = nursery
        self.closing = closing
        self.ready = trio.Event()
        self.exit_code = 0
        self.failure: LazyfsError | None = None

    def end(self) -> None:
        """End the daemon."""
        self.nursery.cancel_scope.cancel()

    def fail(self, error: LazyfsError) -> None:
        """End the daemon with an error."""
        self.failure = error
        self.end()


class Daemon(ABC):
    """The part of a daemon that is specific to its front end.

    ``begun``: logged for each image at the start, between its URL and its place; empty for nothing.
    ``ended``: logged at the end, when everything is saved; empty for nothing.
    """

    begun = ""
    ended = ""

    @abstractmethod
    async def begin(self, life: Life) -> FrontEnd:
        """Start the front end, and serve. Raises a LazyfsError."""

    async def finish(self, life: Life) -> None:  # noqa: B027  # most have nothing left to do
        """The last steps before readiness is announced. Raises a LazyfsError."""

    def clean_up(self) -> None:  # noqa: B027
        """Remove leftovers, however the daemon has ended; called last."""

    @abstractmethod
    async def signalled(self, number: int, life: Life) -> None:
        """Handle a signal: end, or log why not. The next signal is handled after this."""


def run(options: DaemonOptions, report: Report, daemon: Daemon) -> int:
    """Run a daemon, here or in the background; returns the exit code for the shell.

    ``report`` shows the user an error that occurs before readiness, and returns the exit code.
    """

    def work(ready: Ready) -> int:
        raise_descriptor_limit()
        _survive_stray_signals()
        # Until readiness, warnings go to stderr, which the user sees.
        level = options.log.level if options.foreground else max(logging.WARNING, options.log.level)
        logs.use(logs.stderr(options.log), level)
        try:
            code = run_to_the_end(_live, options, daemon, ready)
        except LazyfsError as error:
            if options.foreground:
                # While a service waits for a restart, systemctl does not show its log.
                tell_failure(printable(str(error)))
            logs.flush()
            return report(error) if logs.stderr_takes_more() else error.exit_code
        finally:
            daemon.clean_up()
        if daemon.ended:
            log.info("%s", daemon.ended)
        logs.flush()
        return code

    return run_daemon(work, foreground=options.foreground)


async def _live(options: DaemonOptions, daemon: Daemon, ready: Ready) -> int:
    """Run the whole life cycle; returns the exit code. Raises a LazyfsError."""
    if options.system:
        rootstorage.harden()
    async with contextlib.AsyncExitStack() as saved, open_stack(options) as stack:
        log_handler = logs.destination(options)
        async with contextlib.AsyncExitStack() as closing, trio.open_nursery() as nursery:
            life = Life(stack, nursery, closing)
            nursery.start_soon(stack.run)
            try:
                front_end = await daemon.begin(life)
                signals = saved.enter_context(signals_until_saved(*_ending_signals()))
                nursery.start_soon(_hear, daemon, signals, life)
                for image in stack.images:
                    nursery.start_soon(preload, image, options.preload)
                    if options.prefetch is not Prefetch.NONE:
                        nursery.start_soon(preload_metadata, image)
                serve_control(front_end, stack, nursery, closing)
                await daemon.finish(life)
            except LazyfsError as error:
                life.fail(error)
            else:
                logs.use(log_handler, options.log.level)
                ready()
                life.ready.set()
                for image in stack.images if daemon.begun else ():
                    log.info("%s %s %s", image.url, daemon.begun, front_end.places[0])
    if life.failure is not None:
        raise life.failure
    return life.exit_code


def _ending_signals() -> list[signal.Signals]:
    """The signals that end a daemon, as they end other mounts: see fuse_set_signal_handlers(3).

    SIGHUP, which a closing terminal sends, is left to nohup(1) if that ignores it.
    """
    found = [signal.SIGTERM, signal.SIGINT]
    hangs_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    return [*found, signal.SIGHUP] if hangs_up else found


def _survive_stray_signals() -> None:
    """Do nothing on signals that have no meaning here, but would kill us, and leave a dead mount.

    They are not ignored, because programs that we run would inherit that.
    """
    for number in _STRAY:
        signal.signal(number, lambda _number, _frame: None)


async def _hear(daemon: Daemon, signals: AsyncIterator[int], life: Life) -> None:
    async for number in signals:
        await daemon.signalled(number, life)


async def end_by_signal() -> None:
    """End the daemon, as on SIGTERM."""
    signal.raise_signal(signal.SIGTERM)

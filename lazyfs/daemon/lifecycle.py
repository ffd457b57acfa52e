"""What all daemons have in common, whatever they do with their images: how they come and go."""

import contextlib
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from lazyfs.core.errors import LazyfsError
from lazyfs.core.options import DaemonOptions
from lazyfs.core.texts import printable
from lazyfs.daemon import logs
from lazyfs.daemon.daemonize import Ready, run_daemon, tell_failure
from lazyfs.images.open import Stack, open_stack
from lazyfs.system import rootstorage
from lazyfs.system.eventloop import run_to_the_end

Report = Callable[[LazyfsError], int]


def live(options: DaemonOptions, report: Report, life: Callable[[Ready], Awaitable[int]]) -> int:
    """Live a daemon's life, here or in the background; returns the exit code for the shell.

    ``report`` tells the user of an error that comes before it is ready, and says the exit code.
    """

    def work(ready: Ready) -> int:
        # Until it is ready the user looks on, and is told what he would want to know.
        level = options.log.level if options.foreground else max(logging.WARNING, options.log.level)
        logs.use(logs.terminal(options.log), level)
        try:
            return run_to_the_end(life, ready)
        except LazyfsError as error:
            if options.foreground:
                # While a service waits for its next attempt, systemctl shows nothing of its log.
                tell_failure(printable(str(error)))
            return report(error)

    return run_daemon(work, foreground=options.foreground)


@asynccontextmanager
async def images_of(
    options: DaemonOptions,
) -> AsyncIterator[tuple[Stack, contextlib.AsyncExitStack]]:
    """The images of a daemon; and what ends only when all of them are saved."""
    if options.system:
        rootstorage.harden()
    async with contextlib.AsyncExitStack() as saved, open_stack(options) as stack:
        yield stack, saved

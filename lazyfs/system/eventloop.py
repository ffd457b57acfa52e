"""Running the event loop, with Ctrl-C, and with signals that are deferred until all is saved.

A nursery wraps errors in a group. The helpers here unwrap them, so that one cause is reported as
one error.
"""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_to_the_end(main: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """Run ``main`` with trio. An unhandled Ctrl-C is raised as a plain KeyboardInterrupt."""
    try:
        return trio.run(main, *arguments)
    except* KeyboardInterrupt:
        raise KeyboardInterrupt from None


@asynccontextmanager
async def running(*tasks: Callable[[], Awaitable[None]]) -> AsyncIterator[trio.Nursery]:
    """Run tasks beside the block; when it ends, they are cancelled.

    An exception of the block is raised as it is, not as a group of one.
    """
    failure: Exception | None = None
    async with trio.open_nursery() as nursery:
        for task in tasks:
            nursery.start_soon(task)
        try:
            yield nursery
        except Exception as error:
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure


@contextmanager
def signals_until_saved(*numbers: signal.Signals) -> Iterator[AsyncIterator[int]]:
    """Receive these signals, and ignore them from the end of the block on.

    Otherwise a second signal would kill the process while it saves, and service managers do send
    two.
    """
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)  # the handler that the receiver restores at its end
    with trio.open_signal_receiver(*numbers) as signals:
        yield signals

"""How a run ends: by its own, by Ctrl-C, and by signals that must wait until all is saved."""

import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar, TypeVarTuple

import trio

T = TypeVar("T")
Ts = TypeVarTuple("Ts")


def run_to_the_end(main: Callable[[*Ts], Awaitable[T]], *arguments: *Ts) -> T:
    """Run ``main`` with trio. A Ctrl-C that nobody took care of is a KeyboardInterrupt again."""
    try:
        return trio.run(main, *arguments)
    except* KeyboardInterrupt:
        raise KeyboardInterrupt from None


@contextmanager
def signals_until_saved(*numbers: signal.Signals) -> Iterator[AsyncIterator[int]]:
    """Receive these signals. What comes after the one that ends us is not heard any more.

    Without this, a second one would end the process while it saves, by the default action: service
    managers do send two. What is left to be done behind the block is undisturbed, too.
    """
    for number in numbers:
        signal.signal(number, signal.SIG_IGN)  # what the receiver goes back to at its end
    with trio.open_signal_receiver(*numbers) as signals:
        yield signals

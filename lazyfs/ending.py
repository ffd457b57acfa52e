"""Signals that end a daemon, from when it can be used until all is saved."""

import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager

import trio


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

"""An asyncio loop whose clock jumps to the next timer when nothing else is left to do.

Sockets are real. What was written to one on loopback can be read from the other end at once, so
looking without waiting is enough to know that nothing else is left.
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

_PATIENCE = 0.002  # seconds of real time that the kernel gets to carry something
_STUCK = 20.0  # seconds of real time without a timer or data after which a test hangs


class _Jumping(selectors.SelectSelector):
    """Instead of waiting for a timer it moves the clock."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            ready = super().select(_STUCK)
            assert ready, "nothing will ever happen"
            return ready
        ready = super().select(min(timeout, _PATIENCE))
        if not ready:
            self.now += timeout
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """The loop; its time starts at 0."""

    def __init__(self) -> None:
        self._jumping = _Jumping()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run(test: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(test)

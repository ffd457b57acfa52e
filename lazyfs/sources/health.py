"""The health of one host: its back-off after failures, and their log messages.

A host's health is shared by all images on it, and by them only: a failing mirror does not hold back
requests to others. The first failure is only noted (most are a keep-alive connection that the
server has closed, which a fresh one cures); if the next try fails too, that is logged, once, until
data arrive again.

Times are seconds of trio's clock.
"""

import logging
import random

import trio

from lazyfs.core.backoff import Backoff
from lazyfs.core.device import Trouble
from lazyfs.core.errors import TransientError

log = logging.getLogger(__name__)

LONGEST_WAIT = 300.0  # seconds that a server's Retry-After may hold requests back


class Health:
    """The health of one host."""

    def __init__(self, name: str, patience: float) -> None:
        """``name``: for messages. ``patience``: seconds that a reader waits; 0: no limit."""
        self.trouble: Trouble | None = None
        self._name = name
        self._backoff = Backoff(patience)
        self._jitter = random.Random().random  # noqa: S311  # spreads clients; needs no secrecy
        self._ask_at = 0.0  # no request is sent before
        self._logged = False
        self._recovered = trio.Event()

    @property
    def may_ask(self) -> bool:
        return trio.current_time() >= self._ask_at

    async def wait(self) -> None:
        """Wait for the end of the back-off."""
        while not self.may_ask:
            with trio.move_on_at(self._ask_at):
                await self._recovered.wait()

    def failed(self, error: TransientError) -> None:
        """Note a failed request, and hold the next ones back for a while."""
        now = trio.current_time()
        wait = None if error.retry_after is None else min(error.retry_after, LONGEST_WAIT)
        delay = self._backoff.failed(self._jitter(), wait)
        self._ask_at = max(self._ask_at, now + delay)
        self.trouble = Trouble(error, self.trouble.since if self.trouble else now)
        if delay and not self._logged:
            self._logged = True
            log.warning("%s; retrying", error)

    def succeeded(self) -> None:
        """Note that the host has sent requested data."""
        if self.trouble is None:
            return
        if self._logged:
            log.info("%s: data are coming in again", self._name)
        self.trouble, self._logged, self._ask_at = None, False, 0.0
        self._backoff.succeeded()
        self._recovered.set()
        self._recovered = trio.Event()

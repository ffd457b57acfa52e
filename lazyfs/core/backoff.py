"""When to retry after a failure. Pure."""

FIRST = 0.1  # seconds
LONGEST = 10.0


class Backoff:
    """Delays that double from failure to failure, until a success.

    The first retry is immediate: most failures are a keep-alive connection that the server closed,
    which a fresh one cures.
    """

    def __init__(self, patience: float = 0.0) -> None:
        """``patience``: seconds that a reader waits; 0: no limit.

        A reader always gets a second try within them, however long the failure has lasted.
        """
        self._longest = min(LONGEST, patience / 2 or LONGEST)
        self._failures = 0

    @property
    def failing(self) -> bool:
        return self._failures > 0

    def failed(self, jitter: float, retry_after: float | None = None) -> float:
        """Note a failure; returns the seconds to wait, at least ``retry_after``.

        ``jitter``: a random number from 0 to 1 that spreads clients.
        """
        self._failures += 1
        doubled = FIRST * 2.0 ** min(self._failures - 2, 16)
        delay = 0.0 if self._failures == 1 else min(self._longest, doubled) * (0.5 + jitter / 2)
        return max(delay, retry_after or 0.0)

    def succeeded(self) -> None:
        self._failures = 0

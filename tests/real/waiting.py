"""Polling for conditions that cannot be awaited, with a time limit."""

import time
from collections.abc import Callable


def eventually(condition: Callable[[], bool], what: str, within: float = 30.0) -> None:
    """Return as soon as ``condition`` holds; fail after ``within`` seconds."""
    until = time.monotonic() + within
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"within {within:g} seconds it did not happen that {what}")
        time.sleep(0.02)

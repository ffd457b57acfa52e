"""The figures of a campaign."""

import threading
from collections import Counter


class Figures:
    """What one campaign has done and found, in numbers by name; any thread may add to them."""

    def __init__(self) -> None:
        self._numbers: dict[str, float] = Counter()
        self._lock = threading.Lock()

    def add(self, **numbers: float) -> None:
        """Add to numbers; names are keywords, ``_`` stands for a blank."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] += number

    def most(self, **numbers: float) -> None:
        """Keep the greatest value of each."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] = max(self._numbers[name], number)

    def __str__(self) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {number:g}" for name, number in self._numbers.items()
        )

"""The figures of a campaign."""

import threading
from collections import Counter


class Figures:
    """The figures of a campaign, by name. Thread-safe."""

    def __init__(self) -> None:
        self._numbers: dict[str, float] = Counter()
        self._lock = threading.Lock()

    def add(self, **numbers: float) -> None:
        """Add to figures, by keyword; ``_`` in a name stands for a space."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] += number

    def most(self, **numbers: float) -> None:
        """Keep the maximum of each figure."""
        with self._lock:
            for name, number in numbers.items():
                self._numbers[name] = max(self._numbers[name], number)

    def __str__(self) -> str:
        return ", ".join(
            f"{name.replace('_', ' ')} {number:g}" for name, number in self._numbers.items()
        )

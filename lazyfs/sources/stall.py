"""How slowly a server may answer. Pure.

Silence alone is no measure: a server that sends a byte every few seconds is never silent, and would
hold a lane for as long as it likes. So each answer has to get on (curl's --speed-limit and
--speed-time, and git's http.lowSpeedLimit, are the same rule):

- its head must be whole within the patience, whatever precedes it;
- its body must bring 128 bytes for each second of the patience before that is over, and then has
  the whole patience again. 16 connections that share a modem of 20 kbit/s are still faster.

Only the time that is spent waiting for the server counts. A disk that keeps the reader of an answer
busy does not make the server slow.
"""

from math import inf

SLOWEST = 128.0  # bytes a second


class Pace:
    """What one answer still has to do; all times in seconds."""

    __slots__ = ("_missing", "_patience", "_step", "left")

    def __init__(self, patience: float, step: float) -> None:
        """``step``: bytes that renew the patience."""
        self.left = patience  # how long the next bytes may be waited for
        self._patience = patience
        self._step = self._missing = step

    @classmethod
    def of_head(cls, patience: float) -> "Pace":
        return cls(patience, inf)

    @classmethod
    def of_body(cls, patience: float) -> "Pace":
        return cls(patience, SLOWEST * patience)

    def complaint(self, host: str) -> str:
        """What to say when the time is over."""
        if self._missing == self._step:
            return f"{host} fell silent"
        return f"{host} fell silent, or sends less than {SLOWEST:g} bytes a second"

    def received(self, length: int, waited: float) -> None:
        """``length`` bytes came after a wait of so many seconds."""
        self._missing -= length
        if self._missing <= 0:
            self.left, self._missing = self._patience, self._step
        else:
            self.left = max(0.0, self.left - waited)

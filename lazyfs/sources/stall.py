"""Detecting servers that answer too slowly. Pure.

A timeout on silence is not enough: a server that sends a byte every few seconds would hold a slot
for ever. So each answer has to make progress (the same rule as curl's --speed-limit and
--speed-time, and git's http.lowSpeedLimit):

- its head must be complete within the patience of its host (``HeadPatience``), whatever precedes
  it;
- its body must bring 128 bytes for each second of the patience before that is over, and then has
  the whole patience again. 16 connections that share a modem of 20 kbit/s are still faster.

A server that first fetches what it is to send, from a tape or from another server, begins late. A
wait that is cut off and begun anew would never see its answer, so each one on that host is twice as
long as the last. A connection that cannot be made says nothing of the kind: that limit stays.

Only the time spent waiting for the server counts. A disk that keeps the reader of an answer busy
does not make the server slow.
"""

from math import inf

SLOWEST = 128.0  # bytes per second
LONGEST_HEAD = 600.0  # seconds, for readers that wait for ever


class HeadPatience:
    """How long to wait for the head of an answer of one host. Times in seconds."""

    def __init__(self, usual: float, patience: float) -> None:
        """``patience``: how long a reader waits; 0: no limit."""
        self.left = self._usual = usual  # for the next answer
        self._longest = max(usual, patience or LONGEST_HEAD)

    @property
    def longer_than_usual(self) -> float:
        """``left``, if answers of this host have been waited for in vain; else 0."""
        return self.left if self.left > self._usual else 0.0

    def ran_out(self, waited: float) -> None:
        """Note that no head came for so long. Waits that ran side by side count as one."""
        self.left = max(self.left, min(2 * waited, self._longest))

    def came(self, waited: float) -> None:
        """Note that a head came after so long. The patience falls by half, while that is enough."""
        self.left = min(max(self._usual, self.left / 2, 2 * waited), self._longest)


class StallTimer:
    """The progress that one answer still has to make. Times in seconds."""

    __slots__ = ("_missing", "_patience", "_step", "left")

    def __init__(self, patience: float, step: float) -> None:
        """``step``: bytes that renew the patience."""
        self.left = patience  # how long to wait for the next bytes
        self._patience = patience
        self._step = self._missing = step

    @classmethod
    def of_head(cls, patience: float) -> "StallTimer":
        return cls(patience, inf)

    @classmethod
    def of_body(cls, patience: float) -> "StallTimer":
        return cls(patience, SLOWEST * patience)

    def verdict(self, host: str) -> str:
        """The message for when the time is over."""
        if self._missing == self._step:
            return f"{host} fell silent"
        return f"{host} fell silent, or sends less than {SLOWEST:g} bytes a second"

    def received(self, length: int, waited: float) -> None:
        """Note ``length`` bytes that arrived after ``waited`` seconds."""
        self._missing -= length
        if self._missing <= 0:
            self.left, self._missing = self._patience, self._step
        else:
            self.left = max(0.0, self.left - waited)

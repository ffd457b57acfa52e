"""Freedoms of HTTP that a server takes, learned while it is used. Pure.

Requests may be sent together (RFC 9112 section 9.3.2), and are answered one after the other. Some
servers and proxies answer only the first, and say nothing to the others; some close the connection.
So the first requests that are sent together are a probe, and a server that fails it is asked
singly from then on.

A server may send less than was asked for (RFC 9110 section 15.3.7). Many have a limit that is the
same for all answers: later requests are cut to it, and their answers come in one round trip.

Times are seconds of any one clock.
"""

MOST_TOGETHER = 16  # requests: more, and neither side may be able to send
SMALLEST_ANSWER = 4096  # bytes; not even the last before a boundary is shorter twice in a row

_LEAST_WAIT = 1.0  # seconds
_ROUND_TRIPS = 4
_QUEUE = 64 << 10  # bytes of other answers that may be ahead on a slow link
_PROBE = 10.0  # seconds that the outcome of a probe is waited for
_SIGNS = 2  # failures that show that a server cannot do it
_ACCIDENTS = 3  # the same, in a row, if it was able to


def next_answer_within(round_trip: float, rate: float) -> float:
    """Seconds in which the next of several answers begins: those that a fresh request would take.

    ``round_trip`` in seconds, ``rate`` in bytes per second: of the link; 0 for unknown.
    """
    return _LEAST_WAIT + _ROUND_TRIPS * round_trip + (_QUEUE / rate if rate else 0.0)


class Pipelining:
    """Whether one server answers requests that are sent together."""

    def __init__(self) -> None:
        self.proven = False
        self._failures = 0
        self._probed_until = 0.0

    def grant(self, wanted: int, now: float) -> int:
        """How many of so many requests may be sent together now; it is assumed that they will be.

        One while a probe is under way, or if the server has failed it.
        """
        lost = self._failures >= (_ACCIDENTS if self.proven else _SIGNS)
        count = 1 if lost or now < self._probed_until else min(wanted, MOST_TOGETHER)
        if count > 1 and not self.proven:
            self._probed_until = now + _PROBE
        return count

    def worked(self) -> None:
        """Note that another request than the first was answered."""
        self.proven, self._failures, self._probed_until = True, 0, 0.0

    def failed(self, *, silently: bool = False) -> None:
        """Note that another request than the first was not answered.

        ``silently``: although the connection stood. Only a server without the ability does that.
        """
        self._failures += _SIGNS if silently and not self.proven else 1
        self._probed_until = 0.0


class AnswerLimit:
    """The limit that a server has for its answers. ``size``: bytes; None for none that is known."""

    def __init__(self) -> None:
        self.size: int | None = None
        self._last = 0

    def came_short(self, length: int) -> None:
        """Note an answer of ``length`` bytes to a request for more.

        Two of one length show a limit. One alone may have ended at a boundary of the server's.
        """
        if length == self._last:
            self.size = max(length, SMALLEST_ANSWER)
        self._last = length

"""Estimating a link's round trip and rate from the answers. Pure.

Times are passed in, in seconds of any one clock. The round trip is the time from the request to the
first byte on a connection that was open; the estimate follows the smallest, since anything above is
queueing, and rises slowly, since routes change. The rate is that of all connections together while
at least one body is in flight, so pauses of the readers do not count.
"""

_FORGET = 0.02  # how far a larger round trip pulls the estimate up
_SMOOTH = 0.3  # how far one sample moves the rate
_UP, _DOWN = 0.4, 0.05  # and what the link can do: one that was not full says little
_ASSUMED_RATE = 10e6  # bytes per second
_SAMPLE_TIME = 0.02  # seconds; shorter bursts show buffers, not the link
_SAMPLE_BYTES = 128 << 10


class LinkEstimate:
    """The estimates for one host."""

    def __init__(self) -> None:
        self.round_trip = 0.0  # seconds; 0 until known
        self.rate = 0.0  # bytes per second; 0 until known
        self._capacity = 0.0  # bytes per second, when the link is full; 0 until known
        self._bodies = 0
        self._since = 0.0
        self._bytes = 0

    @property
    def bandwidth_delay(self) -> int:
        """The bandwidth-delay product: bytes that must be in flight to use the whole link.

        0 until the round trip is known. Short answers say nothing about the rate, and a reader that
        gets only such would never get read-ahead; so a modest rate is assumed until it is known.
        """
        return int(self.round_trip * (self._capacity or _ASSUMED_RATE))

    def answered(self, seconds: float) -> None:
        """Note a round trip: the seconds from the request to the first byte."""
        if not self.round_trip or seconds < self.round_trip:
            self.round_trip = seconds
        else:
            self.round_trip += _FORGET * (seconds - self.round_trip)

    def body_begins(self, now: float) -> None:
        self._bodies += 1
        if self._bodies == 1:
            self._since, self._bytes = now, 0

    def received(self, now: float, length: int) -> None:
        """Note ``length`` received bytes of any body."""
        self._bytes += length
        elapsed = now - self._since
        if elapsed < _SAMPLE_TIME or self._bytes < _SAMPLE_BYTES:
            return
        sample = self._bytes / elapsed
        self.rate += (_SMOOTH if self.rate else 1.0) * (sample - self.rate)
        pull = _UP if sample > self._capacity else _DOWN
        self._capacity += (pull if self._capacity else 1.0) * (sample - self._capacity)
        self._since, self._bytes = now, 0

    def body_ends(self) -> None:
        self._bodies -= 1

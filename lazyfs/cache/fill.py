"""When the background fill may ask for more, and for how much. Pure.

Fill completes an image with what the link has left over. It is the only traffic that nobody waits
for, so it must never be what somebody waits behind. Three states:

- *calm*: nobody has waited for a while. All lanes that prefetch may use, requests of full length.
- *beside* a reader: while a request of his is on its way, the link stands idle for a round trip. A
  fill request sent right behind it is answered right behind it, and done before an answer to his
  next one could be: he loses nothing, and most of the idle link is used.
- *alone*, between two readers: one short request at a time.

Tried before: fill only while nobody waits, in short requests. A reader who goes from block to block
then arrives in the middle of one, each time: his reads took 9 ms longer at a round trip of 20 ms.

``--rate`` is kept as an average over each request: after n bytes it rests until they are paid for.
"""

from lazyfs.core.device import Link

CALM = 1.0  # seconds without a waiting reader after which the link counts as idle
SHORTEST = 128 << 10  # bytes
FIRST_REST = 10.0  # seconds
LONGEST_REST = 600.0
BESIDE = 0.85  # of what the link holds; the rest is for the reader's own answer
ALONE = 0.25


class FillPolicy:
    """The pace of one image's fill. ``rate``: bytes a second, None for as fast as it goes."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._paid_at = self._rest_until = 0.0
        self._failures = 0
        self._demand_at = float("-inf")

    def failed(self, now: float) -> None:
        """A request failed in a way that asking again does not mend: wait, longer each time."""
        self._failures += 1
        self._rest_until = now + min(FIRST_REST * 2.0 ** (self._failures - 1), LONGEST_REST)

    def limit(self, rate: float | None) -> None:
        """Another rate from now on; what was asked for at the old one is paid."""
        self.rate = rate
        self._paid_at = 0.0

    def succeeded(self) -> None:
        self._failures = 0

    def demand(self, now: float) -> None:
        """A reader waits, or has just got what it waited for."""
        self._demand_at = now

    def calm(self, now: float) -> bool:
        """Whether the link counts as idle."""
        return now - self._demand_at >= CALM

    def pause(self, link: Link) -> float:
        """Seconds without a waiting reader after which fill may ask on its own account."""
        return max(0.01, 2 * link.round_trip)

    def ready_at(self) -> float:
        """When the next request may be sent, as far as the rate and failures go."""
        return max(self._paid_at, self._rest_until)

    def asked(self, now: float, length: int) -> None:
        """A request for ``length`` bytes is sent."""
        if self.rate:
            self._paid_at = max(now, self._paid_at) + length / self.rate

    def length(self, now: float, link: Link, full: int, *, beside: bool) -> int:
        """Bytes that the next request may ask for; ``full`` is what a request may have at all."""
        length = full
        if not self.calm(now):
            share = BESIDE if beside else ALONE
            length = max(SHORTEST, int(share * link.bandwidth_delay))
        if self.rate:
            length = min(length, max(SHORTEST, int(self.rate)))
        return min(length, full)

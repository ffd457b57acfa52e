"""When the background fill may send a request, and of what length. Pure.

Fill completes an image with the spare capacity of the link. No reader waits for it, so it must
never delay one. Three states:

- *calm*: no reader has waited for a while. Fill uses all slots that prefetch may use, and requests
  of full length.
- *beside* a reader: while a reader's request is in flight, the link is idle for a round trip. A
  fill request sent right behind it is answered right behind it, and done before the reader's next
  answer could arrive: the reader loses nothing, and most of the idle link is used.
- *alone*, between two reads: one short request at a time.

Tried before: fill only while no reader waits, in short requests. A reader that goes from block to
block then arrives in the middle of one each time: its reads took 9 ms longer at a round trip of
20 ms.

``--rate`` is kept as an average over each request: after n bytes, fill pauses for n / rate seconds.
"""

from lazyfs.core.device import Link

CALM = 1.0  # seconds without a waiting reader after which the link counts as idle
SHORTEST = 128 << 10  # bytes
FIRST_REST = 10.0  # seconds
LONGEST_REST = 600.0
BESIDE = 0.85  # of the bandwidth-delay product; the rest is for the reader's own answer
ALONE = 0.25


class FillPolicy:
    """The pace of one image's fill. ``rate``: bytes per second; None for no limit."""

    def __init__(self, rate: float | None = None) -> None:
        self.rate = rate
        self._paid_at = self._rest_until = 0.0
        self._failures = 0
        self._demand_at = float("-inf")

    def failed(self, now: float) -> None:
        """Note a failure that retrying does not cure: back off, longer each time."""
        self._failures += 1
        self._rest_until = now + min(FIRST_REST * 2.0 ** (self._failures - 1), LONGEST_REST)

    def limit(self, rate: float | None) -> None:
        """Change the rate; bytes requested at the old one no longer count."""
        self.rate = rate
        self._paid_at = 0.0

    def succeeded(self) -> None:
        self._failures = 0

    def demand(self, now: float) -> None:
        """Note that a reader waits, or has just been served."""
        self._demand_at = now

    def calm(self, now: float) -> bool:
        """Whether the link counts as idle."""
        return now - self._demand_at >= CALM

    def pause(self, link: Link) -> float:
        """Seconds without a waiting reader after which fill may send a request on its own."""
        return max(0.01, 2 * link.round_trip)

    def ready_at(self) -> float:
        """When the rate and the back-off allow the next request."""
        return max(self._paid_at, self._rest_until)

    def asked(self, now: float, length: int) -> None:
        """Note that a request for ``length`` bytes is sent."""
        if self.rate:
            self._paid_at = max(now, self._paid_at) + length / self.rate

    def length(self, now: float, link: Link, full: int, *, beside: bool) -> int:
        """Bytes that the next request may cover; ``full`` is the limit for any request."""
        length = full
        if not self.calm(now):
            share = BESIDE if beside else ALONE
            length = max(SHORTEST, int(share * link.bandwidth_delay))
        if self.rate:
            length = min(length, max(SHORTEST, int(self.rate)))
        return min(length, full)

"""How an image's cache is doing at this moment: what a person wants to know of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class CacheState:
    """``flow``: bytes a second that have come lately. ``trouble``: what keeps bytes from coming,
    empty while all is well; ``trouble_for``: for how many seconds. ``complete``: every byte is here
    and right. ``filling``: the whole image is wanted; ``paused``: nothing is fetched that nobody
    waits for; ``fill_rate``: the most bytes a second for the fill, None for no limit.
    """

    flow: float
    trouble: str
    trouble_for: float
    complete: bool
    filling: bool
    paused: bool
    fill_rate: float | None

"""How slowly a server may answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.sources.stall import SLOWEST, StallTimer

PATIENCE = 15.0
ENOUGH = int(SLOWEST * PATIENCE)  # bytes


def test_waiting_uses_the_patience_up() -> None:
    pace = StallTimer.of_body(PATIENCE)
    assert pace.left == PATIENCE
    pace.received(1, 4.0)
    pace.received(1, 5.0)
    assert pace.left == PATIENCE - 9


def test_enough_bytes_renew_it() -> None:
    pace = StallTimer.of_body(PATIENCE)
    pace.received(ENOUGH - 1, 10.0)
    assert pace.left == 5
    pace.received(1, 4.0)
    assert pace.left == PATIENCE
    pace.received(ENOUGH - 1, 10.0)
    assert pace.left == 5


def test_nothing_renews_that_of_a_head() -> None:
    pace = StallTimer.of_head(PATIENCE)
    pace.received(10**9, 10.0)
    assert pace.left == 5


def test_what_came_late_leaves_no_time_and_no_debt() -> None:
    pace = StallTimer.of_body(PATIENCE)
    pace.received(1, 2 * PATIENCE)
    assert pace.left == 0


@pytest.mark.parametrize(
    ("received", "says"),
    [(0, "h fell silent"), (ENOUGH, "h fell silent"), (1, "h fell silent, or sends less than 128")],
)
def test_silence_is_told_from_slowness(received: int, says: str) -> None:
    pace = StallTimer.of_body(PATIENCE)
    if received:
        pace.received(received, 1.0)
    assert pace.complaint("h").removesuffix(" bytes a second") == says


@given(rate=st.floats(1, 10**7), every=st.floats(0.01, 5.0), patience=st.floats(15, 60))
def test_a_steady_body_is_given_up_exactly_if_it_is_slower_than_the_slowest(
    rate: float, every: float, patience: float
) -> None:
    """But for the grain of its pieces: a factor of 1.5 lies between the two."""
    pace = StallTimer.of_body(patience)
    length = rate * every
    for _ in range(int(4 * patience / every) + 1):
        if pace.left < every:
            assert rate < 1.5 * SLOWEST
            return
        pace.received(length, every)  # type: ignore[arg-type]  # parts of bytes do no harm here
    assert rate >= SLOWEST

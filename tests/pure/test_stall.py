"""How slowly a server may answer."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.sources.stall import LONGEST_HEAD, SLOWEST, HeadPatience, StallTimer

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
    assert pace.verdict("h").removesuffix(" bytes a second") == says


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


# The heads of one host's answers


def waits(heads: HeadPatience, count: int) -> list[float]:
    """How long each of so many tries lasts, none of which gets an answer."""
    found = []
    for _ in range(count):
        found.append(heads.left)
        heads.ran_out(heads.left)
    return found


def test_head_patience_doubles_up_to_the_deadline_of_reads() -> None:
    assert waits(HeadPatience(15, 100), 5) == [15, 30, 60, 100, 100]
    assert waits(HeadPatience(15, 0), 8)[-2:] == [LONGEST_HEAD] * 2
    assert waits(HeadPatience(15, 10), 2) == [15, 15]


def test_head_patience_counts_waits_side_by_side_as_one() -> None:
    heads = HeadPatience(15, 0)
    for _ in range(8):
        heads.ran_out(15)
    assert heads.left == 30


def test_head_patience_goes_back_as_far_as_the_host_is_quick() -> None:
    heads = HeadPatience(15, 0)
    waits(heads, 3)
    assert heads.left == heads.longer_than_usual == 120
    heads.came(50)
    assert heads.left == 100, "twice what the host took"
    for _ in range(3):
        heads.came(0.1)
    assert (heads.left, heads.longer_than_usual) == (15, 0)


@given(st.lists(st.tuples(st.booleans(), st.floats(0, 1e4))), st.floats(0.1, 20), st.floats(0, 1e3))
def test_head_patience_stays_within_its_bounds(
    steps: list[tuple[bool, float]], usual: float, patience: float
) -> None:
    heads = HeadPatience(usual, patience)
    for came, waited in steps:
        (heads.came if came else heads.ran_out)(waited)
        assert usual <= heads.left <= max(usual, patience or LONGEST_HEAD)

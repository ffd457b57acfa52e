"""What the estimates of a link make of links whose truth is known."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.sources.link import LinkEstimate

KIB, MIB = 1 << 10, 1 << 20


class Wire:
    """A link of a known rate, and the clock that goes with it."""

    def __init__(self, rate: float, piece: int = 64 * KIB) -> None:
        """``rate``: bytes a second. ``piece``: bytes that come in at a time."""
        self.rate = rate
        self.piece = piece
        self.now = 1000.0
        self.link = LinkEstimate()

    def body(self, length: int) -> None:
        """One body, alone on the link."""
        self.link.body_begins(self.now)
        self.bring(length)
        self.link.body_ends()

    def bring(self, length: int) -> None:
        """Bytes of the bodies that are under way, as fast as the link goes."""
        while length:
            piece = min(self.piece, length)
            self.now += piece / self.rate
            self.link.received(self.now, piece)
            length -= piece


# The round trip


def test_nothing_is_known_at_first() -> None:
    link = LinkEstimate()
    assert (link.round_trip, link.rate, link.bandwidth_delay) == (0, 0, 0)


def test_the_smallest_round_trip_counts() -> None:
    link = LinkEstimate()
    link.answered(0.050)
    assert link.round_trip == 0.050
    link.answered(0.020)
    assert link.round_trip == 0.020
    link.answered(0.020)
    assert link.round_trip == 0.020


def test_one_that_waited_in_a_queue_moves_it_next_to_nothing() -> None:
    link = LinkEstimate()
    link.answered(0.020)
    link.answered(0.120)
    assert 0.020 < link.round_trip <= 0.023
    link.answered(0.020)
    assert link.round_trip == 0.020


def test_a_longer_route_is_believed_in_time() -> None:
    link = LinkEstimate()
    link.answered(0.020)
    for _ in range(10):
        link.answered(0.100)
    assert link.round_trip < 0.040
    for _ in range(300):
        link.answered(0.100)
    assert link.round_trip == pytest.approx(0.100, rel=0.05)


@given(st.lists(st.floats(1e-4, 10), min_size=1))
def test_the_round_trip_stays_within_what_was_seen(seconds: list[float]) -> None:
    link = LinkEstimate()
    for one in seconds:
        link.answered(one)
    assert min(seconds) <= link.round_trip <= max(seconds) * (1 + 1e-9)


# The rate


@pytest.mark.parametrize("rate", [50 * KIB, MIB, 25 * MIB, 1000 * MIB])
@pytest.mark.parametrize("piece", [1400, 64 * KIB, 256 * KIB])
def test_the_rate_of_a_link_is_found(rate: float, piece: int) -> None:
    wire = Wire(rate, piece)
    wire.body(int(max(4 * MIB, rate)))
    assert wire.link.rate == pytest.approx(rate, rel=0.1)


@pytest.mark.parametrize("rate", [MIB, 25 * MIB])
def test_all_connections_together_make_the_rate(rate: float) -> None:
    wire = Wire(rate)
    for _ in range(4):
        wire.link.body_begins(wire.now)
    for _ in range(4):
        wire.bring(MIB)
        wire.link.body_ends()
    assert wire.link.rate == pytest.approx(rate, rel=0.1)


def test_bodies_that_overlap_are_one_stretch() -> None:
    """Each is too short to be measured alone."""
    wire = Wire(10 * MIB)
    wire.link.body_begins(wire.now)
    for _ in range(50):
        wire.bring(100 * KIB)
        wire.link.body_begins(wire.now)
        wire.bring(100 * KIB)
        wire.link.body_ends()
    assert wire.link.rate == pytest.approx(10 * MIB, rel=0.1)


@pytest.mark.parametrize("pause", [0.01, 1, 3600])
def test_pauses_between_bodies_do_not_count(pause: float) -> None:
    wire = Wire(10 * MIB)
    for _ in range(10):
        wire.body(2 * MIB)
        wire.now += pause
    assert wire.link.rate == pytest.approx(10 * MIB, rel=0.1)


def test_what_a_body_left_unmeasured_is_not_counted_to_the_next() -> None:
    wire = Wire(100 * MIB)
    wire.body(200 * KIB)
    wire.now += 1
    wire.rate = 2 * MIB
    wire.body(2 * MIB)
    assert wire.link.rate == pytest.approx(2 * MIB, rel=0.1)


@pytest.mark.parametrize(
    ("rate", "length"),
    [
        (1000 * MIB, 16 * MIB),  # over in 16 ms: it shows buffers
        (MIB, 100 * KIB),  # too few bytes
        (1000 * MIB, 4 * KIB),
    ],
)
def test_short_bursts_do_not_count(rate: float, length: int) -> None:
    wire = Wire(rate)
    for _ in range(20):
        wire.body(length)
        wire.now += 1
    assert wire.link.rate == 0


def test_a_burst_does_not_disturb_what_is_known() -> None:
    wire = Wire(5 * MIB)
    wire.body(4 * MIB)
    before = wire.link.rate
    wire.rate = 1000 * MIB
    wire.body(MIB)
    assert wire.link.rate == before


@pytest.mark.parametrize(("before", "after"), [(20 * MIB, 2 * MIB), (2 * MIB, 20 * MIB)])
def test_a_change_is_followed_but_not_at_once(before: float, after: float) -> None:
    wire = Wire(before)
    wire.body(int(before))
    wire.rate = after
    wire.link.body_begins(wire.now)
    while abs(wire.link.rate - before) < 1:
        wire.bring(wire.piece)
    one_sample = wire.link.rate
    assert abs(one_sample - before) < abs(one_sample - after)
    wire.bring(int(3 * after))
    assert wire.link.rate == pytest.approx(after, rel=0.1)


@given(st.lists(st.tuples(st.floats(MIB, 100 * MIB), st.integers(1, 4 * MIB)), min_size=1))
def test_the_rate_stays_within_what_the_link_did(stretches: list[tuple[float, int]]) -> None:
    wire = Wire(1)
    wire.link.body_begins(wire.now)
    for rate, length in stretches:
        wire.rate = rate
        wire.bring(length)
    rates = [rate for rate, _ in stretches]
    if wire.link.rate:
        assert 0.999 * min(rates) <= wire.link.rate <= 1.001 * max(rates)


def test_the_bandwidth_delay_product_is_in_bytes() -> None:
    wire = Wire(10 * MIB)
    wire.body(4 * MIB)
    assert wire.link.bandwidth_delay == 0  # the round trip is not known
    wire.link.answered(0.1)
    assert wire.link.bandwidth_delay == pytest.approx(MIB, rel=0.1)

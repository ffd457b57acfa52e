"""When the fill may ask, and for how much; and what is counted."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.counts import Counts
from lazyfs.cache.fill import ALONE, BESIDE, CALM, SHORTEST, FillPolicy
from lazyfs.core.ranges import Span

KIB, MIB = 1 << 10, 1 << 20
FULL = 2 * MIB  # what a request may ask for at all


@dataclass
class Wire:
    """A Link of known figures."""

    round_trip: float = 0.0
    rate: float = 0.0

    @property
    def bandwidth_delay(self) -> int:
        return int(self.round_trip * self.rate)


UNKNOWN = Wire()
NEAR = Wire(0.020, 25e6)  # holds 500 kB


# Calm


def test_it_is_calm_before_anybody_has_read() -> None:
    assert FillPolicy().calm(0.0)


def test_it_is_calm_again_a_while_after_the_last_reader() -> None:
    policy = FillPolicy()
    policy.demand(100.0)
    assert not policy.calm(100.0)
    assert not policy.calm(100.0 + 0.99 * CALM)
    assert policy.calm(100.0 + CALM)
    policy.demand(100.0 + CALM)
    assert not policy.calm(100.5 + CALM)


# Length


@pytest.mark.parametrize("beside", [True, False])
@pytest.mark.parametrize("link", [UNKNOWN, NEAR])
def test_in_calm_a_request_is_a_full_one(link: Wire, beside: bool) -> None:
    assert FillPolicy().length(5.0, link, FULL, beside=beside) == FULL


@pytest.mark.parametrize(
    ("link", "beside", "length"),
    [
        (UNKNOWN, True, SHORTEST),
        (UNKNOWN, False, SHORTEST),
        (NEAR, True, int(BESIDE * 500_000)),
        (NEAR, False, SHORTEST),  # a quarter of 500 kB is less
        (Wire(0.3, 25e6), True, FULL),
        (Wire(0.3, 25e6), False, int(ALONE * 7_500_000)),
    ],
)
def test_between_readers_a_request_fits_into_the_pause(
    link: Wire, beside: bool, length: int
) -> None:
    policy = FillPolicy()
    policy.demand(5.0)
    assert policy.length(5.1, link, FULL, beside=beside) == length


def test_beside_a_reader_the_link_is_not_filled() -> None:
    assert ALONE < BESIDE < 1


@given(
    now=st.floats(0, 10),
    round_trip=st.floats(0, 2),
    rate=st.floats(0, 1e9),
    most=st.none() | st.floats(1, 1e9),
    beside=st.booleans(),
    full=st.integers(1, 8 * MIB),
)
def test_a_length_is_within_bounds(
    now: float, round_trip: float, rate: float, most: float | None, beside: bool, full: int
) -> None:
    policy = FillPolicy(most)
    policy.demand(5.0)
    length = policy.length(now, Wire(round_trip, rate), full, beside=beside)
    assert min(full, SHORTEST) <= length <= full
    if most is not None:
        assert length <= max(SHORTEST, most)


# Pause


@pytest.mark.parametrize(("link", "seconds"), [(UNKNOWN, 0.01), (NEAR, 0.04), (Wire(0.3), 0.6)])
def test_alone_it_waits_for_longer_than_a_reader_needs_to_come_back(
    link: Wire, seconds: float
) -> None:
    assert FillPolicy().pause(link) == pytest.approx(seconds)


# Rate


def test_without_a_rate_it_may_always_ask() -> None:
    policy = FillPolicy()
    policy.asked(10.0, 100 * MIB)
    assert policy.ready_at() <= 10.0


def test_a_request_is_paid_for_before_the_next() -> None:
    policy = FillPolicy(MIB)
    assert policy.ready_at() <= 10.0
    policy.asked(10.0, 3 * MIB)
    assert policy.ready_at() == pytest.approx(13.0)
    policy.asked(13.0, MIB // 2)
    assert policy.ready_at() == pytest.approx(13.5)


def test_what_was_not_used_is_not_saved_up() -> None:
    policy = FillPolicy(MIB)
    policy.asked(10.0, MIB)
    policy.asked(1000.0, MIB)
    assert policy.ready_at() == pytest.approx(1001.0)


@given(
    rate=st.floats(1e3, 1e8),
    lengths=st.lists(st.integers(SHORTEST, FULL), min_size=1, max_size=50),
    waits=st.lists(st.floats(0, 10), min_size=50, max_size=50),
)
def test_over_time_the_rate_is_kept(rate: float, lengths: list[int], waits: list[float]) -> None:
    """Asked as soon as it may be, or later: all but the last request is paid for."""
    policy = FillPolicy(rate)
    now = start = 100.0
    for length, wait in zip(lengths, waits, strict=False):
        now = max(now, policy.ready_at()) + wait
        policy.asked(now, length)
    assert sum(lengths[:-1]) <= rate * (now - start) * (1 + 1e-9) + 1


# Counts


def test_nothing_has_happened_at_first() -> None:
    counts = Counts(10)
    assert counts.unused_blocks == 0
    assert counts.flow.rate(0.0) == 0
    numbers = {name: value for name, value in vars(counts).items() if isinstance(value, int)}
    assert numbers
    assert not any(numbers.values())


def test_what_was_prefetched_is_unused_until_it_is_read() -> None:
    counts = Counts(10)
    counts.prefetch_arrived(Span(2, 6), 4 * 4096)
    assert (counts.prefetched, counts.unused_blocks) == (4 * 4096, 4)
    counts.prefetch_used(Span(0, 4))
    assert counts.unused_blocks == 2
    counts.prefetch_used(Span(0, 4))
    assert (counts.prefetched, counts.unused_blocks) == (4 * 4096, 2)
    counts.prefetch_used(Span(4, 10))
    assert counts.unused_blocks == 0


def test_what_is_prefetched_again_counts_again() -> None:
    """After it was damaged or evicted."""
    counts = Counts(10)
    for _ in range(2):
        counts.prefetch_arrived(Span(0, 1), 4096)
    assert (counts.prefetched, counts.unused_blocks) == (8192, 1)


@given(
    st.lists(
        st.tuples(st.booleans(), st.integers(0, 20), st.integers(0, 20)).map(
            lambda t: (t[0], Span(min(t[1:]), max(t[1:])))
        )
    )
)
def test_unused_is_a_set(events: list[tuple[bool, Span]]) -> None:
    counts = Counts(20)
    unused: set[int] = set()
    for arrived, span in events:
        blocks = set(range(span.start, span.stop))
        if arrived:
            counts.prefetch_arrived(span, len(blocks))
            unused |= blocks
        else:
            counts.prefetch_used(span)
            unused -= blocks
        assert counts.unused_blocks == len(unused)

"""The flow of bytes, as it is shown to people."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.counts import Flow


def test_a_steady_stream_shows_as_what_it_is() -> None:
    flow = Flow()
    for tick in range(200):
        flow.received(tick / 10, 1_000_000)
    assert flow.rate(20.0) == pytest.approx(10_000_000, rel=0.1)


def test_it_fades_when_nothing_comes() -> None:
    flow = Flow()
    flow.received(5.0, 1_000_000)
    at_once = flow.rate(5.0)
    assert at_once > flow.rate(6.0) > flow.rate(10.0) > 0
    assert flow.rate(60.0) < 1


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 1 << 20))))
def test_it_is_never_more_than_all_came_at_once(pieces: list[tuple[float, int]]) -> None:
    flow, now = Flow(), 100.0
    for pause, length in pieces:
        now += pause
        flow.received(now, length)
    assert 0 <= flow.rate(now) <= sum(length for _, length in pieces)

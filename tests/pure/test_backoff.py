"""How long to wait before asking again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.backoff import LONGEST, Backoff

JITTER = st.floats(0, 1)


def test_the_first_retry_is_immediate_then_delays_double_up_to_the_longest() -> None:
    backoff = Backoff()
    delays = [backoff.failed(jitter=1.0) for _ in range(10)]
    assert delays == pytest.approx([0.0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 10.0, 10.0])


def test_jitter_takes_off_at_most_half() -> None:
    low, high = Backoff(), Backoff()
    for _ in range(12):
        assert low.failed(jitter=0.0) == pytest.approx(high.failed(jitter=1.0) / 2)


@given(st.lists(st.tuples(JITTER, st.none() | st.floats(0, 1e6)), min_size=1, max_size=80))
def test_a_server_is_never_asked_earlier_than_it_said(
    failures: list[tuple[float, float | None]],
) -> None:
    backoff = Backoff()
    for jitter, retry_after in failures:
        delay = backoff.failed(jitter, retry_after)
        assert delay >= (retry_after or 0.0)
        assert delay <= max(LONGEST, retry_after or 0.0)


def test_many_failures_do_not_overflow() -> None:
    backoff = Backoff()
    assert [backoff.failed(1.0) for _ in range(3000)][-1] == LONGEST


def test_success_starts_afresh() -> None:
    backoff = Backoff()
    assert not backoff.failing
    for _ in range(5):
        backoff.failed(1.0)
    assert backoff.failing
    backoff.succeeded()
    assert not backoff.failing
    assert backoff.failed(1.0) == 0.0


@pytest.mark.parametrize(("patience", "longest"), [(4.0, 2.0), (60.0, LONGEST), (0.0, LONGEST)])
def test_a_reader_who_comes_late_has_time_for_a_try(patience: float, longest: float) -> None:
    backoff = Backoff(patience)
    assert max(backoff.failed(1.0) for _ in range(20)) == longest

"""What is learned of a server."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.sources.learned import (
    MOST_TOGETHER,
    SMALLEST_ANSWER,
    AnswerLimit,
    Pipelining,
    next_answer_within,
)


def test_pipelining_begins_with_a_probe() -> None:
    pipelining = Pipelining()
    assert pipelining.grant(4, 0) == 4
    assert pipelining.grant(4, 0.1) == 1
    pipelining.worked()
    assert [pipelining.grant(4, 0.2) for _ in range(3)] == [4, 4, 4]
    assert pipelining.grant(1000, 0.2) == MOST_TOGETHER


def test_pipelining_probe_without_an_outcome_is_made_again() -> None:
    pipelining = Pipelining()
    assert [pipelining.grant(4, now) for now in (0, 1, 60, 61)] == [4, 1, 4, 1]


def test_pipelining_request_alone_is_no_probe() -> None:
    pipelining = Pipelining()
    assert [pipelining.grant(count, 0) for count in (1, 4, 4)] == [1, 4, 1]


def test_pipelining_ends_for_good_with_a_silent_server() -> None:
    pipelining = Pipelining()
    pipelining.failed(silently=True)
    assert pipelining.grant(4, 1e9) == 1


def test_pipelining_ends_with_a_server_that_closes_twice() -> None:
    pipelining = Pipelining()
    pipelining.failed()
    assert pipelining.grant(4, 0) == 4
    pipelining.failed()
    assert pipelining.grant(4, 1e9) == 1


def test_pipelining_survives_accidents_of_a_server_that_can() -> None:
    pipelining = Pipelining()
    for _ in range(5):
        pipelining.worked()
        pipelining.failed(silently=True)
        pipelining.failed()
        assert pipelining.grant(4, 0) == 4
    pipelining.failed(silently=True)
    assert pipelining.grant(4, 0) == 1


@given(st.lists(st.sampled_from([1, 4, 100, "worked", "failed", "silent"])))
def test_pipelining_always_lets_one_request_through(steps: list[int | str]) -> None:
    pipelining = Pipelining()
    for now, step in enumerate(steps):
        if isinstance(step, int):
            assert 1 <= pipelining.grant(step, now) <= min(step, MOST_TOGETHER)
        elif step == "worked":
            pipelining.worked()
        else:
            pipelining.failed(silently=step == "silent")


def test_next_answer_is_waited_for_as_long_as_the_link_needs() -> None:
    assert next_answer_within(0, 0) == 1
    assert next_answer_within(0.5, 0) == 3
    assert next_answer_within(0.02, 10e6) < 1.1
    assert next_answer_within(0.3, 2500) > 20, "a modem, with other answers in its queue"


def test_answer_limit_shows_in_two_answers_of_one_length() -> None:
    limit = AnswerLimit()
    assert limit.size is None
    limit.came_short(5000)  # to a boundary
    assert limit.size is None
    limit.came_short(65_536)
    limit.came_short(65_536)
    assert limit.size == 65_536
    limit.came_short(10_000)
    assert limit.size == 65_536
    limit.came_short(10_000)
    assert limit.size == 10_000


def test_answer_limit_is_never_tiny() -> None:
    limit = AnswerLimit()
    limit.came_short(1)
    limit.came_short(1)
    assert limit.size == SMALLEST_ANSWER

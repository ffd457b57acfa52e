"""In which order a profile is fetched."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.ranges import Span
from lazyfs.prefetch.preload import CLOSE, in_order_of_use
from lazyfs.prefetch.profile import Use

SPANS = st.tuples(st.integers(0, 1 << 20), st.integers(1, 1 << 16)).map(
    lambda t: Span(t[0], t[0] + t[1])
)
USES = st.lists(st.tuples(st.floats(0, 100), SPANS).map(lambda t: Use(*t))).map(sorted)


@given(USES)
def test_all_that_was_used_is_fetched(uses: list[Use]) -> None:
    fetched = list(in_order_of_use(uses))
    for use in uses:
        assert any(s.start <= use.span.start and use.span.stop <= s.stop for s in fetched)


def test_a_moment_is_sorted_and_the_next_one_comes_behind_it() -> None:
    uses = [
        Use(0.0, Span(900_000, 900_100)),
        Use(0.1, Span(100, 200)),
        Use(5.0, Span(500_000, 500_100)),
        Use(5.1, Span(50_000, 50_100)),
    ]
    assert list(in_order_of_use(uses)) == [
        Span(100, 200),
        Span(900_000, 900_100),
        Span(50_000, 50_100),
        Span(500_000, 500_100),
    ]


def test_what_lies_close_together_is_one_range() -> None:
    first, close = Span(0, 10), Span(10 + CLOSE, 20 + CLOSE)
    far = Span(30 + 3 * CLOSE, 40 + 3 * CLOSE)
    uses = [Use(0.0, span) for span in (far, close, first)]
    assert list(in_order_of_use(uses)) == [Span(0, 20 + CLOSE), far]

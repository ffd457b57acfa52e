"""A set of bytes against a set of numbers."""

from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.ranges import Span
from lazyfs.prefetch.covered import Covered

SPANS = st.tuples(st.integers(0, 300), st.integers(0, 60)).map(lambda t: Span(t[0], t[0] + t[1]))
READS = st.lists(SPANS, max_size=40)


def covered(*spans: Span) -> list[int]:
    return [byte for span in spans for byte in range(span.start, span.stop)]


@given(READS)
def test_what_is_added_is_new_once(spans: list[Span]) -> None:
    real, model = Covered(), set[int]()
    for span in spans:
        new = covered(*real.add(span))
        assert new == sorted(set(covered(span)) - model)
        model.update(new)
    starts, stops = real._starts, real._stops
    assert all(a < b for a, b in zip(starts, stops, strict=True))
    assert all(stop < start for stop, start in zip(stops, starts[1:], strict=False))


@given(READS, SPANS)
def test_what_was_added_is_covered(spans: list[Span], asked: Span) -> None:
    real = Covered()
    for span in spans:
        real.add(span)
    assert real.covers(asked) == (set(covered(asked)) <= set(covered(*spans)))

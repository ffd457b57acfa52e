"""What read-ahead is worth on links with a round trip: time, and bytes fetched for nothing.

``pytest -s`` prints the figures.
"""

import itertools
import random
from collections.abc import Iterator

import pytest
from simulator import BLOCK, Access, Conditions, Outcome, simulate

KIB, MIB = 1 << 10, 1 << 20
SIZE = 256 * MIB
LARGE = 4096 * MIB  # an image for streams that go on for longer than what is read ahead
READ = 128 * KIB

NEAR = Conditions("20 ms, 200 Mbit/s", 0.020, 200e6 / 8)
FAR = Conditions("80 ms, 50 Mbit/s", 0.080, 50e6 / 8)
LINKS = (NEAR, FAR)

by_link = pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)


def sequential(start: int = 0, length: int = 128 * MIB) -> list[Access]:
    return [(offset, READ) for offset in range(start, start + length, READ)]


def interleaved(count: int) -> list[Access]:
    """Streams that take turns, each in a part of its own."""
    part = LARGE // count
    streams = [sequential(n * part, 768 * MIB // count) for n in range(count)]
    return list(itertools.chain.from_iterable(zip(*streams, strict=True)))


def strided(length: int, stride: int) -> list[Access]:
    return [(offset, length) for offset in range(0, SIZE, stride)]


def backward() -> list[Access]:
    return sequential(0, 16 * MIB)[::-1]


def scattered() -> list[Access]:
    picks = random.Random(1)
    return [(picks.randrange(SIZE // (4 * KIB)) * 4 * KIB, 4 * KIB) for _ in range(300)]


def job() -> list[Access]:
    """Short runs at places all over the image, as reading files of a squashfs makes them."""
    picks = random.Random(2)
    runs = (
        (picks.randrange(SIZE // READ - 8), picks.choice((1, 1, 1, 2, 3, 8))) for _ in range(200)
    )
    return [((first + n) * READ, READ) for first, count in runs for n in range(count)]


def skipping() -> list[Access]:
    """A reader that leaves out a little now and then, but reads most."""
    reads = sequential()
    return [read for n, read in enumerate(reads) if n % 5]


STRIDES = {
    "64K of every 1M": strided(64 * KIB, MIB),
    "128K of every 512K": strided(128 * KIB, 512 * KIB),
    "4K of every 128K": strided(4 * KIB, 128 * KIB),
}
PATTERNS = {
    "sequential": sequential(),
    "two streams in turn": interleaved(2),
    "four streams in turn": interleaved(4),
    "four of five reads": skipping(),
    **STRIDES,
    "backward": backward(),
    "random 4K": scattered(),
    "short runs at random": job(),
}


@pytest.fixture(scope="module")
def outcomes() -> Iterator[dict[tuple[str, str], Outcome]]:
    """Every pattern on every link, printed at the end."""
    found = {
        (pattern, link.name): simulate(LARGE if "streams" in pattern else SIZE, accesses, link)
        for pattern, accesses in PATTERNS.items()
        for link in LINKS
    }
    yield found
    print()
    print(
        f"{'pattern':22}{'link':20}{'seconds':>9}{'of link':>9}{'read':>8}{'wasted':>8}{'asks':>7}"
    )
    links = {link.name: link for link in LINKS}
    for (pattern, name), outcome in found.items():
        print(
            f"{pattern:22}{name:20}{outcome.seconds:9.2f}{outcome.utilisation(links[name]):9.0%}"
            f"{outcome.read / MIB:8.1f}{outcome.wasted / MIB:8.1f}{outcome.requests:7}"
        )


Outcomes = dict[tuple[str, str], Outcome]


def test_the_simulator_agrees_with_what_can_be_worked_out() -> None:
    """A single read of one block: a round trip, its transfer and the CPU time."""
    outcome = simulate(SIZE, [(5 * BLOCK, BLOCK)], NEAR, cpu=0.5)
    assert outcome.seconds == pytest.approx(0.020 + BLOCK / NEAR.rate + 0.5)
    assert (outcome.read, outcome.fetched, outcome.requests) == (BLOCK, BLOCK, 1)


def test_two_reads_in_flight_halve_the_time_of_far_ones() -> None:
    places = [(n * 16 * MIB, BLOCK) for n in range(10)]
    outcome = simulate(SIZE, places, NEAR, cpu=0)
    assert outcome.seconds == pytest.approx(5 * NEAR.round_trip, rel=0.5)


@by_link
def test_a_sequential_reader_gets_the_link(outcomes: Outcomes, link: Conditions) -> None:
    outcome = outcomes["sequential", link.name]
    assert outcome.utilisation(link) >= 0.95
    assert outcome.seconds <= 1.1 * outcome.read / link.rate


@by_link
@pytest.mark.parametrize("pattern", ["two streams in turn", "four streams in turn"])
def test_streams_that_take_turns_get_the_link(
    outcomes: Outcomes, link: Conditions, pattern: str
) -> None:
    assert outcomes[pattern, link.name].utilisation(link) >= 0.85


@by_link
def test_a_reader_that_leaves_out_little_is_still_kept_ahead_of(
    outcomes: Outcomes, link: Conditions
) -> None:
    assert outcomes["four of five reads", link.name].utilisation(link) >= 0.75


@by_link
def test_random_reads_waste_nothing(outcomes: Outcomes, link: Conditions) -> None:
    assert outcomes["random 4K", link.name].wasted == 0


@by_link
@pytest.mark.parametrize("pattern", [*STRIDES, "backward"])
def test_strides_and_backward_reads_waste_little(
    outcomes: Outcomes, link: Conditions, pattern: str
) -> None:
    outcome = outcomes[pattern, link.name]
    assert outcome.wasted <= outcome.read


@by_link
def test_short_runs_waste_less_than_they_read(outcomes: Outcomes, link: Conditions) -> None:
    outcome = outcomes["short runs at random", link.name]
    assert outcome.wasted <= outcome.read


@by_link
def test_a_stream_that_ends_wastes_no_more_than_it_read(link: Conditions) -> None:
    """The window has to be earned: a short stream has a short one."""
    for length in (MIB, 4 * MIB, 16 * MIB):
        outcome = simulate(SIZE, sequential(0, length), link)
        assert outcome.wasted <= outcome.read

"""Checks of the contract of a Device or a Source, for the tests of a new one.

The contract is in ``core/device.py``. It is checked against a reference, the bytes that the image
is known to hold::

    @asynccontextmanager
    async def opened() -> AsyncIterator[Device]:
        device = NewDevice(...)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(device.run)
            yield device
            nursery.cancel_scope.cancel()
        await device.aclose()


    def test_a_new_device_keeps_the_contract() -> None:
        check_device(opened, REFERENCE)

Both checks run trio themselves, so the test is a plain function. Each operation is tried at all
edges first; then hypothesis draws sequences of operations, each for a fresh Device or Source. A
failure is an AssertionError that names the operation and the rule that it broke; hypothesis adds
the shortest sequence that it has found, if it has drawn one.

It needs hypothesis, which the extra ``test`` of the package installs.
"""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import TypeVar

import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from lazyfs.core.device import Device, Identity, Priority, Source
from lazyfs.core.errors import Unreachable
from lazyfs.testing.devicetrial import DeviceTrial, Promises
from lazyfs.testing.sourcetrial import SourceTrial
from lazyfs.testing.trial import MOST_ROUNDS, ContractBroken, Range, Step, doing, failure_of

Subject = TypeVar("Subject", Device, Source)

HUGE = 1 << 40  # bytes: a length that reaches far beyond any reference

_LONGEST = 8  # steps of a drawn sequence
_MOST_RANGES = 4  # in a step


def check_device(
    opened: Callable[[], AbstractAsyncContextManager[Device]],
    reference: bytes,
    *,
    edges: Sequence[int] = (),
    remembers: bool = False,
    complete: bool = False,
    patience: float = 10.0,
    examples: int = 30,
) -> None:
    """Check that a Device whose image holds ``reference`` keeps the contract.

    ``opened``: makes a fresh Device each time; the tasks that it needs run until the block ends.
    ``edges``: offsets at which it may behave differently, such as those of its blocks.
    ``remembers``: the Device holds all that has been read: ``cached`` says so at once, and
    ``wait_complete`` returns. ``complete``: it holds the whole image from the beginning.
    ``patience``: seconds that an operation may take. ``examples``: sequences to draw.

    After the block, ``aclose`` is called twice: the block may have closed the Device, or not.

    The contract does not say when an empty range is ready. A read of nothing waits for nothing, so
    it has to be ready if any other range is; a Device that never makes this promise may deny it.

    Raises AssertionError.
    """
    size = _size_of(reference)
    promises = Promises(remembers, complete, patience)

    def run(steps: Sequence[Step]) -> None:
        async def perform(device: Device) -> None:
            await DeviceTrial(device, reference, promises).perform(steps)

        trio.run(_attempt, opened, perform, patience)

    places = _places(size, edges)
    ranges = [*_between(places), *((place, HUGE) for place in places)]
    for verb in DeviceTrial.VERBS:
        run([Step(verb, tuple(ranges), rounds=1)])
    for priority in Priority:
        hints = [Step("ensure", (each,), priority) for each in ranges]
        run([*hints, Step("wait and cancel", ((0, size),), rounds=10 * MOST_ROUNDS)])
    for rounds in range(MOST_ROUNDS):
        run([Step("read and cancel", ((0, size), (size // 2, HUGE)), rounds=rounds)])
    _check_drawn(run, _steps(DeviceTrial.VERBS, _drawn_ranges(places, size)), examples)


def check_source(
    opened: Callable[[], AbstractAsyncContextManager[Source]],
    reference: bytes,
    *,
    edges: Sequence[int] = (),
    patience: float = 10.0,
    examples: int = 30,
) -> None:
    """Check that a Source whose image holds ``reference`` keeps the contract.

    ``opened``: makes a fresh Source each time, and does not open it: the check calls ``open`` and
    ``run``. A server that it needs runs until the block ends. ``edges``, ``patience``,
    ``examples``: as for ``check_device``; so is closing.

    Raises AssertionError.
    """
    size = _size_of(reference)
    error = Unreachable("the check of a contract says that a request failed")

    def on_trial(source: Source) -> SourceTrial:
        return SourceTrial(source, reference, patience, error)

    def run(steps: Sequence[Step]) -> None:
        async def perform(source: Source) -> None:
            await on_trial(source).perform(steps)

        trio.run(_attempt, opened, perform, patience)

    places = _places(size, edges)
    wide = [*_between(places), *((place, HUGE) for place in places)]
    within = [(offset, length) for offset, length in wide if 0 < length <= size - offset]
    run([Step("zeros", tuple(wide))])
    for verb in SourceTrial.VERBS:
        run([Step(verb, tuple(some)) for some in _in_fours(within)])
    for rounds in range(MOST_ROUNDS):
        for verb in ("leave early", "stream and cancel"):
            run([Step(verb, ((0, size), (size // 2, 1), (0, size), (0, 1)), rounds=rounds)])
    _check_opening(opened, on_trial, patience)
    drawn = _steps(SourceTrial.VERBS, _drawn_ranges(places, size, within=True))
    zeros = _steps(("zeros",), _drawn_ranges(places, size))
    _check_drawn(run, drawn | zeros, examples)


def _check_opening(
    opened: Callable[[], AbstractAsyncContextManager[Source]],
    on_trial: Callable[[Source], SourceTrial],
    patience: float,
) -> None:
    """Open Sources, use one that was not opened, and take all slots. Raises AssertionError."""
    found: list[Identity] = []

    async def open_twice(source: Source) -> None:
        found.append(await on_trial(source).open_again())

    async def expect(source: Source) -> None:
        await on_trial(source).expect(found[0])

    async def take_slots(source: Source) -> None:
        await on_trial(source).take_slots()

    for perform in (open_twice, expect, take_slots):
        trio.run(_attempt, opened, perform, patience)


async def _attempt(
    opened: Callable[[], AbstractAsyncContextManager[Subject]],
    perform: Callable[[Subject], Awaitable[None]],
    patience: float,
) -> None:
    """Perform on a fresh Device or Source, and close it twice afterwards. Raises ContractBroken.

    A failure is carried out of the block by hand: a nursery there would wrap it, and leaving the
    block may fail because of it.
    """
    failure: ContractBroken | None = None
    try:
        async with opened() as subject:
            failure = await failure_of(partial(perform, subject))
    except Exception as error:
        if failure is None:
            what = "opening it, running its tasks or leaving it"
            raise ContractBroken(f"{what} raised {error!r}") from error
    if failure is not None:
        raise failure
    for _ in range(2):
        with doing("aclose(), called once more,", patience):
            await subject.aclose()


# Operations to try


def _size_of(reference: bytes) -> int:
    if not reference:
        raise ValueError("an empty image shows nothing: give a reference of some bytes")
    return len(reference)


def _places(size: int, edges: Sequence[int]) -> list[int]:
    """Offsets at the edges, and next to them."""
    near = {edge + by for edge in (0, size, *edges) for by in (-1, 0, 1)}
    return sorted(place for place in near if place >= 0)


def _between(places: Sequence[int]) -> list[Range]:
    """All ranges that begin and end at one of ``places``, the empty ones too."""
    return [(start, stop - start) for start in places for stop in places if start <= stop]


def _in_fours(ranges: Sequence[Range]) -> Iterator[Sequence[Range]]:
    return (ranges[n : n + _MOST_RANGES] for n in range(0, len(ranges), _MOST_RANGES))


def _drawn_ranges(
    places: Sequence[int], size: int, *, within: bool = False
) -> st.SearchStrategy[Range]:
    """Ranges anywhere; or those of at least a byte that lie within the image."""
    place = st.sampled_from(places) | st.integers(0, size + 1)
    if within:
        place = place.map(lambda each: min(each, size))
    pairs = st.tuples(place, place).map(lambda pair: (min(pair), max(pair) - min(pair)))
    if within:
        return pairs.map(lambda each: (min(each[0], size - 1), max(each[1], 1)))
    return pairs | st.tuples(place, st.just(HUGE))


def _steps(verbs: Sequence[str], ranges: st.SearchStrategy[Range]) -> st.SearchStrategy[Step]:
    return st.builds(
        Step,
        verb=st.sampled_from(verbs),
        ranges=st.lists(ranges, min_size=1, max_size=_MOST_RANGES).map(tuple),
        priority=st.sampled_from(Priority),
        rounds=st.integers(0, MOST_ROUNDS),
    )


def _check_drawn(
    run: Callable[[Sequence[Step]], None], steps: st.SearchStrategy[Step], examples: int
) -> None:
    """Run sequences of steps that hypothesis draws. Raises AssertionError."""

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        report_multiple_bugs=False,
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(st.lists(steps, min_size=1, max_size=_LONGEST))
    def sequence(steps: list[Step]) -> None:
        run(steps)

    try:
        sequence()
    except Flaky as error:
        raise ContractBroken(f"the same operations fail now and then only: {error}") from error

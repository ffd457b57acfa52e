"""Whether a Device or a Source keeps its contract: for the tests of a new one.

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
failure is an AssertionError that names the operation and the rule which it broke. If a sequence was
drawn, hypothesis adds the shortest one that it has found.
"""

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import asdict, dataclass, replace
from functools import partial
from types import AsyncGeneratorType
from typing import TypeVar

import trio
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from hypothesis.errors import Flaky

from lazyfs.core.device import Device, Identity, Link, Priority, Slot, Source, Stream
from lazyfs.core.errors import SourceError, Unreachable
from lazyfs.core.ranges import Span, clamp

T = TypeVar("T")
Subject = TypeVar("Subject", Device, Source)
Range = tuple[int, int]  # offset and length in bytes

HUGE = 1 << 40  # bytes: a length that reaches far beyond any reference

_LONGEST = 8  # steps of a drawn sequence
_MOST_RANGES = 4  # in a step
_MOST_ROUNDS = 24
_MOST_SLOTS = 32  # that are taken of a source without a limit

_COUNTERS = (  # of the statistics: they never go down
    "wanted",
    "hits",
    "misses",
    "fetched",
    "prefetched",
    "requests",
    "failures",
    "damaged",
    "evicted",
)


class ContractBroken(AssertionError):
    """A rule of the contract, and the operation that broke it."""


@dataclass(frozen=True)
class Step:
    """An operation on each of ``ranges``.

    ``priority``: of hints and slots. ``rounds``: of the event loop, after which the operation is
    cancelled, if it is one that is.
    """

    verb: str
    ranges: tuple[Range, ...]
    priority: Priority = Priority.DEMAND
    rounds: int = 0


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
    ``remembers``: it keeps all that has been read, and says so: ``cached`` at once, and
    ``wait_complete`` once it has been verified. ``complete``: it holds the whole image from the
    beginning. ``patience``: seconds that an operation may take. ``examples``: sequences to draw.

    The contract leaves open when an empty range is ready. A read of nothing waits for nothing, so
    it has to be ready if any other range is; a Device that can never promise anything may deny it.

    Raises AssertionError.
    """
    size = _size_of(reference)
    promises = _Promises(remembers, complete, patience)

    def run(steps: Sequence[Step]) -> None:
        async def perform(device: Device) -> None:
            await _DeviceTrial(device, reference, promises).perform(steps)

        trio.run(_attempt, opened, perform, patience)

    places = _places(size, edges)
    ranges = [*_between(places), *((place, HUGE) for place in places)]
    for verb in _DeviceTrial.VERBS:
        run([Step(verb, tuple(ranges), rounds=1)])
    for priority in Priority:
        hints = [Step("ensure", (each,), priority) for each in ranges]
        run([*hints, Step("wait and cancel", ((0, size),), rounds=10 * _MOST_ROUNDS)])
    for rounds in range(_MOST_ROUNDS):
        run([Step("read and cancel", ((0, size), (size // 2, HUGE)), rounds=rounds)])
    _check_drawn(run, _steps(_DeviceTrial.VERBS, _drawn_ranges(places, size)), examples)


def check_source(
    opened: Callable[[], AbstractAsyncContextManager[Source]],
    reference: bytes,
    *,
    edges: Sequence[int] = (),
    patience: float = 10.0,
    examples: int = 30,
) -> None:
    """Check that a Source whose image holds ``reference`` keeps the contract.

    ``opened``: makes a fresh Source each time. Neither has it been opened, nor does its ``run``
    run: the check does both. All else that it needs, such as a server, runs until the block ends.
    ``edges``, ``patience``, ``examples``: as for ``check_device``.

    Raises AssertionError.
    """
    size = _size_of(reference)

    def run(steps: Sequence[Step]) -> None:
        async def perform(source: Source) -> None:
            await _SourceTrial(source, reference, patience).perform(steps)

        trio.run(_attempt, opened, perform, patience)

    places = _places(size, edges)
    wide = [*_between(places), *((place, HUGE) for place in places)]
    within = [(offset, length) for offset, length in wide if 0 < length <= size - offset]
    run([Step("zeros", tuple(wide))])
    for verb in _SourceTrial.VERBS:
        run([Step(verb, tuple(some)) for some in _in_fours(within)])
    for rounds in range(_MOST_ROUNDS):
        for verb in ("leave early", "stream and cancel"):
            run([Step(verb, ((0, size), (size // 2, 1), (0, size), (0, 1)), rounds=rounds)])
    _check_opening(opened, reference, patience)
    drawn = _steps(_SourceTrial.VERBS, _drawn_ranges(places, size, within=True))
    zeros = _steps(("zeros",), _drawn_ranges(places, size))
    _check_drawn(run, drawn | zeros, examples)


def _check_opening(
    opened: Callable[[], AbstractAsyncContextManager[Source]], reference: bytes, patience: float
) -> None:
    """Open Sources, and have them expect what they are. Raises AssertionError."""
    found: list[Identity] = []

    async def open_twice(source: Source) -> None:
        found.append(await _SourceTrial(source, reference, patience).open_again())

    async def expect(source: Source) -> None:
        await _SourceTrial(source, reference, patience).expect(found[0])

    async def take_slots(source: Source) -> None:
        await _SourceTrial(source, reference, patience).take_slots()

    for perform in (open_twice, expect, take_slots):
        trio.run(_attempt, opened, perform, patience)


# What is tried


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
        rounds=st.integers(0, _MOST_ROUNDS),
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
        raise ContractBroken(f"the same operations fail at one time only: {error}") from error


# How it is tried


async def _attempt(
    opened: Callable[[], AbstractAsyncContextManager[Subject]],
    perform: Callable[[Subject], Awaitable[None]],
    patience: float,
) -> None:
    """Perform on a fresh Device or Source, then close that twice. Raises AssertionError.

    A failure is carried out of the block by hand: a nursery there would wrap it, and closing may
    fail as well, because of it.
    """
    failure: ContractBroken | None = None
    try:
        async with opened() as subject:
            failure = await _failure_of(partial(perform, subject))
    except Exception as error:
        if failure is None:
            what = "opening it, running its tasks or leaving it"
            raise ContractBroken(f"{what} raised {error!r}") from error
    if failure is not None:
        raise failure
    for _ in range(2):  # the block may have closed it, or not
        with _doing("aclose(), called once more,", patience):
            await subject.aclose()


@contextmanager
def _doing(what: str, patience: float) -> Iterator[None]:
    """Turn all errors of the block into AssertionErrors about ``what``.

    ``patience``: seconds that the block may take.
    """
    with trio.move_on_after(patience) as scope:
        try:
            yield
        except ContractBroken:
            raise
        except Exception as error:
            raise ContractBroken(f"{what} raised {error!r}") from error
    if scope.cancelled_caught:
        raise ContractBroken(f"{what} has not come to an end within {patience:g} seconds")


def _require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ContractBroken(complaint)


async def _failure_of(call: Callable[[], Awaitable[None]]) -> ContractBroken | None:
    """The failure of a call, to be raised where nothing wraps it."""
    try:
        with _doing("a part of it that must not raise anything", float("inf")):
            await call()
    except ContractBroken as error:
        return error
    return None


async def _together(
    calls: Iterable[Callable[[], Awaitable[None]]], rounds: int | None = None
) -> None:
    """Run calls at the same time; raises the first AssertionError of one, as it is.

    ``rounds``: of the event loop, after which they are cancelled; None for never.
    """
    failures: list[ContractBroken] = []

    async def run(call: Callable[[], Awaitable[None]]) -> None:
        failure = await _failure_of(call)
        if failure is not None:
            failures.append(failure)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
        if rounds is not None:
            await _pass(rounds)
            nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def _pass(rounds: int) -> None:
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()


class _Watch(trio.abc.Instrument):
    """Sees whether the current task waits for anything. ``waited``: it has.

    A checkpoint is no waiting: the task can go on at once, and is scheduled again before its step
    has ended.
    """

    def __init__(self) -> None:
        self.waited = False
        self._task = trio.lowlevel.current_task()
        self._scheduled = False

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._scheduled = False

    def task_scheduled(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self._scheduled = True

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task and not self._scheduled:
            self.waited = True


async def _watched(call: Awaitable[T]) -> tuple[T, bool]:
    """Its result, and whether it had to wait for anything."""
    watch = _Watch()
    trio.lowlevel.add_instrument(watch)
    try:
        return await call, watch.waited
    finally:
        trio.lowlevel.remove_instrument(watch)


# What both have to keep


def _compare(what: str, found: bytes, wanted: bytes) -> None:
    _require(
        len(found) == len(wanted), f"{what} brought {len(found)} bytes; there are {len(wanted)}"
    )
    if found != wanted:
        place = next(n for n in range(len(wanted)) if found[n] != wanted[n])
        raise ContractBroken(
            f"{what} brought wrong bytes: number {place} of them is {found[place]:#04x}, "
            f"and should be {wanted[place]:#04x}"
        )


def _spans(what: str, runs: Iterable[tuple[int, bool]], span: Span) -> list[tuple[Span, bool]]:
    """Where runs lie that were said of ``span``, with what was said. Raises AssertionError."""
    found: list[tuple[Span, bool]] = []
    start = span.start
    for length, said in runs:
        _require(length > 0, f"{what} has a run of {length} bytes")
        stop = start + length
        _require(
            stop <= span.stop,
            f"{what} speaks of {stop - span.stop} bytes beyond the range, which ends at "
            f"{span.stop} in the image",
        )
        found.append((Span(start, stop), said))
        start = stop
    _require(bool(found) or not span.length, f"{what} says nothing, though the range is not empty")
    return found


def _check_zeros(what: str, runs: Iterable[tuple[int, bool]], span: Span, reference: bytes) -> None:
    for run, zeros in _spans(what, runs, span):
        true = not zeros or reference.count(0, run.start, run.stop) == run.length
        _require(
            true, f"{what} says that bytes {run.start} to {run.stop} are zeros, and they are not"
        )


def _check_identity(identity: Identity, at_first: Identity, size: int) -> None:
    _require(identity.size == size, f"identity.size is {identity.size}; the image has {size} bytes")
    _require(identity == at_first, f"identity has become {identity}, and was {at_first}")


def _check_link(what: str, link: Link) -> None:
    for name in ("round_trip", "rate", "bandwidth_delay"):
        value = getattr(link, name)
        _require(value >= 0, f"{what}: {name} is {value}")


# A Device


@dataclass(frozen=True)
class _Promises:
    """What this Device does beyond the contract; see ``check_device``."""

    remembers: bool
    complete: bool
    patience: float


class _DeviceTrial:
    """One Device, and all that it is asked. Everything raises AssertionError."""

    VERBS = (
        "read",
        "read together",
        "read and cancel",
        "ensure",
        "cached",
        "zeros",
        "ready",
        "wait",
        "wait and cancel",
    )

    def __init__(self, device: Device, reference: bytes, promises: _Promises) -> None:
        self._device = device
        self._reference = reference
        self._size = len(reference)
        self._promises = promises
        self._identity = device.identity
        self._before = asdict(device.statistics())

    async def perform(self, steps: Sequence[Step]) -> None:
        self._look()
        for step in steps:
            await self._take(step)
            self._look()
        await self._read(0, self._size)
        if self._promises.complete or self._promises.remembers:
            await self._wait_for_all()
        self._look()

    async def _take(self, step: Step) -> None:
        match step.verb:
            case "read together":
                await _together([partial(self._read, *each) for each in step.ranges])
            case "read and cancel":
                for each in step.ranges:
                    await _together([partial(self._read, *each)], step.rounds)
                    await self._read(*each)
            case "wait and cancel":
                for each in step.ranges:
                    await _together([partial(self._try_to_wait, *each)], step.rounds)
            case _:
                for offset, length in step.ranges:
                    await self._ask(step.verb, offset, length, step.priority)

    async def _ask(self, verb: str, offset: int, length: int, priority: Priority) -> None:
        match verb:
            case "read":
                await self._read(offset, length)
            case "ensure":
                await self._ensure(offset, length, priority)
            case "cached":
                self._cached(offset, length)
            case "zeros":
                await self._zeros(offset, length)
            case "ready":
                await self._ready(offset, length)
            case "wait":
                await self._wait(offset, length)
            case _:
                raise ValueError(verb)

    def _doing(self, what: str) -> AbstractContextManager[None]:
        return _doing(what, self._promises.patience)

    def _span(self, offset: int, length: int) -> Span:
        return clamp(offset, length, self._size)

    async def _read(self, offset: int, length: int) -> None:
        what = f"read({offset}, {length})"
        with self._doing(what):
            found = await self._device.read(offset, length)
        self._compare(what, found, offset, length)
        if self._promises.remembers:
            self._require_held(f"after {what}", offset, length)

    def _compare(self, what: str, found: bytes, offset: int, length: int) -> None:
        kind = type(found).__name__
        _require(isinstance(found, bytes), f"{what} returned a {kind}, and not bytes")
        span = self._span(offset, length)
        _compare(what, found, self._reference[span.start : span.stop])

    async def _ensure(self, offset: int, length: int, priority: Priority) -> None:
        what = f"ensure({offset}, {length}, Priority.{priority.name})"
        with self._doing(what):
            _, waited = await _watched(self._device.ensure(offset, length, priority))
        _require(not waited, f"{what} waited, and must return at once")

    def _cached(self, offset: int, length: int) -> list[tuple[Span, bool]]:
        what = f"cached({offset}, {length})"
        span = self._span(offset, length)
        with self._doing(what):
            found = _spans(what, self._device.cached(offset, length), span)
        missing = span.length - sum(run.length for run, _ in found)
        _require(missing == 0, f"{what} says nothing of the last {missing} bytes of the range")
        return found

    def _require_held(self, when: str, offset: int, length: int) -> None:
        for run, here in self._cached(offset, length):
            _require(
                here,
                f"{when}, cached({offset}, {length}) says that bytes {run.start} to {run.stop} are "
                "not held",
            )

    async def _zeros(self, offset: int, length: int) -> None:
        what = f"zeros({offset}, {length})"
        with self._doing(what):
            runs = await self._device.zeros(offset, length)
            _check_zeros(what, runs, self._span(offset, length), self._reference)

    async def _ready(self, offset: int, length: int) -> None:
        what = f"ready({offset}, {length})"
        with self._doing(what):
            ready, nothing = self._device.ready(offset, length), self._device.ready(offset, 0)
        if not ready:
            return
        _require(nothing, f"{what} is true, and ready({offset}, 0), of nothing, is not")
        read = f"read({offset}, {length})"
        with self._doing(read):
            found, waited = await _watched(self._device.read(offset, length))
        self._compare(read, found, offset, length)
        _require(not waited, f"{read} waited, and {what} had said that it would not")

    async def _wait(self, offset: int, length: int) -> None:
        """Wait for a range that is complete, or becomes so by being read."""
        if self._promises.remembers:
            await self._read(offset, length)
        elif self._span(offset, length).length and not self._promises.complete:
            return
        what = f"wait_complete({offset}, {length})"
        with self._doing(what):
            _, waited = await _watched(self._device.wait_complete(offset, length))
        nothing = not self._span(offset, length).length
        _require(not (nothing and waited), f"{what} waited, though there is nothing to wait for")
        self._require_held(f"after {what}", offset, length)

    async def _try_to_wait(self, offset: int, length: int) -> None:
        """Wait for a range that may never be complete; to be cancelled."""
        try:
            await self._device.wait_complete(offset, length)
        except Exception as error:
            raise ContractBroken(f"wait_complete({offset}, {length}) raised {error!r}") from error

    async def _wait_for_all(self) -> None:
        with self._doing("wait_complete()"):
            await self._device.wait_complete()
        self._require_held("after wait_complete()", 0, self._size)
        with self._doing("wait_complete(1), to the end,"):
            await self._device.wait_complete(1)

    def _look(self) -> None:
        """See that all that can be seen without asking for bytes is as it should be."""
        with self._doing("a look at identity and link"):
            _check_identity(self._device.identity, self._identity, self._size)
            _check_link("link", self._device.link)
        with self._doing("statistics()"):
            now = asdict(self._device.statistics())
        for name, value in now.items():
            _require(value >= 0, f"statistics(): {name} is {value}")
        _require(now["size"] == self._size, f"statistics(): size is {now['size']}")
        for part, whole in (
            ("cached", "size"),
            ("prefetched", "fetched"),
            ("unused", "prefetched"),
        ):
            _require(
                now[part] <= now[whole],
                f"statistics(): {part} is {now[part]}, which is more than {whole}, {now[whole]}",
            )
        for name in _COUNTERS:
            before = self._before[name]
            _require(now[name] >= before, f"statistics(): {name} is {now[name]}, and was {before}")
        self._before = now


# A Source


class _SourceTrial:
    """One Source, and all that it is asked. Everything raises AssertionError."""

    VERBS = (
        "stream",
        "stream together",
        "stream and cancel",
        "leave early",
        "zeros",
        "rest",
        "trouble",
    )

    def __init__(self, source: Source, reference: bytes, patience: float) -> None:
        self._source = source
        self._reference = reference
        self._size = len(reference)
        self._patience = patience
        self._ended: list[str] = []  # how ``run`` came to an end, which it should not

    async def perform(self, steps: Sequence[Step]) -> None:
        identity = await self.open()
        await self._while_it_runs(partial(self._take_all, steps, identity))

    async def open(self) -> Identity:
        with self._doing("open()"):
            identity = await self._source.open()
        _check_identity(identity, identity, self._size)
        self._look(identity)
        return identity

    async def open_again(self) -> Identity:
        """Open it twice; returns its identity."""
        first = await self.open()
        again = await self.open()
        _require(first.matches(again), f"open(), called again, says {again}; it had said {first}")
        return again

    async def expect(self, identity: Identity) -> None:
        """Use it without opening it. ``identity``: the true one."""
        for expected in (replace(identity, size=self._size + 1), identity):
            with self._doing(f"expect({expected})"):
                self._source.expect(expected)
            found = self._source.identity
            _require(found == expected, f"after expect({expected}), identity is {found}")
        self._look(identity)
        await self._while_it_runs(partial(self._take_all, (), identity))

    async def take_slots(self) -> None:
        """Take slots of each priority, and all that there are."""
        await self.open()
        for priority in (*Priority, *Priority):
            async with self._slot(priority):
                pass
        held = await self._all_slots()
        count = len(held)
        if held[-1].last:
            await self._take_one_more(held)
        for slot in held:
            slot.release()
        again = [
            await self._one_slot(f"slot(Priority.DEMAND), number {n + 1} of the {count} released,")
            for n in range(count)
        ]
        for slot in again:
            slot.release()

    async def _while_it_runs(self, call: Callable[[], Awaitable[None]]) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._run)
            failure = await _failure_of(call)
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def _run(self) -> None:
        try:
            await self._source.run()
        except Exception as error:
            self._ended.append(f"raised {error!r}")
        else:
            self._ended.append("returned")

    async def _take_all(self, steps: Sequence[Step], identity: Identity) -> None:
        for step in steps:
            await self._take(step)
            self._look(identity)
        await self._stream(((0, self._size),))
        self._look(identity)
        _require(not self._ended, f"run() {''.join(self._ended)}, and must run until cancelled")

    async def _take(self, step: Step) -> None:
        stream = partial(self._stream, priority=step.priority)
        match step.verb:
            case "stream":
                await stream(step.ranges)
            case "stream together":
                await _together([partial(stream, (each,)) for each in step.ranges])
            case "stream and cancel":
                await _together([partial(stream, step.ranges)], step.rounds)
                await stream(step.ranges)
            case "leave early":
                await self._leave_early(step)
            case "zeros":
                for each in step.ranges:
                    await self._zeros(*each)
            case "rest":
                await self._rest()
                await stream(step.ranges)
            case "trouble":
                await self._have_trouble(step.priority)
                await stream(step.ranges)
            case _:
                raise ValueError(step.verb)

    def _doing(self, what: str) -> AbstractContextManager[None]:
        return _doing(what, self._patience)

    # Slots

    async def _one_slot(self, what: str, priority: Priority = Priority.DEMAND) -> Slot:
        with self._doing(what):
            return await self._source.slot(priority)
        raise ContractBroken(what)  # it has been raised already

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[Slot]:
        slot = await self._one_slot(f"slot(Priority.{priority.name})", priority)
        try:
            _check_link("link of a slot", slot.link)
            yield slot
        finally:
            slot.release()

    async def _all_slots(self) -> list[Slot]:
        """All slots that there are for demand, or enough of them."""
        held: list[Slot] = []
        while not (held and held[-1].last) and len(held) < _MOST_SLOTS:
            which = f"slot(Priority.DEMAND), after {len(held)} of which none was the last,"
            held.append(await self._one_slot(which))
        return held

    async def _take_one_more(self, held: list[Slot]) -> None:
        """Ask for one more than there are: it has to come when another is released."""
        more: list[Slot] = []

        async def take() -> None:
            more.append(await self._one_slot("slot(Priority.DEMAND), one having been released,"))

        async def release() -> None:
            await _pass(_MOST_ROUNDS)
            early = bool(more)
            held.pop().release()
            _require(not early, "a slot said that it was the last, and another was given")

        await _together([take, release])
        held += more

    # Streams

    async def _stream(self, ranges: Sequence[Range], priority: Priority = Priority.DEMAND) -> None:
        async with self._slot(priority) as slot:
            for stream, wanted in zip(self._streams(slot, ranges), ranges, strict=True):
                await self._bring(stream, wanted)

    async def _leave_early(self, step: Step) -> None:
        """Leave one stream after some pieces. Those behind it may fail then, but not lie."""
        pieces, number = divmod(step.rounds, len(step.ranges))
        async with self._slot(step.priority) as slot:
            streams = self._streams(slot, step.ranges)
            for n, (stream, wanted) in enumerate(zip(streams, step.ranges, strict=True)):
                if n < number:
                    await self._bring(stream, wanted)
                elif n == number:
                    await self._bring(stream, wanted, most=pieces)
                elif not await self._bring(stream, wanted, may_fail=True):
                    return

    def _streams(self, slot: Slot, ranges: Sequence[Range]) -> Sequence[Stream]:
        what = f"streams({list(ranges)})"
        with self._doing(what):
            streams = slot.streams(ranges)
        _require(len(streams) == len(ranges), f"{what} returned {len(streams)} streams")
        return streams

    async def _bring(
        self, stream: Stream, wanted: Range, *, most: int | None = None, may_fail: bool = False
    ) -> bool:
        """Take a stream in; returns whether it went well.

        ``most``: pieces, after which it is left; None for all.
        """
        offset, length = wanted
        what = f"the stream of {length} bytes at {offset}"
        found = bytearray()
        good = whole = False
        with self._doing(what):
            try:
                async with stream as pieces:
                    whole = await _take_in(found, pieces, most, length)
                good = True
            except SourceError:
                if not may_fail:
                    raise
            if good and isinstance(pieces, AsyncGeneratorType) and pieces.ag_frame is not None:
                raise ContractBroken(
                    f"{what} was left early, and its generator is still open: "
                    "it should be inside of contextlib.aclosing"
                )
        excess = len(found) - length
        _require(excess <= 0, f"{what} brought {excess} bytes more than asked for")
        stop = offset + (length if whole else len(found))
        _compare(what, bytes(found), self._reference[offset:stop])
        return good

    # All else

    async def _zeros(self, offset: int, length: int) -> None:
        what = f"zeros({offset}, {length})"
        with self._doing(what):
            runs = await self._source.zeros(offset, length)
            _check_zeros(what, runs, clamp(offset, length, self._size), self._reference)

    async def _rest(self) -> None:
        for what in ("rest()", "rest(), called again,"):
            with self._doing(what):
                await self._source.rest()

    async def _have_trouble(self, priority: Priority) -> None:
        """A request fails, as somebody says, and the next one succeeds."""
        error = Unreachable("the check of the contract says that a request failed")
        async with self._slot(priority) as slot:
            with self._doing("failed()"):
                slot.failed(error)
            trouble = self._source.trouble
            _require(
                trouble is None or trouble.error is error,
                f"after failed({error!r}), trouble is {trouble}",
            )
            with self._doing("succeeded()"):
                slot.succeeded()
        self._require_no_trouble("after succeeded()")

    def _require_no_trouble(self, when: str) -> None:
        trouble = self._source.trouble
        _require(trouble is None, f"{when}, trouble is {trouble}, and should be None")

    def _look(self, identity: Identity) -> None:
        """See that all that can be seen without asking for bytes is as it should be."""
        with self._doing("a look at identity, link, trouble and opening"):
            _check_identity(self._source.identity, identity, self._size)
            _check_link("link", self._source.link)
            self._require_no_trouble("with nothing amiss")
            begins = self._reference.startswith(self._source.opening)
        _require(begins, f"opening is no beginning of the image: {self._source.opening[:20]!r}...")


async def _take_in(
    found: bytearray, pieces: AsyncIterator[bytes | bytearray], most: int | None, length: int
) -> bool:
    """Add pieces to ``found``, until there are too many bytes; returns whether that was all."""
    count = 0
    while most is None or count < most:
        try:
            found += await anext(pieces)
        except StopAsyncIteration:
            return True
        if len(found) > length:
            return False
        count += 1
    return False

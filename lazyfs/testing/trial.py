"""The means of checking a contract: operations that end in time, and complaints in words."""

from collections.abc import Awaitable, Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import trio

from lazyfs.core.device import Identity, Link, Priority
from lazyfs.core.ranges import Span

T = TypeVar("T")
Range = tuple[int, int]  # offset and length in bytes

MOST_ROUNDS = 24  # of the event loop, until an operation is cancelled


class ContractBroken(AssertionError):
    """An operation broke a rule of the contract; the message names both."""


@dataclass(frozen=True)
class Step:
    """An operation, done to each of ``ranges``.

    ``priority``: of hints and slots. ``rounds``: of the event loop, until an operation that is to
    be cancelled is.
    """

    verb: str
    ranges: tuple[Range, ...]
    priority: Priority = Priority.DEMAND
    rounds: int = 0


@contextmanager
def doing(what: str, patience: float) -> Iterator[None]:
    """Turn each error of the block into a ContractBroken about ``what``, an operation.

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


def require(holds: bool, complaint: str) -> None:
    if not holds:
        raise ContractBroken(complaint)


async def failure_of(call: Callable[[], Awaitable[None]]) -> ContractBroken | None:
    """The failure of a call, for the caller to raise where no nursery wraps it."""
    try:
        with doing("a part of it that must not raise anything", float("inf")):
            await call()
    except ContractBroken as error:
        return error
    return None


async def together(
    calls: Iterable[Callable[[], Awaitable[None]]], rounds: int | None = None
) -> None:
    """Run calls at the same time. Raises the first ContractBroken of one, without a group.

    ``rounds``: of the event loop, after which they are cancelled; None for never.
    """
    failures: list[ContractBroken] = []

    async def run(call: Callable[[], Awaitable[None]]) -> None:
        failure = await failure_of(call)
        if failure is not None:
            failures.append(failure)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
        if rounds is not None:
            await pass_rounds(rounds)
            nursery.cancel_scope.cancel()
    if failures:
        raise failures[0]


async def pass_rounds(rounds: int) -> None:
    for _ in range(rounds):
        await trio.lowlevel.checkpoint()


class _Watch(trio.abc.Instrument):
    """Watches the current task. ``waited``: whether it has waited for anything.

    A mere checkpoint does not count: there the task is scheduled again before its step has ended.
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


async def watched(call: Awaitable[T]) -> tuple[T, bool]:
    """The result of a call, and whether it waited for anything."""
    watch = _Watch()
    trio.lowlevel.add_instrument(watch)
    try:
        return await call, watch.waited
    finally:
        trio.lowlevel.remove_instrument(watch)


# Rules for both


def compare(what: str, found: bytes, wanted: bytes) -> None:
    require(
        len(found) == len(wanted), f"{what} brought {len(found)} bytes; there are {len(wanted)}"
    )
    if found != wanted:
        place = next(n for n in range(len(wanted)) if found[n] != wanted[n])
        raise ContractBroken(
            f"{what} brought wrong bytes: number {place} of them is {found[place]:#04x}, "
            f"and should be {wanted[place]:#04x}"
        )


def spans_of(what: str, runs: Iterable[tuple[int, bool]], span: Span) -> list[tuple[Span, bool]]:
    """The runs of ``span`` as spans, each with its flag. Raises ContractBroken.

    They may end before ``span`` does, but must not be empty, be absent or reach beyond it.
    """
    found: list[tuple[Span, bool]] = []
    start = span.start
    for length, said in runs:
        require(length > 0, f"{what} has a run of {length} bytes")
        stop = start + length
        require(
            stop <= span.stop,
            f"{what} speaks of {stop - span.stop} bytes beyond the range, which ends at "
            f"{span.stop} in the image",
        )
        found.append((Span(start, stop), said))
        start = stop
    require(bool(found) or not span.length, f"{what} says nothing, though the range is not empty")
    return found


def check_zeros(what: str, runs: Iterable[tuple[int, bool]], span: Span, reference: bytes) -> None:
    for run, zeros in spans_of(what, runs, span):
        true = not zeros or reference.count(0, run.start, run.stop) == run.length
        require(
            true, f"{what} says that bytes {run.start} to {run.stop} are zeros, and they are not"
        )


def check_identity(identity: Identity, at_first: Identity, size: int) -> None:
    require(identity.size == size, f"identity.size is {identity.size}; the image has {size} bytes")
    require(identity == at_first, f"identity has become {identity}, and was {at_first}")


def check_link(what: str, link: Link) -> None:
    for name in ("round_trip", "rate", "bandwidth_delay"):
        value = getattr(link, name)
        require(value >= 0, f"{what}: {name} is {value}")

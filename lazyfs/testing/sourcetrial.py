"""One Source on trial: each operation, and the rules that its answer has to keep."""

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractContextManager, asynccontextmanager
from dataclasses import replace
from functools import partial
from types import AsyncGeneratorType

import trio

from lazyfs.core.device import Identity, Priority, Slot, Source, Stream
from lazyfs.core.errors import SourceError, TransientError
from lazyfs.core.ranges import clamp
from lazyfs.testing.trial import (
    MOST_ROUNDS,
    ContractBroken,
    Range,
    Step,
    check_identity,
    check_link,
    check_zeros,
    compare,
    doing,
    failure_of,
    pass_rounds,
    require,
    together,
)

_MOST_SLOTS = 32  # taken of a source that has no limit


class SourceTrial:
    """Asks a Source for bytes, and much else. All methods raise ContractBroken."""

    VERBS = (
        "stream",
        "stream together",
        "stream and cancel",
        "leave early",
        "zeros",
        "rest",
        "trouble",
    )

    def __init__(
        self, source: Source, reference: bytes, patience: float, error: TransientError
    ) -> None:
        """``error``: the failure to report to slots."""
        self._source = source
        self._reference = reference
        self._size = len(reference)
        self._patience = patience
        self._error = error
        self._ended: list[str] = []  # how ``run`` came to an end, which it should not

    async def perform(self, steps: Sequence[Step]) -> None:
        identity = await self.open()
        await self._while_it_runs(partial(self._take_all, steps, identity))

    async def open(self) -> Identity:
        with self._doing("open()"):
            identity = await self._source.open()
        check_identity(identity, identity, self._size)
        self._look(identity)
        return identity

    async def open_again(self) -> Identity:
        """Open the Source twice; returns its identity."""
        first = await self.open()
        again = await self.open()
        require(first.matches(again), f"open(), called again, says {again}; it had said {first}")
        return again

    async def expect(self, identity: Identity) -> None:
        """Use the Source without opening it. ``identity``: the true one."""
        for expected in (replace(identity, size=self._size + 1), identity):
            with self._doing(f"expect({expected})"):
                self._source.expect(expected)
            found = self._source.identity
            require(found == expected, f"after expect({expected}), identity is {found}")
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
            failure = await failure_of(call)
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
        require(not self._ended, f"run() {''.join(self._ended)}, and must run until cancelled")

    async def _take(self, step: Step) -> None:
        stream = partial(self._stream, priority=step.priority)
        match step.verb:
            case "stream":
                await stream(step.ranges)
            case "stream together":
                await together([partial(stream, (each,)) for each in step.ranges])
            case "stream and cancel":
                await together([partial(stream, step.ranges)], step.rounds)
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
        return doing(what, self._patience)

    # Slots

    async def _one_slot(self, what: str, priority: Priority = Priority.DEMAND) -> Slot:
        with self._doing(what):
            return await self._source.slot(priority)
        raise ContractBroken(what)  # it has been raised already

    @asynccontextmanager
    async def _slot(self, priority: Priority) -> AsyncIterator[Slot]:
        slot = await self._one_slot(f"slot(Priority.{priority.name})", priority)
        try:
            check_link("link of a slot", slot.link)
            yield slot
        finally:
            slot.release()

    async def _all_slots(self) -> list[Slot]:
        """Take all slots that there are for demand, or ``_MOST_SLOTS``."""
        held: list[Slot] = []
        while not (held and held[-1].last) and len(held) < _MOST_SLOTS:
            which = f"slot(Priority.DEMAND), after {len(held)} of which none was the last,"
            held.append(await self._one_slot(which))
        return held

    async def _take_one_more(self, held: list[Slot]) -> None:
        """Ask for a slot when all are held: it must come once another is released, not before."""
        more: list[Slot] = []

        async def take() -> None:
            more.append(await self._one_slot("slot(Priority.DEMAND), one having been released,"))

        async def release() -> None:
            await pass_rounds(MOST_ROUNDS)
            early = bool(more)
            held.pop().release()
            require(not early, "a slot said that it was the last, and another was given")

        await together([take, release])
        held += more

    # Streams

    async def _stream(self, ranges: Sequence[Range], priority: Priority = Priority.DEMAND) -> None:
        async with self._slot(priority) as slot:
            for stream, wanted in zip(self._streams(slot, ranges), ranges, strict=True):
                await self._bring(stream, wanted)

    async def _leave_early(self, step: Step) -> None:
        """Leave one stream after some pieces. The later ones may fail then, but not lie."""
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
        require(len(streams) == len(ranges), f"{what} returned {len(streams)} streams")
        return streams

    async def _bring(
        self, stream: Stream, wanted: Range, *, most: int | None = None, may_fail: bool = False
    ) -> bool:
        """Read a stream and compare its bytes; returns False if it failed.

        ``most``: pieces, after which it is left; None for all of them. ``may_fail``: a SourceError
        breaks no rule.
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
        require(excess <= 0, f"{what} brought {excess} bytes more than asked for")
        stop = offset + (length if whole else len(found))
        compare(what, bytes(found), self._reference[offset:stop])
        return good

    # All else

    async def _zeros(self, offset: int, length: int) -> None:
        what = f"zeros({offset}, {length})"
        with self._doing(what):
            runs = await self._source.zeros(offset, length)
            check_zeros(what, runs, clamp(offset, length, self._size), self._reference)

    async def _rest(self) -> None:
        for what in ("rest()", "rest(), called again,"):
            with self._doing(what):
                await self._source.rest()

    async def _have_trouble(self, priority: Priority) -> None:
        """Report a failed request, and then a good one."""
        async with self._slot(priority) as slot:
            with self._doing("failed()"):
                slot.failed(self._error)
            trouble = self._source.trouble
            require(
                trouble is None or trouble.error is self._error,
                f"after failed({self._error!r}), trouble is {trouble}",
            )
            with self._doing("succeeded()"):
                slot.succeeded()
        self._require_no_trouble("after succeeded()")

    def _require_no_trouble(self, when: str) -> None:
        trouble = self._source.trouble
        require(trouble is None, f"{when}, trouble is {trouble}, and should be None")

    def _look(self, identity: Identity) -> None:
        """Check the properties."""
        with self._doing("a look at identity, link, trouble and opening"):
            check_identity(self._source.identity, identity, self._size)
            check_link("link", self._source.link)
            self._require_no_trouble("with nothing amiss")
            begins = self._reference.startswith(self._source.opening)
        require(begins, f"opening is no beginning of the image: {self._source.opening[:20]!r}...")


async def _take_in(
    found: bytearray, pieces: AsyncIterator[bytes | bytearray], most: int | None, length: int
) -> bool:
    """Add pieces to ``found``; returns whether the stream has come to its end.

    It stops after ``most`` pieces, and as soon as there are more than ``length`` bytes.
    """
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

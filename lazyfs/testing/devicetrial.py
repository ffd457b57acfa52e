"""One Device on trial: each operation, and the rules that its answer has to keep."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from functools import partial

from lazyfs.core.device import Device, Priority
from lazyfs.core.ranges import Span, clamp
from lazyfs.testing.trial import (
    ContractBroken,
    Step,
    check_identity,
    check_link,
    check_zeros,
    compare,
    doing,
    require,
    spans_of,
    together,
    watched,
)

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


@dataclass(frozen=True)
class Promises:
    """What this Device does beyond the contract; see ``check_device``."""

    remembers: bool
    complete: bool
    patience: float


class DeviceTrial:
    """Asks a Device for bytes, and much else. All methods raise ContractBroken."""

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

    def __init__(self, device: Device, reference: bytes, promises: Promises) -> None:
        self._device = device
        self._reference = reference
        self._size = len(reference)
        self._promises = promises
        self._identity = device.identity
        self._before = asdict(device.statistics())

    async def perform(self, steps: Sequence[Step]) -> None:
        self._look()
        if self._promises.complete:
            self._require_held("at the beginning", 0, self._size)
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
                await together([partial(self._read, *each) for each in step.ranges])
            case "read and cancel":
                for each in step.ranges:
                    await together([partial(self._read, *each)], step.rounds)
                    await self._read(*each)
            case "wait and cancel":
                for each in step.ranges:
                    await together([partial(self._try_to_wait, *each)], step.rounds)
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
        return doing(what, self._promises.patience)

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
        require(isinstance(found, bytes), f"{what} returned a {kind}, and not bytes")
        span = self._span(offset, length)
        compare(what, found, self._reference[span.start : span.stop])

    async def _ensure(self, offset: int, length: int, priority: Priority) -> None:
        what = f"ensure({offset}, {length}, Priority.{priority.name})"
        with self._doing(what):
            _, waited = await watched(self._device.ensure(offset, length, priority))
        require(not waited, f"{what} waited, and must return at once")

    def _cached(self, offset: int, length: int) -> list[tuple[Span, bool]]:
        what = f"cached({offset}, {length})"
        span = self._span(offset, length)
        with self._doing(what):
            found = spans_of(what, self._device.cached(offset, length), span)
        missing = span.length - sum(run.length for run, _ in found)
        require(missing == 0, f"{what} says nothing of the last {missing} bytes of the range")
        return found

    def _require_held(self, when: str, offset: int, length: int) -> None:
        for run, here in self._cached(offset, length):
            require(
                here,
                f"{when}, cached({offset}, {length}) says that bytes {run.start} to {run.stop} are "
                "not held",
            )

    async def _zeros(self, offset: int, length: int) -> None:
        what = f"zeros({offset}, {length})"
        with self._doing(what):
            runs = await self._device.zeros(offset, length)
            check_zeros(what, runs, self._span(offset, length), self._reference)

    async def _ready(self, offset: int, length: int) -> None:
        what = f"ready({offset}, {length})"
        with self._doing(what):
            ready, nothing = self._device.ready(offset, length), self._device.ready(offset, 0)
        if not ready:
            return
        require(nothing, f"{what} is true, and ready({offset}, 0), of nothing, is not")
        read = f"read({offset}, {length})"
        with self._doing(read):
            found, waited = await watched(self._device.read(offset, length))
        self._compare(read, found, offset, length)
        require(not waited, f"{read} waited, and {what} had said that it would not")

    async def _wait(self, offset: int, length: int) -> None:
        """Wait for a range that is complete, or becomes so by being read."""
        if self._promises.remembers:
            await self._read(offset, length)
        elif self._span(offset, length).length and not self._promises.complete:
            return
        what = f"wait_complete({offset}, {length})"
        with self._doing(what):
            _, waited = await watched(self._device.wait_complete(offset, length))
        nothing = not self._span(offset, length).length
        require(not (nothing and waited), f"{what} waited, though there is nothing to wait for")
        self._require_held(f"after {what}", offset, length)

    async def _try_to_wait(self, offset: int, length: int) -> None:
        """Wait for a range that may never be complete; the caller cancels it."""
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
        """Check the properties and the statistics."""
        with self._doing("a look at identity and link"):
            check_identity(self._device.identity, self._identity, self._size)
            check_link("link", self._device.link)
        with self._doing("statistics()"):
            now = asdict(self._device.statistics())
        for name, value in now.items():
            require(value >= 0, f"statistics(): {name} is {value}")
        require(now["size"] == self._size, f"statistics(): size is {now['size']}")
        for part, whole in (
            ("cached", "size"),
            ("prefetched", "fetched"),
            ("unused", "prefetched"),
        ):
            require(
                now[part] <= now[whole],
                f"statistics(): {part} is {now[part]}, which is more than {whole}, {now[whole]}",
            )
        for name in _COUNTERS:
            before = self._before[name]
            require(now[name] >= before, f"statistics(): {name} is {now[name]}, and was {before}")
        self._before = now

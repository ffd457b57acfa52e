"""A part of an image as an image: ``#offset=1M,length=512M``. The simplest layer.

Nothing is decoded: every request to the slice goes to the image below, at a shifted offset.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from lazyfs.core.device import Device, Identity, Priority, Statistics
from lazyfs.core.errors import ImageError, UsageError
from lazyfs.core.options import format_size, parse_size
from lazyfs.core.ranges import Span, clamp
from lazyfs.core.view import DeviceView
from lazyfs.formats.layer import Layer, Opening


class SliceDevice(DeviceView):
    """The bytes of ``window`` of the image ``below``. A Device."""

    def __init__(self, below: Device, window: Span) -> None:
        """``window``: bytes of ``below``, within it, and not empty."""
        super().__init__(below)
        self.window = window

    @property
    def identity(self) -> Identity:
        return replace(self._below.identity, size=self.window.length)

    async def read(self, offset: int, length: int) -> bytes:
        return await self._below.read(*self._shifted(offset, length))

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        await self._below.ensure(*self._shifted(offset, length), priority)

    def ready(self, offset: int, length: int) -> bool:
        return self._below.ready(*self._shifted(offset, length))

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._below.cached(*self._shifted(offset, length))

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return await self._below.zeros(*self._shifted(offset, length))

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        whole = self.window.length if length is None else length
        await self._below.wait_complete(*self._shifted(offset, whole))

    def statistics(self) -> Statistics:
        """Those of the image below, except ``size`` and ``cached``, which are the slice's own."""
        size = self.window.length
        cached = sum(length for length, here in self.cached(0, size) if here)
        return replace(self._below.statistics(), size=size, cached=cached)

    def _shifted(self, offset: int, length: int) -> tuple[int, int]:
        """Offset and length in the image below, clamped to the slice."""
        span = clamp(offset, length, self.window.length)
        return self.window.start + span.start, span.length


def window_of(wanted: Span, size: int) -> Span:
    """The window for ``wanted`` (from ``_parse``) in an image of ``size`` bytes.

    Raises ImageError if it is not within the image.
    """
    window = Span(wanted.start, wanted.stop or size)
    if not wanted.start < window.stop <= size:
        raise ImageError(
            f"the image has {size} bytes ({format_size(size)}), and the slice would reach from "
            f"{window.start} to {max(window.start, window.stop)}",
            "give an offset and a length within it",
        )
    return window


def _parse(words: Mapping[str, str]) -> Span:
    """The requested bytes; a stop of 0 means the end of the image. Raises UsageError."""
    start = parse_size(words.get("offset", "0"))
    if "length" not in words:
        return Span(start, 0)
    length = parse_size(words["length"])
    if not length:
        raise UsageError("a slice of length 0 shows nothing", "give another length, or none")
    return Span(start, start + length)


def _as_text(wanted: Span) -> str:
    if not wanted.stop:
        return f"offset={wanted.start}"
    return f"offset={wanted.start},length={wanted.length}"


def _named(name: str, wanted: Span) -> str:
    return f"{name}.{wanted.start}-{wanted.stop or 'end'}"


async def _open(below: Device, wanted: Span) -> Layer:
    window = window_of(wanted, below.identity.size)
    return Layer(_as_text(window), SliceDevice(below, window), window)


OPENING = Opening(("offset", "length"), _parse, _as_text, _named, _open)

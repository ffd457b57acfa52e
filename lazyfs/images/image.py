"""An opened image: its source, its cache, and everything on top of them.

From the bottom: source, cache, prefetcher, recorder, then any number of layers, each a Device on
top of a Device. Preloads, the fill, rates, budgets and profiles count bytes of the *source*;
readers see the *view*, which is the topmost layer.
"""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from lazyfs.cache.blockcache import BlockCache
from lazyfs.core.device import Device, Priority, Source
from lazyfs.core.ranges import Span
from lazyfs.formats.layer import Layer
from lazyfs.formats.slice import SliceDevice
from lazyfs.images import chain
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.recorder import Recorder


@dataclass(frozen=True)
class Image:
    """One opened image."""

    name: str
    """Its file name."""

    url: str
    """Its URL, with its chain, without secrets."""

    cache_key: str
    """The key of its source's cache."""

    source: Source
    cache: BlockCache
    prefetcher: Prefetcher
    recorder: Recorder

    layers: tuple[Layer, ...]
    """The lowest first."""

    mtime: float
    """Its modification time on the server, POSIX seconds; 0 if unknown."""

    data_file: Path | None
    """The file that contains all bytes of the source once they are complete; None without one."""

    catalog_file: Path | None
    """The file for the view's catalog; None without a cache on disk."""

    budget: int | None
    """Bytes that may be preloaded; None for no limit."""

    sidecar: Callable[[str, int], Awaitable[bytes | None]]
    """Fetches a sidecar, the file at the image's URL plus an ending, given a limit in bytes.

    None if there is none. Raises a SourceError.
    """

    @property
    def device(self) -> Device:
        """The view."""
        return self.layers[-1].device if self.layers else self.recorder

    @property
    def chain(self) -> str:
        """The layers, written as in a fragment; empty without layers."""
        return ",".join(layer.text for layer in self.layers)

    @property
    def view_id(self) -> str:
        """The unique id of the view among all views and images."""
        return chain.view_id(self.cache_key, [layer.text for layer in self.layers])

    @property
    def window(self) -> Span | None:
        """The range of the source that makes up the view; None if it is not a single range."""
        return chain.window_of(self.layers, self.cache.identity.size)

    @property
    def unrecorded(self) -> Device:
        """The view for internal reads, which are not recorded as uses of the image."""
        if not self.layers:
            return self.prefetcher
        window = self.window
        return self.device if window is None else SliceDevice(self.prefetcher, window)

    async def run(self) -> None:
        """Fetch in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.run)
            nursery.start_soon(self.cache.run)
            nursery.start_soon(self.recorder.run)

    async def fill(self) -> None:
        """Request all of the view in the background."""
        await self.device.ensure(0, self.device.identity.size, Priority.FILL)

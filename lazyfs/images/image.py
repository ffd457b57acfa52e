"""An image has an owner: it holds its source, its cache, and all that stands upon them.

From the bottom: source, cache, prefetcher, recorder, then any number of layers, each a Device on a
Device. Preloads, the fill, rates, budgets and profiles count in bytes of the *source*; readers see
the *view*, which is the topmost layer.
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
    """What its file is called."""

    url: str
    """Its URL, with its chain, and without secrets."""

    cache_key: str
    """The name of the cache of its source's bytes."""

    source: Source
    cache: BlockCache
    prefetcher: Prefetcher
    recorder: Recorder

    layers: tuple[Layer, ...]
    """The lowest first."""

    mtime: float
    """When it was changed on its server, POSIX seconds; 0 if the server does not say."""

    data_file: Path | None
    """The file that holds all of the source's bytes once they are complete; None without one."""

    catalog_file: Path | None
    """The file in which the view's catalog is remembered; None without a cache on disk."""

    budget: int | None
    """Bytes that may be preloaded; None for any number."""

    sidecar: Callable[[str, int], Awaitable[bytes | None]]
    """Fetches the file whose URL is the image's with this ending; at most so many bytes.

    None if there is none. Raises a SourceError.
    """

    @property
    def device(self) -> Device:
        """The view."""
        return self.layers[-1].device if self.layers else self.recorder

    @property
    def chain(self) -> str:
        """The layers as they stand in a fragment; empty for the image as it is."""
        return ",".join(layer.text for layer in self.layers)

    @property
    def view_id(self) -> str:
        """What tells the view from all other views and images."""
        return chain.view_id(self.cache_key, [layer.text for layer in self.layers])

    @property
    def window(self) -> Span | None:
        """The bytes of the source that the view is; None if it is not one part of them."""
        return chain.window_of(self.layers, self.cache.identity.size)

    @property
    def unrecorded(self) -> Device:
        """The view for those whose reads are no use of the image."""
        if not self.layers:
            return self.prefetcher
        window = self.window
        return self.device if window is None else SliceDevice(self.prefetcher, window)

    async def run(self) -> None:
        """Fetch what is wanted, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.source.run)
            nursery.start_soon(self.cache.run)
            nursery.start_soon(self.recorder.run)

    async def fill(self) -> None:
        """Have all of the view fetched in the background."""
        await self.device.ensure(0, self.device.identity.size, Priority.FILL)

"""Preloading: fetching ahead of readers the ranges that the user or a profile names.

Nothing here may fail a mount: a failed preload is logged once, and its data is fetched on demand.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import trio

from lazyfs.core.device import Device, Priority
from lazyfs.core.errors import ImageError, LazyfsError, ProfileError
from lazyfs.core.options import AUTO, PreloadOptions
from lazyfs.core.ranges import Span
from lazyfs.formats import squashfs
from lazyfs.formats.tree import Tree
from lazyfs.images.catalogs import tree_of
from lazyfs.images.image import Image
from lazyfs.prefetch import profile
from lazyfs.prefetch.files import load
from lazyfs.prefetch.preload import in_order_of_use
from lazyfs.prefetch.profile import Profile

log = logging.getLogger(__name__)

ENDING = ".lazyprofile"  # of a profile that is a sidecar of its image
LARGEST_TABLES = 16 << 20  # bytes that are fetched unasked
PATIENCE = 30.0  # seconds to wait for such a profile
_AT_A_TIME = 1000  # ranges requested between two checkpoints
_BOOT = ("isolinux/**", "boot/**", "efi/**", "EFI/**")


async def preload(image: Image, options: PreloadOptions) -> None:
    """Request everything that ``options`` name, the profile first. Never fails."""
    preloader = Preloader(image)
    try:
        if options.profile is not None:
            await preloader.replay(options.profile, options.any_version)
    except LazyfsError as error:
        log.warning("%s: the profile is not used: %s", image.url, error)
    try:
        if options.patterns:
            await preloader.look()
        for pattern in options.patterns:
            try:
                await preloader.preload(pattern)
            except ImageError as error:
                log.warning("%s: --preload %s: %s", image.url, pattern, error)
    except LazyfsError as error:
        log.warning("%s: nothing is preloaded: %s", image.url, error)
    except Exception:
        log.exception("%s: nothing more is preloaded", image.url)


async def preload_metadata(image: Image) -> None:
    """Once the image is used, ask for the tables of the filesystem that it is. Never fails.

    Every access to a file goes through them, a little here and a little there; at once they cost a
    round trip or two.
    """
    await image.prefetcher.used.wait()
    device = image.unrecorded
    try:
        # The bytes that came with the opening need no read, which would count as use.
        opening = b"" if image.layers else image.source.opening[: squashfs.SUPERBLOCK]
        superblock = opening or await device.read(0, squashfs.SUPERBLOCK)
        tables = squashfs.tables(superblock, device.identity.size)
    except LazyfsError:  # it is something else, or cannot be read: the readers will be told
        return
    if tables.length <= LARGEST_TABLES:
        await device.ensure(tables.start, tables.length, Priority.PRELOAD)
        log.debug("%s: preloading %d bytes of tables", image.url, tables.length)


class Preloader:
    """Requests parts of one image, until its budget is spent. ``asked_for``: bytes so far."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._device = image.unrecorded
        self._left = image.cache.identity.size if image.budget is None else image.budget
        self._tree: Tree | None = None
        self.asked_for = 0

    async def replay(self, file: Path, any_version: bool) -> None:
        """Request the ranges in a profile, in its order. Raises ProfileError or a SourceError.

        Profiles name ranges of the source, whatever the view.
        """
        found = await (self._sidecar() if file == AUTO else trio.to_thread.run_sync(load, file))
        if found is None:
            log.info("%s: there is no profile beside it", self._image.url)
            return
        if not any_version and not self._image.cache.identity.matches(found.identity):
            raise ProfileError(
                "it is of another version of the image",
                "record a new one, or give --profile-any",
            )
        spans = in_order_of_use(found.uses)
        await self._ask_for(self._image.prefetcher, spans, "the profile")

    async def look(self) -> Tree:
        """The tree in the image, read once. Raises a LazyfsError."""
        if self._tree is None:
            self._tree = await tree_of(self._device, self._image.catalog_file)
        return self._tree

    async def preload(self, pattern: str) -> None:
        """Request the files a pattern names. Raises ImageError if there are none; see ``look``."""
        spans = await _ranges(self._device, await self.look(), pattern)
        await self._ask_for(self._device, spans, pattern)

    async def _sidecar(self) -> Profile | None:
        """The profile beside the image on its server; None if there is none."""
        with trio.move_on_after(PATIENCE):
            content = await self._image.sidecar(ENDING, profile.LARGEST)
            if content is None:
                return None
            text = content.decode(errors="replace")
            return await trio.to_thread.run_sync(profile.parse, text)
        raise ProfileError(
            f"it did not come within {PATIENCE:g} seconds",
            "give one of your own: --profile FILE",
        )

    async def _ask_for(self, device: Device, spans: Iterable[Span], what: str) -> None:
        total = 0
        for number, span in enumerate(spans):
            if span.length > self._left:
                log.warning(
                    "%s: not all of %s is preloaded: the cache could not hold it",
                    self._image.url,
                    what,
                )
                break
            self._left -= span.length
            total += span.length
            await device.ensure(span.start, span.length, Priority.PRELOAD)
            if number % _AT_A_TIME == 0:
                await trio.lowlevel.checkpoint()
        self.asked_for += total
        log.info("%s: preloading %d bytes for %s", self._image.url, total, what)


async def _ranges(device: Device, tree: Tree, pattern: str) -> list[Span]:
    """The ranges that a pattern stands for, in disk order. Raises ImageError."""
    kind, colon, path = pattern.partition(":")
    if kind == "squashfs" and colon:
        return await _squashfs_tables(device, tree, path)
    if pattern == "@meta":
        await tree_of(device)  # reads all directories, through the cache
        return []
    if pattern == "@boot":
        images = (Span(b.offset, b.offset + b.length) for b in tree.volume.boot_images)
        return [*images, *tree.ranges(_matching_any(tree, _BOOT))]
    return tree.ranges(tree.glob(pattern))


def _matching_any(tree: Tree, patterns: Iterable[str]) -> list[str]:
    found = []
    for pattern in patterns:
        try:
            found += tree.glob(pattern)
        except ImageError:  # few images match all patterns
            continue
    return found


async def _squashfs_tables(device: Device, tree: Tree, path: str) -> list[Span]:
    found = []
    for name in tree.glob(path):
        extents = tree.extents(name)
        if len(extents) != 1:
            raise ImageError(
                f"{name} lies in several pieces", "preload all of it: leave out squashfs:"
            )
        (extent,) = extents
        superblock = await device.read(extent.offset, squashfs.SUPERBLOCK)
        tables = squashfs.tables(superblock, extent.length)
        found.append(Span(extent.offset + tables.start, extent.offset + tables.stop))
    return found

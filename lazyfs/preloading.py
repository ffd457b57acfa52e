"""Preloading: what the user, or a profile, says will be wanted is fetched ahead of the readers.

Nothing here may fail a mount: what cannot be preloaded is said once, and read when it is read.
"""

import logging
from collections.abc import Iterable
from pathlib import Path

import trio

from lazyfs.catalogs import tree_of
from lazyfs.device import Device, Priority
from lazyfs.errors import ImageError, LazyfsError, ProfileError
from lazyfs.formats import squashfs
from lazyfs.iso.tree import Tree
from lazyfs.options import AUTO, PreloadOptions
from lazyfs.prefetch import profile
from lazyfs.prefetch.files import load
from lazyfs.prefetch.preload import in_order_of_use
from lazyfs.prefetch.profile import LARGEST
from lazyfs.ranges import Span
from lazyfs.stack import Image

log = logging.getLogger(__name__)

_BOOT = ("isolinux/**", "boot/**", "efi/**", "EFI/**")


async def preload(image: Image, options: PreloadOptions) -> None:
    """Ask for all that ``options`` name, profile first. Never fails."""
    try:
        if options.profile is not None:
            await _replay(image, options.profile, options.any_version)
    except LazyfsError as error:
        log.warning("%s: the profile is not used: %s", image.url, error)
    try:
        if options.patterns:
            await _preload_patterns(image, options.patterns)
    except LazyfsError as error:
        log.warning("%s: nothing is preloaded: %s", image.url, error)


async def _replay(image: Image, file: Path, any_version: bool) -> None:
    if file == AUTO:
        content = await image.beside(".lazyprofile", LARGEST)
        if content is None:
            log.info("%s: there is no profile beside it", image.url)
            return
        found = profile.parse(content.decode(errors="replace"))
    else:
        found = await trio.to_thread.run_sync(load, file)
    if not any_version and not image.device.identity.matches(found.identity):
        raise ProfileError(
            "it is of another version of the image", "record a new one, or give --profile-any"
        )
    spans = list(in_order_of_use(found.uses))
    await _ask_for(image.device, spans)
    log.info("%s: preloading %d ranges, %d bytes", image.url, len(spans), found.length)


async def _preload_patterns(image: Image, patterns: Iterable[str]) -> None:
    tree = await tree_of(image.device, image.notebook)
    for pattern in patterns:
        try:
            spans = await _ranges(image.device, tree, pattern)
        except ImageError as error:
            log.warning("%s: --preload %s: %s", image.url, pattern, error)
            continue
        await _ask_for(image.device, spans)
        total = sum(span.length for span in spans)
        log.info("%s: preloading %d bytes for %s", image.url, total, pattern)


async def _ranges(device: Device, tree: Tree, pattern: str) -> list[Span]:
    """The bytes that a pattern stands for, in disk order. Raises ImageError."""
    kind, colon, path = pattern.partition(":")
    if kind == "squashfs" and colon:
        return await _squashfs_tables(device, tree, path)
    if pattern == "@meta":
        await tree_of(device)  # which reads all directories, through the cache
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
        except ImageError:  # few images have all of them
            continue
    return found


async def _squashfs_tables(device: Device, tree: Tree, path: str) -> list[Span]:
    found = []
    for name in tree.glob(path):
        extents = tree.extents(name)
        if len(extents) != 1:
            raise ImageError(f"{name} lies in several pieces")
        (extent,) = extents
        superblock = await device.read(extent.offset, squashfs.SUPERBLOCK)
        tables = squashfs.tables(superblock, extent.length)
        found.append(Span(extent.offset + tables.start, extent.offset + tables.stop))
    return found


async def _ask_for(device: Device, spans: Iterable[Span]) -> None:
    for span in spans:
        await device.ensure(span.start, span.length, Priority.PRELOAD)

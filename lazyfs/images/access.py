"""An image for a command that looks into it: a URL, read through the cache, or a local file.

If a mount of the same image is running, it owns the cache, so its file is read instead.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from lazyfs.core import address
from lazyfs.core.device import Device, Identity
from lazyfs.core.errors import CacheBusy
from lazyfs.core.options import ImageOptions, StackOptions
from lazyfs.formats.layer import Layer
from lazyfs.images import chain
from lazyfs.images.chain import Step
from lazyfs.images.open import catalog_file_of, open_stack
from lazyfs.images.partitions import the_only_one
from lazyfs.sources.file import FileDevice
from lazyfs.system.eventloop import run_to_the_end, running
from lazyfs.system.mountinfo import (
    IDENTITY_ATTRIBUTE,
    IMAGE_IN_A_TREE,
    KIND,
    VIEW_ATTRIBUTE,
    Mounted,
    all_mounts,
)

T = TypeVar("T")


@dataclass(frozen=True)
class OpenImage:
    """An image that can be read.

    ``name``: its URL or path with the chain, without secrets.
    ``device``: the view.
    ``mtime``: POSIX seconds.
    ``catalog_file``: the file for the view's catalog; None for none.
    ``layers``: written as in a fragment, the lowest first.
    """

    name: str
    device: Device
    mtime: float
    catalog_file: Path | None
    layers: tuple[str, ...]


def with_image(where: str, options: StackOptions, use: Callable[[OpenImage], Awaitable[T]]) -> T:
    """Call ``use`` with the image at ``where``, a path if it is no URL; returns its result.

    ``options``: for that one image. Raises a LazyfsError.
    """

    async def run() -> T:
        async with _opened(where, options) as image:
            return await use(image)

    return run_to_the_end(run)


@asynccontextmanager
async def _opened(where: str, options: StackOptions) -> AsyncIterator[OpenImage]:
    (wanted,) = options.images
    async with contextlib.AsyncExitStack() as closing:
        if "://" not in where:
            opened = _opened_path(where, wanted)
        elif (mounted := _opened_mount(options)) is not None:
            opened = mounted
        else:
            opened = _opened_url(options)
        try:
            image = await closing.enter_async_context(opened)
        except CacheBusy:  # used by another command: waiting for the cache is not worth it
            alone = replace(options, cache=replace(options.cache, memory_only=True))
            image = await closing.enter_async_context(_opened_url(alone))
        yield image


@asynccontextmanager
async def _opened_url(options: StackOptions) -> AsyncIterator[OpenImage]:
    async with open_stack(options) as stack, running(stack.run):
        (image,) = stack.images
        layers = tuple(layer.text for layer in image.layers)
        yield OpenImage(image.url, image.device, image.mtime, image.catalog_file, layers)


def _opened_path(where: str, wanted: ImageOptions) -> AbstractAsyncContextManager[OpenImage]:
    """A local file. Layers follow the last ``#`` of the path, unless a file has that very name."""
    path, hash_mark, fragment = where.rpartition("#")
    if not hash_mark or os.path.exists(where):
        path, fragment = where, ""
    return _opened_file(Path(path), path, chain.parse(fragment), wanted, None)


def _opened_mount(options: StackOptions) -> AbstractAsyncContextManager[OpenImage] | None:
    """The view, or else the image, in a running mount; None without one."""
    (wanted,) = options.images
    url, fragment = address.split_fragment(wanted.url)
    steps = chain.parse(fragment)
    key, name = address.cache_key(url), address.shown(url)
    texts = [step.text for step in steps]
    file = _mounted_file(chain.view_id(key, texts))
    if file is not None and steps:
        digest = chain.digest_of(chain.view_id(key, texts))
        catalog = catalog_file_of(options.cache, url, digest)
        plain = replace(wanted, choose_partition=False)
        return _opened_file(file, f"{name}#{fragment}", [], plain, lambda _: catalog)
    if file is None and steps:
        file = _mounted_file(key)
    if file is None:
        return None

    def catalog_of(layers: Sequence[Layer]) -> Path | None:
        digest = chain.digest_of(chain.view_id(key, [layer.text for layer in layers]))
        return catalog_file_of(options.cache, url, digest)

    return _opened_file(file, name, steps, wanted, catalog_of)


@asynccontextmanager
async def _opened_file(
    path: Path,
    name: str,
    steps: Sequence[Step],
    wanted: ImageOptions,
    catalog_of: Callable[[Sequence[Layer]], Path | None] | None,
) -> AsyncIterator[OpenImage]:
    """A file, with layers on top.

    ``catalog_of``: the catalog file for these layers; None for a file outside a lazyfs mount.
    """
    device = FileDevice(path, _identity_of(path) if catalog_of else None)
    try:
        if wanted.choose_partition and not steps:
            steps = await the_only_one(device, name)
        layers = await chain.open_chain(device, steps, name)
        texts = tuple(layer.text for layer in layers)
        shown = f"{name}#{','.join(texts)}" if texts else name
        catalog = catalog_of(layers) if catalog_of else None
        top = layers[-1].device if layers else device
        yield OpenImage(shown, top, device.modified, catalog, texts)
    finally:
        await device.aclose()


def _identity_of(path: Path) -> Identity | None:
    """The identity of the image, from its file in a mount; None if unknown."""
    try:
        return Identity(**json.loads(os.getxattr(path, IDENTITY_ATTRIBUTE)))
    except (OSError, ValueError, TypeError):  # the mount has ended, or is another lazyfs's
        return None


def _mounted_file(view: str) -> Path | None:
    """The file that shows the view with this id, in a running mount of root or our own."""
    for mounted in all_mounts():
        if mounted.kind == KIND and mounted.user in (0, os.geteuid()):
            for path in _files_of(mounted):
                with contextlib.suppress(OSError):  # the daemon is dead
                    if os.getxattr(path, VIEW_ATTRIBUTE) == view.encode():
                        return path
    return None


def _files_of(mounted: Mounted) -> list[Path]:
    place = mounted.mountpoint
    try:
        return [*place.iterdir(), place / IMAGE_IN_A_TREE] if place.is_dir() else [place]
    except OSError:  # a dead mount, or another user's
        return []

"""An image for a command that looks into it: by its URL, through the cache; or a local file.

When a mount of the same image is running, it owns the cache, and is read instead.
"""

import contextlib
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import trio

from lazyfs.core import address
from lazyfs.core.device import Device, Identity
from lazyfs.core.errors import CacheBusy
from lazyfs.core.options import StackOptions
from lazyfs.images.open import notebook_of, open_stack
from lazyfs.sources.file import FileDevice
from lazyfs.system.eventloop import run_to_the_end
from lazyfs.system.mountinfo import (
    CACHE_ATTRIBUTE,
    IDENTITY_ATTRIBUTE,
    IMAGE_IN_A_TREE,
    KIND,
    Mounted,
    all_mounts,
)

T = TypeVar("T")


@dataclass(frozen=True)
class OpenImage:
    """An image that can be read.

    ``notebook``: the file in which its catalog is remembered, None for nowhere. ``mtime``: POSIX
    seconds.
    """

    name: str  # without secrets
    device: Device
    mtime: float
    notebook: Path | None


def with_image(where: str, options: StackOptions, use: Callable[[OpenImage], Awaitable[T]]) -> T:
    """Call ``use`` with the image at ``where``, a path if it is no URL; returns what it returns.

    ``options``: of that one URL; of no image for a path. Raises a LazyfsError.
    """

    failure: Exception | None = None

    async def run() -> T | None:
        nonlocal failure
        async with _opened(where, options) as image:
            try:
                return await use(image)
            except Exception as error:  # a nursery that it left would wrap it up
                failure = error
        return None

    result = run_to_the_end(run)
    if failure is not None:
        raise failure
    return result  # type: ignore[return-value]  # None only after a failure


@asynccontextmanager
async def _opened(where: str, options: StackOptions) -> AsyncIterator[OpenImage]:
    async with contextlib.AsyncExitStack() as closing:
        if not options.images:
            yield await closing.enter_async_context(_opened_file(Path(where), where, None))
            return
        url = options.images[0].url
        file = _mounted_file(address.cache_key(url))
        if file is not None:
            notebook = notebook_of(options.cache, url)
            opened = _opened_file(file, address.shown(url), notebook)
            yield await closing.enter_async_context(opened)
            return
        try:
            image = await closing.enter_async_context(_opened_url(options))
        except CacheBusy:  # another command is looking: its cache is not worth waiting for
            alone = replace(options, cache=replace(options.cache, memory_only=True))
            image = await closing.enter_async_context(_opened_url(alone))
        yield image


@asynccontextmanager
async def _opened_url(options: StackOptions) -> AsyncIterator[OpenImage]:
    async with open_stack(options) as stack, trio.open_nursery() as nursery:
        nursery.start_soon(stack.run)
        (image,) = stack.images
        yield OpenImage(image.url, image.device, image.mtime, image.notebook)
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def _opened_file(path: Path, name: str, notebook: Path | None) -> AsyncIterator[OpenImage]:
    device = FileDevice(path, _identity_of(path) if notebook else None)
    try:
        yield OpenImage(name, device, device.modified, notebook)
    finally:
        await device.aclose()


def _identity_of(path: Path) -> Identity | None:
    """What a mount says that pins the image in its file."""
    try:
        return Identity(**json.loads(os.getxattr(path, IDENTITY_ATTRIBUTE)))
    except (OSError, ValueError, TypeError):  # the mount has ended, or is another lazyfs's
        return None


def _mounted_file(key: str) -> Path | None:
    """The file of a running mount, root's or our own, that stands on the cache of this name."""
    for mounted in all_mounts():
        if mounted.kind == KIND and mounted.user in (0, os.geteuid()):
            for path in _files_of(mounted):
                with contextlib.suppress(OSError):  # a mount whose daemon has died
                    if os.getxattr(path, CACHE_ATTRIBUTE) == key.encode():
                        return path
    return None


def _files_of(mounted: Mounted) -> list[Path]:
    place = mounted.mountpoint
    try:
        return [*place.iterdir(), place / IMAGE_IN_A_TREE] if place.is_dir() else [place]
    except OSError:  # it is dead, or somebody else's
        return []

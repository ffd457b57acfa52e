"""The catalog of an image: read through its Device, and saved beside its cache.

Reading it costs several requests, so it is saved, with the identity of its image. A saved catalog
of another version is ignored.
"""

import dataclasses
import json
import logging
import os
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, cast

import trio

from lazyfs.core.device import Device, Identity
from lazyfs.core.errors import ImageError
from lazyfs.formats import savedtree
from lazyfs.formats.iso.catalog import read_tree
from lazyfs.formats.tree import Tree
from lazyfs.images.devicefile import DeviceFile
from lazyfs.system.atomicfile import write_own
from lazyfs.system.ownfiles import open_own

log = logging.getLogger(__name__)

_LARGEST = 256 << 20  # bytes in a catalog file


async def tree_of(device: Device, catalog_file: Path | None = None) -> Tree:
    """The tree of the image in ``device``. Raises ImageError, or the Device's error."""
    return await _known_tree(device, catalog_file) or await _whole_tree(device, catalog_file)


async def tree_with(device: Device, catalog_file: Path | None, paths: Collection[str]) -> Tree:
    """A tree with these regular files, as far as the image has them; the rest may be missing.

    Costs a fraction of the time and the bytes of ``tree_of``, and raises the same errors.
    """
    known = await _known_tree(device, catalog_file)
    if known is not None:
        return known
    part = await _read_tree(device, paths)
    try:
        for path in paths:
            part.extents(path)
    except ImageError:  # a link to a part left out, or a missing file: the whole tree tells which
        return await _whole_tree(device, catalog_file)
    return part


@contextmanager
def naming(image: str) -> Iterator[None]:
    """Prefix an ImageError from within with the name of ``image``."""
    try:
        yield
    except ImageError as error:
        raise error.about(image) from error


async def _known_tree(device: Device, catalog_file: Path | None) -> Tree | None:
    if catalog_file is None or not device.identity.pinned:
        return None
    return await trio.to_thread.run_sync(_remembered, catalog_file, device.identity)


async def _whole_tree(device: Device, catalog_file: Path | None) -> Tree:
    tree = await _read_tree(device)
    if catalog_file is not None and device.identity.pinned:
        await trio.to_thread.run_sync(_remember, catalog_file, device.identity, tree)
    return tree


async def _read_tree(device: Device, only: Collection[str] | None = None) -> Tree:
    file = cast(BinaryIO, DeviceFile(device))
    return await trio.to_thread.run_sync(read_tree, file, only)


def _remembered(catalog_file: Path, identity: Identity) -> Tree | None:
    """The saved tree of exactly this version; None if there is none."""
    try:
        with open(open_own(catalog_file, os.O_RDONLY), "rb") as file:
            if file.readline(4096) != _title(identity):
                return None
            return savedtree.load(file.read(_LARGEST))
    except FileNotFoundError:
        return None
    except (OSError, ImageError) as error:
        log.info("%s: the remembered catalog cannot be used: %s", catalog_file, error)
        return None


def _remember(catalog_file: Path, identity: Identity, tree: Tree) -> None:
    """Save the tree, atomically. A failure is logged only: the tree is then read again later."""
    try:
        write_own(catalog_file, _title(identity) + savedtree.dump(tree))
    except OSError as error:
        log.info("%s cannot be written: %s", catalog_file, error.strerror)


def _title(identity: Identity) -> bytes:
    return json.dumps(dataclasses.asdict(identity)).encode() + b"\n"

"""Damaged and hostile images: what comes out is a sound tree or an ImageError, soon.

The short form tries some hundreds; the long one, with LAZYFS_CAMPAIGN=long, ten thousand. Each is
made from its number alone, which a failure names.
"""

import io
import os
import random
import resource
import time
from collections.abc import Iterator

import pytest
from real.images import PACKAGED, Images, cache_directory

from lazyfs.core.errors import ImageError
from lazyfs.formats.iso.catalog import read_tree
from lazyfs.formats.savedtree import dump, load
from lazyfs.formats.tree import HOLE, Kind, Node, Tree
from lazyfs.formats.treebuilder import MAX_DEPTH, MAX_NAME, MAX_NODES, MAX_TARGET

from .conftest import Made
from .damage import Sound

IS_LONG = os.environ.get("LAZYFS_CAMPAIGN") == "long"
COUNT = 10_000 if IS_LONG else 300
LIMIT = 5.0  # seconds for one image
MEMORY_LIMIT = 400 << 20  # bytes that all images together may add to the process

_FLAVOURS = (
    "xorriso-rr",
    "xorriso-joliet",
    "xorriso-plain",
    "genisoimage-rr",
    "genisoimage-rr-joliet-udf",
    "genisoimage-udf",
)


@pytest.fixture(scope="module")
def sound(made: Made) -> list[Sound]:
    """Images of all flavours, and those of packages."""
    images = [made(flavour)[0] for flavour in _FLAVOURS]
    store = Images(cache_directory())
    members = [(p, m) for p, members in PACKAGED.items() for m in members if m.endswith(".iso")]
    images += [store.packaged(package, member) for package, member in members]
    return [Sound(image.read_bytes()) for image in images]


def test_what_is_read_of_damaged_images_is_sound_or_an_error(sound: list[Sound]) -> None:
    before = peak_memory()
    refused = 0
    for number in range(COUNT):
        rng = random.Random(number)
        image = sound[number % len(sound)].damaged(rng)
        started = time.monotonic()
        try:
            tree = read_tree(io.BytesIO(image))
        except ImageError:
            refused += 1
        else:
            faults = list(faults_of(tree, len(image)))
            assert not faults, f"image {number}: {faults[:5]}"
        took = time.monotonic() - started
        assert took < LIMIT, f"image {number} took {took:.1f} seconds"
    assert refused < COUNT / 2  # one bad place does not make an image unreadable
    assert peak_memory() - before < MEMORY_LIMIT


def test_damaged_trees_are_refused_when_they_are_loaded(sound: list[Sound]) -> None:
    saved = dump(read_tree(io.BytesIO(sound[0].image)))
    for number in range(COUNT):
        rng = random.Random(number)
        data = bytearray(saved)
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        if rng.random() < 0.3:
            del data[rng.randrange(len(data)) :]
        with pytest.raises(ImageError, match="damaged"):
            load(bytes(data))


def faults_of(tree: Tree, size: int) -> Iterator[str]:
    """What no tree may have, whatever the image says."""
    count = 0
    for path, node in tree.walk():
        count += 1
        if path:
            yield from (f"{path!r} has {fault}" for fault in faults_of_node(path, node, size))
    if count > MAX_NODES + 1:
        yield f"{count} nodes"
    if load(dump(tree)) != tree:
        yield "it is not what is saved of it"


def faults_of_node(path: str, node: Node, size: int) -> Iterator[str]:
    name = path.split("/")[-1]
    if name != node.name or name in ("", ".", "..") or "\0" in name or len(name) > MAX_NAME:
        yield "such a name"
    if path.count("/") >= MAX_DEPTH:
        yield "such a depth"
    if len(node.target.encode("utf-8", "surrogateescape")) > MAX_TARGET:
        yield "such a target"
    if node.children and node.kind is not Kind.DIRECTORY:
        yield "children"
    if node.kind is Kind.FILE and not (node.problem or node.compressed):
        if not all(inside(*extent, size) for extent in node.extents):
            yield "such extents"
        if sum(extent.length for extent in node.extents) != node.size:
            yield "such a size"


def inside(offset: int, length: int, size: int) -> bool:
    return length >= 0 and (offset == HOLE or 0 <= offset <= size - length)


def peak_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10

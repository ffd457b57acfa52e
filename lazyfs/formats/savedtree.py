"""Serialising a tree, to be kept beside the cache. Pure.

::

    "lazyfs tree 1\\n"   the format
    16 bytes            BLAKE2b of what follows
    zlib                JSON: [namespace, volume, notes, nodes]

``nodes`` has the root first, and each node after its directory, which it refers to by number.
Loading applies the same checks as reading an image: write access to the cache allows changing a
tree, and no more.
"""

import hashlib
import json
import zlib
from collections import deque
from typing import Any

from lazyfs.core.errors import ImageError
from lazyfs.formats.tree import BootImage, Extent, Kind, Node, Tree, Volume
from lazyfs.formats.treebuilder import Builder

_FORMAT = b"lazyfs tree 1\n"
_DIGEST = 16
_MAX_JSON = 256 << 20  # bytes; half a million nodes take about 60


def dump(tree: Tree) -> bytes:
    content = [tree.namespace, tree.volume, tree.notes, _rows(tree.root)]
    packed = zlib.compress(json.dumps(content, separators=(",", ":")).encode())
    return _FORMAT + _digest(packed) + packed


def load(data: bytes) -> Tree:
    """Load the tree from ``data``. Raises ImageError if ``dump`` did not write it."""
    body = data[len(_FORMAT) + _DIGEST :]
    if data != _FORMAT + _digest(body) + body:
        raise ImageError("the remembered catalog is of another version, or damaged")
    try:
        return _tree(json.loads(_unpacked(body)))
    except (ValueError, TypeError, LookupError, RecursionError, zlib.error) as error:
        raise ImageError(f"the remembered catalog makes no sense: {error}") from error


def _digest(body: bytes) -> bytes:
    return hashlib.blake2b(body, digest_size=_DIGEST).digest()


def _unpacked(body: bytes) -> bytes:
    unpacker = zlib.decompressobj()
    content = unpacker.decompress(body, _MAX_JSON)
    if not unpacker.eof:
        raise ValueError("it is too large or cut short")
    return content


def _rows(root: Node) -> list[list[Any]]:
    """All nodes, level by level: the number of the directory, and the node's fields."""
    rows = [[0, *_fields(root)]]
    waiting = deque([(0, root)])
    while waiting:
        number, directory = waiting.popleft()
        for child in directory.children.values():
            if child.kind is Kind.DIRECTORY:
                waiting.append((len(rows), child))
            rows.append([number, *_fields(child)])
    return rows


def _tree(content: Any) -> Tree:
    namespace, volume, notes, rows = content
    builder = Builder(_volume(*volume))
    root = builder.restate(None, builder.root, _node(*rows[0][1:]))
    directories = {0: (root, 0)}
    for number, row in enumerate(rows[1:], start=1):
        directory, depth = directories[row[0]]
        added = builder.add(directory, _node(*row[1:]), depth + 1)
        if added is not None and added.kind is Kind.DIRECTORY:
            directories[number] = added, depth + 1
    return builder.tree(_text(namespace))._replace(notes=tuple(_text(note) for note in notes))


def _fields(node: Node) -> list[Any]:
    """All fields of a node except its children, in the order of ``_node``'s parameters."""
    numbers = [node.mode, node.uid, node.gid, node.nlink, node.mtime, node.size]
    texts = [node.name, node.kind.value, node.target, node.compressed, node.problem]
    return [texts, numbers, node.device, node.extents]


def _node(texts: Any, numbers: Any, device: Any, extents: Any) -> Node:
    name, kind, target, compressed, problem = map(_text, texts)
    mode, uid, gid, nlink, mtime, size = map(_number, numbers)
    major, minor = map(_number, device)
    return Node(
        name,
        Kind(kind),
        mode,
        uid,
        gid,
        nlink,
        mtime,
        size,
        tuple(Extent(_number(offset), _number(length)) for offset, length in extents),
        target,
        (major, minor),
        compressed,
        problem,
    )


def _volume(label: Any, declared: Any, size: Any, mbr: Any, gpt: Any, images: Any) -> Volume:
    found = tuple(
        BootImage(_text(platform), bool(able), _text(emulation), _number(offset), _number(length))
        for platform, able, emulation, offset, length in images
    )
    return Volume(_text(label), _number(declared), _number(size), bool(mbr), bool(gpt), found)


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a text is none")
    value.encode("utf-8", "surrogateescape")  # raises ValueError for characters invalid in names
    return value


def _number(value: Any) -> int:
    if type(value) is not int:
        raise TypeError("a number is none")
    return value

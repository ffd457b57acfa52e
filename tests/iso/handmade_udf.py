"""UDF images structure by structure: what few programs write."""

import struct
from collections.abc import Mapping

from lazyfs.formats.iso.udf import BLOCK

from .damage import sealed

PARTITION = 260  # the block that the partition begins at
ROOT = 2  # the block, in the partition, of the root directory's file entry
NOON = struct.pack("<HhBBBBBxxx", 0x1000 | 60, 2000, 6, 15, 13, 0, 0)  # an hour east of Greenwich

SHORT, LONG, EXTENDED, EMBEDDED = range(4)
DIRECTORY, FILE, FIFO, LINK = 4, 5, 9, 12
RECORDED, ALLOCATED, HOLE, CONTINUED = (kind << 30 for kind in range(4))


def structure(tag: int, content: bytes, size: int | None = None) -> bytes:
    """A structure with its tag; ``content`` is what follows that."""
    block = bytearray(struct.pack("<HHBBHHHL", tag, 3, 0, 0, 0, 0, len(content), 0) + content)
    sealed(block)
    return bytes(block) if size is None else bytes(block.ljust(size, b"\0"))


def long_ad(length: int, block: int, partition: int = 0) -> bytes:
    return struct.pack("<LLH6x", length, block, partition)


def short_ad(length: int, block: int) -> bytes:
    return struct.pack("<LL", length, block)


def name_of(text: str) -> bytes:
    """A name behind the byte that says how it is written."""
    try:
        return b"\x08" + text.encode("latin-1")
    except UnicodeEncodeError:
        return b"\x10" + text.encode("utf-16-be")


def identifier(name: str, block: int, characteristics: int = 0, partition: int = 0) -> bytes:
    """An entry of a directory."""
    text = name_of(name) if name else b""
    fixed = struct.pack("<HBB", 1, characteristics, len(text))
    content = fixed + long_ad(BLOCK, block, partition) + bytes(2) + text
    return structure(257, content + bytes(-(16 + len(content)) % 4))


def file_entry(
    kind: int,
    size: int,
    described: bytes,
    *,
    how: int = SHORT,
    flags: int = 0,
    permissions: int = 0b11111_10101_00001,
    owner: tuple[int, int] = (1000, 1001),
    nlink: int = 1,
    is_extended: bool = False,
    attributes: bytes = b"",
) -> bytes:
    """A file entry; ``described``: the list of its extents, or its content itself."""
    icb = struct.pack("<LHHHBB6xH", 0, 4, 0, 1, 0, kind, how | flags)
    content = icb + struct.pack("<LLLHBBL", *owner, permissions, nlink, 0, 0, 0)
    content += struct.pack("<Q", size)
    if is_extended:
        content += struct.pack("<QQ", size, 0) + bytes(12) + NOON + bytes(24)
        content += struct.pack("<L4x16x16x32xQ", 1, 0)
    else:
        content += struct.pack("<Q", 0) + bytes(12) + NOON + bytes(12)
        content += struct.pack("<L16x32xQ", 1, 0)
    content += struct.pack("<LL", len(attributes), len(described)) + attributes + described
    return structure(266 if is_extended else 261, content, BLOCK)


def image(
    blocks: Mapping[int, bytes],
    *,
    count: int = 100,
    maps: bytes = b"\1\6\1\0\0\0",
    block_size: int = BLOCK,
    main: bool = True,
) -> bytes:
    """An image of UDF alone. ``blocks``: what is where in the partition, of ``count`` blocks.

    ``main``: whether the main sequence of volume descriptors is sound; the reserve one is.
    """
    data = bytearray((PARTITION + count) * BLOCK)

    def put(block: int, content: bytes) -> None:
        data[block * BLOCK : block * BLOCK + len(content)] = content

    for number, mark in enumerate((b"BEA01", b"NSR02", b"TEA01")):
        put(16 + number, b"\0" + mark + b"\1")
    for start in (32, 48):
        if start == 48 or main:
            put(start, _partition(count))
            put(start + 1, _logical_volume(maps, block_size))
            put(start + 2, structure(8, bytes(496)))
    put(256, structure(2, struct.pack("<LLLL", 3 * BLOCK, 32, 3 * BLOCK, 48) + bytes(480)))
    put(PARTITION, structure(256, bytes(384) + long_ad(BLOCK, ROOT) + bytes(96)))
    for block, content in blocks.items():
        put(PARTITION + block, content)
    return bytes(data)


def _partition(count: int) -> bytes:
    content = bytearray(496)
    struct.pack_into("<LL", content, 188 - 16, PARTITION, count)
    return structure(5, bytes(content))


def _logical_volume(maps: bytes, block_size: int) -> bytes:
    content = bytearray(496)
    label = name_of("UDF label")
    content[84 - 16 : 84 - 16 + len(label)] = label
    content[211 - 16] = len(label)
    struct.pack_into("<L", content, 212 - 16, block_size)
    content[248 - 16 : 264 - 16] = long_ad(BLOCK, 0)
    struct.pack_into("<LL", content, 264 - 16, len(maps), 1)
    content[440 - 16 : 440 - 16 + len(maps)] = maps
    return structure(6, bytes(content))

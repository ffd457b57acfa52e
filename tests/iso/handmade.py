"""ISO 9660 images record by record: what no program would write."""

import struct
from collections.abc import Mapping

from lazyfs.formats.iso.volume import SECTOR

ROOT = 18  # the block of the root directory
NOON = bytes((100, 6, 15, 12, 0, 0, 0))  # 2000-06-15 12:00, in UTC

OWN, PARENT = b"\0", b"\1"
DIRECTORY, ASSOCIATED, CONTINUED = 0x02, 0x04, 0x80


def both(number: int) -> bytes:
    """A number of four bytes in both byte orders."""
    return struct.pack("<L", number) + struct.pack(">L", number)


def record(
    identifier: bytes,
    block: int = 0,
    length: int = 0,
    *,
    flags: int = 0,
    system_use: bytes = b"",
    time: bytes = NOON,
    attributes: int = 0,
    interleave: tuple[int, int] = (0, 0),
) -> bytes:
    """A directory record; ``system_use`` is what Rock Ridge has in it."""
    name = identifier + bytes(1 - len(identifier) % 2)
    fixed = both(block) + both(length) + time + bytes((flags, *interleave)) + b"\1\0\0\1"
    body = bytes((attributes,)) + fixed + bytes((len(identifier),)) + name + system_use
    return bytes((len(body) + 1,)) + body


def entry(signature: bytes, content: bytes) -> bytes:
    """An entry of a system use area."""
    return signature + bytes((4 + len(content), 1)) + content


def posix(mode: int, name: str = "", nlink: int = 1, uid: int = 0, gid: int = 0) -> bytes:
    """The entries that most records of Rock Ridge have."""
    attributes = entry(b"PX", both(mode) + both(nlink) + both(uid) + both(gid))
    return attributes + (entry(b"NM", b"\0" + name.encode()) if name else b"")


SUSP = entry(b"SP", b"\xbe\xef\0")  # in the root's own record: the image has Rock Ridge


def image(
    directories: Mapping[int, list[bytes]],
    *,
    blocks: Mapping[int, bytes] | None = None,
    count: int = 64,
    lengths: Mapping[int, int] | None = None,
    root_use: bytes = b"",
) -> bytes:
    """An image of ``count`` blocks with these directories, by the blocks that they begin at.

    Each gets its own and its parent's record, and fills up blocks as needed. ``blocks``: other
    content. ``lengths``: what the own record of a directory says, where it is not a block.
    """
    data = bytearray(count * SECTOR)
    lengths = lengths or {}
    for block, records in directories.items():
        use = root_use if block == ROOT else b""
        size = lengths.get(block, SECTOR)
        own = record(OWN, block, size, flags=DIRECTORY, system_use=use)
        filled = b""
        for one in [own, record(PARENT, ROOT, SECTOR, flags=DIRECTORY), *records]:
            if len(filled) % SECTOR + len(one) > SECTOR:
                filled += bytes(-len(filled) % SECTOR)
            filled += one
        data[block * SECTOR : block * SECTOR + len(filled)] = filled
    for block, content in (blocks or {}).items():
        data[block * SECTOR : block * SECTOR + len(content)] = content
    root = record(OWN, ROOT, lengths.get(ROOT, SECTOR), flags=DIRECTORY)
    data[16 * SECTOR : 17 * SECTOR] = _primary(count, root)
    data[17 * SECTOR : 17 * SECTOR + 7] = b"\xffCD001\1"
    return bytes(data)


def _primary(count: int, root: bytes) -> bytes:
    descriptor = bytearray(SECTOR)
    descriptor[0:7] = b"\1CD001\1"
    descriptor[40:72] = b"HANDMADE".ljust(32)
    descriptor[80:88] = both(count)
    descriptor[128:132] = b"\0\x08\x08\0"  # blocks of 2048 bytes
    descriptor[156:190] = root
    return bytes(descriptor)

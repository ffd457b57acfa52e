"""The structures of UDF (ECMA-167, parts 3 and 4; OSTA UDF 2.01) for directory trees. Pure.

Each begins with a tag, whose checksum and CRC are verified, so that other data are not mistaken for
it. Byte positions are those of the standard.
"""

import binascii
import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

from lazyfs.core.errors import ImageError
from lazyfs.formats.tree import HOLE, LET_THE_KERNEL, Extent, Kind

BLOCK = 2048  # bytes: the logical block of all optical media, and of images that are also ISO 9660

_ANCHOR, _PARTITION, _LOGICAL_VOLUME, _TERMINATOR = 2, 5, 6, 8
_FILE_SET, _FILE_IDENTIFIER, _FILE_ENTRY, _EXTENDED_FILE_ENTRY = 256, 257, 261, 266

_DELETED, _PARENT = 0x04, 0x08  # characteristics of a file identifier
_EIGHT_BITS, _SIXTEEN_BITS = 8, 16  # the encoding of a name's characters
_KINDS = {
    4: Kind.DIRECTORY,
    5: Kind.FILE,
    6: Kind.BLOCK_DEVICE,
    7: Kind.CHARACTER_DEVICE,
    9: Kind.FIFO,
    10: Kind.SOCKET,
    12: Kind.SYMLINK,
    249: Kind.FILE,  # real-time data
}
_EMBEDDED = 3  # the content is stored in place of the list of extents
_DESCRIPTORS = {0: struct.Struct("<LL"), 1: struct.Struct("<LLH6x")}  # short and long ones
_RECORDED, _CONTINUATION = 0, 3  # kinds of extents; the others are holes
_NOBODY = 0xFFFFFFFF


class Address(NamedTuple):
    """A block of a partition. ``partition``: its index in the volume's map."""

    block: int
    partition: int


class Sequence(NamedTuple):
    """A volume descriptor sequence, which an anchor points to. In bytes of the image."""

    offset: int
    length: int


class UdfVolume(NamedTuple):
    """A UDF volume. ``partitions``: the starts of those in the map, in blocks of the image."""

    label: str
    partitions: tuple[int, ...]
    file_set: Address

    def holds(self, address: Address) -> bool:
        """Whether the address is in an existing partition."""
        return address.partition < len(self.partitions)

    def offset(self, address: Address) -> int:
        """The offset of a block of an existing partition in the image, in bytes."""
        return (self.partitions[address.partition] + address.block) * BLOCK


class Identifier(NamedTuple):
    """An entry of a directory."""

    name: str
    entry: Address


class FileEntry(NamedTuple):
    """The attributes of a file. ``fault``: why its extents cannot be trusted."""

    kind: Kind
    mode: int
    uid: int
    gid: int
    nlink: int
    mtime: int
    size: int
    extents: tuple[Extent, ...]
    fault: str


def anchored(block: bytes) -> tuple[Sequence, ...]:
    """The main and the reserve sequence if ``block`` is an anchor; else empty."""
    if _tag(block) != _ANCHOR:
        return ()
    main_length, main, length, reserve = struct.unpack_from("<LLLL", block, 16)
    return Sequence(main * BLOCK, main_length), Sequence(reserve * BLOCK, length)


def volume(sequence: bytes) -> UdfVolume | None:
    """The volume that a descriptor sequence describes; None if that is incomplete."""
    starts: dict[int, int] = {}
    logical = b""
    for place in range(0, len(sequence), BLOCK):
        descriptor = sequence[place : place + BLOCK]
        kind = _tag(descriptor)
        if kind == _PARTITION:
            (number,) = struct.unpack_from("<H", descriptor, 22)
            (starts[number],) = struct.unpack_from("<L", descriptor, 188)
        elif kind == _LOGICAL_VOLUME:
            logical = descriptor
        elif kind in (_TERMINATOR, None):
            break
    return _logical_volume(logical, starts) if logical and starts else None


def root_entry(file_set: bytes) -> Address | None:
    """The address of the root directory's file entry, from a file set descriptor."""
    if _tag(file_set) != _FILE_SET:
        return None
    return _address(file_set, 400)


def identifiers(directory: bytes) -> Iterator[Identifier | None]:
    """The entries of a directory; ends with None at an invalid one."""
    place = 0
    while place + 38 <= len(directory):
        characteristics, name_length = directory[place + 18 : place + 20]
        (use_length,) = struct.unpack_from("<H", directory, place + 36)
        name_at = place + 38 + use_length
        end = name_at + name_length
        following = end + -end % 4
        if end > len(directory) or _tag(directory[place:following]) != _FILE_IDENTIFIER:
            yield None
            return
        if not characteristics & (_DELETED | _PARENT):
            yield Identifier(_text(directory[name_at:end]), _address(directory, place + 20))
        place = following


def file_entry(block: bytes, at: int, partition: int, volume: UdfVolume) -> FileEntry | None:
    """The file entry in ``block``, which is at offset ``at`` of the image; None for none."""
    kind = _tag(block)
    if kind == _FILE_ENTRY:
        time_at, lengths_at = 84, 168
    elif kind == _EXTENDED_FILE_ENTRY:
        time_at, lengths_at = 92, 208
    else:
        return None
    flags = int.from_bytes(block[34:36], "little")
    uid, gid, permissions, nlink = struct.unpack_from("<LLLH", block, 36)
    (size,) = struct.unpack_from("<Q", block, 56)
    before, length = struct.unpack_from("<LL", block, lengths_at)
    start = lengths_at + 8 + before
    described = block[start : start + length]
    fault = ""
    if flags & 7 == _EMBEDDED:
        extents: tuple[Extent, ...] = (Extent(at + start, min(size, len(described))),)
    elif flags & 7 in _DESCRIPTORS:
        extents, fault = _extents(described, _DESCRIPTORS[flags & 7], partition, volume)
    else:
        extents, fault = (), "it is described in a way that is not known"
    return FileEntry(
        _KINDS.get(block[27], Kind.FILE),
        _mode(permissions, flags),
        0 if uid == _NOBODY else uid,
        0 if gid == _NOBODY else gid,
        nlink,
        seconds(block[time_at : time_at + 12]),
        size,
        _cut(extents, size),
        fault if block[27] in _KINDS else "it is of a kind that is not known",
    )


def target(components: bytes) -> str:
    """The target of a symbolic link with the content ``components`` (part 4, 14.16)."""
    parts: list[str] = []
    place = 0
    while place + 4 <= len(components):
        kind, length = components[place : place + 2]
        if kind in (1, 2):
            parts = [""]
        elif kind in (3, 4):
            parts.append(".." if kind == 3 else ".")
        elif kind == 5:
            parts.append(_text(components[place + 4 : place + 4 + length]))
        place += 4 + length
    return "/" if parts == [""] else "/".join(parts)


@lru_cache(maxsize=4096)
def seconds(time: bytes) -> int:
    """A time stamp (part 1, 7.3) in seconds since the epoch; 0 if invalid."""
    try:
        zone, year, month, day, hour, minute, second = struct.unpack_from("<HhBBBBB", time)
        local = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
    except (struct.error, ValueError):
        return 0
    minutes = (zone & 0xFFF) - (zone & 0x800) * 2
    return int(local.timestamp()) - (minutes * 60 if -1440 <= minutes <= 1440 else 0)


def _tag(data: bytes) -> int | None:
    """The identifier in the tag at the start of ``data``; None if tag or content is damaged."""
    if len(data) < 16:
        return None
    identifier, _, checksum, _, _, crc, length = struct.unpack_from("<HHBBHHH", data)
    if (sum(data[:16]) - checksum) & 0xFF != checksum or 16 + length > len(data):
        return None
    return identifier if binascii.crc_hqx(data[16 : 16 + length], 0) == crc else None


def _logical_volume(descriptor: bytes, starts: dict[int, int]) -> UdfVolume:
    (block_size,) = struct.unpack_from("<L", descriptor, 212)
    if block_size != BLOCK:
        raise ImageError(
            f"the image has UDF with blocks of {block_size} bytes, not {BLOCK}", LET_THE_KERNEL
        )
    (count,) = struct.unpack_from("<L", descriptor, 268)
    partitions: list[int] = []
    place = 440
    while len(partitions) < count and place + 6 <= len(descriptor):
        kind, length = descriptor[place : place + 2]
        (number,) = struct.unpack_from("<H", descriptor, place + 4)
        if kind != 1 or number not in starts or length < 6:
            raise ImageError(
                "the image's UDF has a virtual or metadata partition, or a damaged one",
                LET_THE_KERNEL,
            )
        partitions.append(starts[number])
        place += length
    label = descriptor[84 : 84 + descriptor[211]] if descriptor[211] <= 127 else b""
    return UdfVolume(_text(label), tuple(partitions), _address(descriptor, 248))


def _address(data: bytes, at: int) -> Address:
    """The address in a long allocation descriptor."""
    return Address(*struct.unpack_from("<LH", data, at + 4))


def _extents(
    data: bytes, shape: struct.Struct, partition: int, volume: UdfVolume
) -> tuple[tuple[Extent, ...], str]:
    """The extents that allocation descriptors list, and their fault; "" for none."""
    found: list[Extent] = []
    for place in range(0, len(data) - shape.size + 1, shape.size):
        length, block, *other = shape.unpack_from(data, place)
        kind, length = length >> 30, length & 0x3FFFFFFF
        if length == 0:
            break
        if kind == _CONTINUATION:
            return tuple(found), "the list of its extents goes on elsewhere"
        address = Address(block, other[0] if other else partition)
        if kind == _RECORDED and not volume.holds(address):
            return tuple(found), "a part of it lies in a partition that is not there"
        found.append(Extent(volume.offset(address) if kind == _RECORDED else HOLE, length))
    return tuple(found), ""


def _cut(extents: tuple[Extent, ...], size: int) -> tuple[Extent, ...]:
    """The extents, cut at the end of the file: the last one may consist of whole blocks."""
    found: list[Extent] = []
    for offset, length in extents:
        if size > 0:
            found.append(Extent(offset, min(length, size)))
        size -= length
    return tuple(found)


def _mode(permissions: int, flags: int) -> int:
    """POSIX permission bits, from groups of five bits for others, group and owner."""
    mode = sum((permissions >> 5 * n & 7) << 3 * n for n in range(3))
    return mode | (flags >> 6 & 1) << 11 | (flags >> 7 & 1) << 10 | (flags >> 8 & 1) << 9


def _text(name: bytes) -> str:
    """Decode characters after a byte with the number of bits of each."""
    if name[:1] == bytes([_SIXTEEN_BITS]):
        return name[1:].decode("utf-16-be", "replace")
    return name[1:].decode("latin-1") if name[:1] == bytes([_EIGHT_BITS]) else ""

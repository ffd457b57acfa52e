"""Parsing the first 64 KiB of an image: volumes, boot catalog, partition tables. Pure.

Volume descriptors (ECMA-119, clause 8) begin at sector 16, one per sector, up to a terminator. The
sectors after it announce other structures of the volume: ``NSR02`` or ``NSR03`` mean UDF. Of
numbers recorded in both byte orders, only the little-endian one is read: images on which the two
differ exist, and all systems that show them read that one.
"""

import struct
from typing import NamedTuple

from lazyfs.core.errors import ImageError
from lazyfs.formats.tree import LET_THE_KERNEL, BootImage

SECTOR = 2048
HEAD = 32 * SECTOR  # bytes of the image that ``parse`` needs

_JOLIET = (b"%/@", b"%/C", b"%/E")  # escape sequences of UCS-2, levels 1 to 3
_BLOCK_SIZES = (512, 1024, 2048)
_EL_TORITO = b"EL TORITO SPECIFICATION"
_PLATFORMS = {0: "x86", 1: "PowerPC", 2: "Mac", 0xEF: "EFI"}
# By boot media type: the emulated medium, and the size of a floppy.
_EMULATION = {
    0: ("none", 0),
    1: ("floppy", 1200 << 10),
    2: ("floppy", 1440 << 10),
    3: ("floppy", 2880 << 10),
    4: ("hard disk", 0),
}


class Descriptor(NamedTuple):
    """A primary volume descriptor, or a supplementary one for Joliet."""

    label: str
    block_size: int
    size: int  # of the volume, in bytes
    root: bytes  # the directory record of the root


class Head(NamedTuple):
    """The volumes and tables of an image. ``primary`` is None if there is only UDF."""

    primary: Descriptor | None
    joliet: Descriptor | None
    udf: bool
    boot_catalog: int | None  # byte offset of El Torito's catalog
    mbr: bool
    gpt: bool


def parse(head: bytes) -> Head:
    """Parse the first HEAD bytes of an image. Raises ImageError if it is neither ISO nor UDF."""
    primary = joliet = boot_catalog = None
    udf = False
    for place in range(16 * SECTOR, len(head) - SECTOR + 1, SECTOR):
        sector = head[place : place + SECTOR]
        kind, identifier = sector[0], sector[1:6]
        if identifier in (b"NSR02", b"NSR03"):
            udf = True
        elif identifier == b"CD001":
            if kind == 0 and sector[7:39].rstrip(b"\0 ") == _EL_TORITO:
                boot_catalog = int.from_bytes(sector[71:75], "little") * SECTOR
            elif kind == 1 and primary is None:
                primary = _descriptor(sector, "ascii")
            elif kind == 2 and joliet is None and sector[88:91] in _JOLIET:
                joliet = _descriptor(sector, "utf-16-be")
        elif identifier not in (b"BEA01", b"TEA01", b"BOOT2"):
            break
    if primary is None and not udf:
        raise ImageError("this is neither an ISO 9660 nor a UDF image", LET_THE_KERNEL)
    return Head(primary, joliet, udf, boot_catalog, _has_mbr(head), _has_gpt(head))


def boot_images(catalog: bytes) -> tuple[BootImage, ...]:
    """The entries of an El Torito boot catalog (32 bytes each, the first one validates it)."""
    entries = [catalog[at : at + 32] for at in range(0, len(catalog) - 31, 32)]
    if len(entries) < 2 or entries[0][0] != 1 or entries[0][30:32] != b"\x55\xaa":
        return ()
    platform = entries[0][1]
    found = [_boot_image(entries[1], platform)]
    for entry in entries[2:]:
        if entry[0] in (0x90, 0x91):  # the header of a section; 0x91: the last one
            platform = entry[1]
        elif entry[0] in (0x00, 0x88) and any(entry):
            found.append(_boot_image(entry, platform))
        elif entry[0] != 0x44:  # 0x44 extends the entry before it
            break
    return tuple(found)


def _descriptor(sector: bytes, encoding: str) -> Descriptor:
    label = sector[40:72].decode(encoding, "replace").rstrip("\0 ")
    (blocks,) = struct.unpack_from("<L", sector, 80)
    (block_size,) = struct.unpack_from("<H", sector, 128)
    if block_size not in _BLOCK_SIZES:
        raise ImageError(f"the image's volume has blocks of {block_size} bytes, which cannot be")
    return Descriptor(label, block_size, blocks * block_size, sector[156:190])


def _boot_image(entry: bytes, platform: int) -> BootImage:
    emulation, size = _EMULATION.get(entry[1] & 0xF, ("unknown", 0))
    count, sector = struct.unpack_from("<HL", entry, 6)
    name = _PLATFORMS.get(platform, f"platform {platform}")
    return BootImage(name, entry[0] == 0x88, emulation, sector * SECTOR, size or count * 512)


def _has_mbr(head: bytes) -> bool:
    """Whether there is a partition table that is not empty."""
    return head[510:512] == b"\x55\xaa" and any(head[446 + 4 + 16 * n] for n in range(4))


def _has_gpt(head: bytes) -> bool:
    return b"EFI PART" in (head[512:520], head[2048:2056])

"""The marks (magic numbers) of filesystems and other formats, and the positions of labels.

Offsets are those of the kernel's headers (``fs/*/``, ``include/uapi/linux/``) and of libblkid.
Pure.
"""

import struct
from collections.abc import Callable
from typing import NamedTuple

HEAD = 68 << 10  # bytes to examine: the last mark is btrfs's

# Features of ext2 and ext3 (fs/ext4/ext4.h); any other means ext4.
_EXT3_INCOMPATIBLE = 0x2 | 0x4 | 0x10  # file types, recovery needed, meta block groups
_EXT3_READ_ONLY = 0x1 | 0x2 | 0x4  # sparse superblocks, large files, B-tree directories
_HAS_JOURNAL = 0x4


class Mark(NamedTuple):
    """Bytes expected at ``offset``."""

    offset: int
    content: bytes


def no_label(_head: bytes) -> str:
    """For formats without a label, or without one in their first bytes."""
    return ""


def _label(offset: int, length: int, encoding: str = "utf-8") -> Callable[[bytes], str]:
    """A function that reads a label of up to ``length`` bytes, padded with zeros or spaces."""

    def read(head: bytes) -> str:
        text = head[offset : offset + length].decode(encoding, errors="replace")
        return text.partition("\0")[0].rstrip()

    return read


def _fat_label(offset: int) -> Callable[[bytes], str]:
    read = _label(offset, 11, "cp437")
    return lambda head: "" if read(head) == "NO NAME" else read(head)


def _ext_version(head: bytes) -> str:
    """The version (ext2 to ext4) of a filesystem with ext2's mark, by features as in libblkid."""
    features = head[0x45C:0x468].ljust(12, b"\0")
    compatible, incompatible, read_only = struct.unpack("<LLL", features)
    if incompatible & ~_EXT3_INCOMPATIBLE or read_only & ~_EXT3_READ_ONLY:
        return "ext4"
    return "ext3" if compatible & _HAS_JOURNAL else "ext2"


def _is_ext(version: str) -> Callable[[bytes], bool]:
    return lambda head: _ext_version(head) == version


def _always(_head: bytes) -> bool:
    return True


class Row(NamedTuple):
    """A filesystem. ``label``: reads its label. ``test``: a further condition on the head."""

    name: str
    marks: tuple[Mark, ...]
    label: Callable[[bytes], str] = no_label
    test: Callable[[bytes], bool] = _always


_EXT = (Mark(0x438, b"\x53\xef"),)
_EXT_LABEL = _label(0x478, 16)

# The most specific first.
FILESYSTEMS = (
    Row("squashfs", (Mark(0, b"hsqs"),)),
    Row("erofs", (Mark(1024, b"\xe2\xe1\xf5\xe0"),), _label(1024 + 64, 16)),
    Row("ext4", _EXT, _EXT_LABEL, _is_ext("ext4")),
    Row("ext3", _EXT, _EXT_LABEL, _is_ext("ext3")),
    Row("ext2", _EXT, _EXT_LABEL, _is_ext("ext2")),
    Row("btrfs", (Mark(0x10040, b"_BHRfS_M"),), _label(0x1012B, 256)),
    Row("xfs", (Mark(0, b"XFSB"),), _label(108, 12)),
    Row("F2FS", (Mark(1024, b"\x10\x20\xf5\xf2"),), _label(1024 + 0x7C, 1024, "utf-16-le")),
    Row("ISO 9660", (Mark(0x8001, b"CD001"),), _label(0x8028, 32)),
    Row("UDF", (Mark(0x8001, b"BEA01"),)),
    Row("NTFS", (Mark(3, b"NTFS    "),)),
    Row("exFAT", (Mark(3, b"EXFAT   "),)),
    Row("FAT", (Mark(82, b"FAT32   "),), _fat_label(71)),
    Row("FAT", (Mark(54, b"FAT16   "), Mark(54, b"FAT12   ")), _fat_label(43)),
)

OTHERS: tuple[tuple[str, tuple[Mark, ...]], ...] = (
    ("gzip", (Mark(0, b"\x1f\x8b"),)),
    ("xz", (Mark(0, b"\xfd7zXZ\0"),)),
    ("zstd", (Mark(0, b"\x28\xb5\x2f\xfd"),)),
    ("bzip2", (Mark(0, b"BZh"),)),
    ("lz4", (Mark(0, b"\x04\x22\x4d\x18"),)),
    ("qcow2", (Mark(0, b"QFI\xfb"),)),
    ("vmdk", (Mark(0, b"KDMV"),)),
    ("vhdx", (Mark(0, b"vhdxfile"),)),
    ("LUKS", (Mark(0, b"LUKS\xba\xbe"),)),
    ("swap", (Mark(4086, b"SWAPSPACE2"),)),
    ("LVM", (Mark(512, b"LABELONE"),)),
    ("tar", (Mark(257, b"ustar"),)),
)

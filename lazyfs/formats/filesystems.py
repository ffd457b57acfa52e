"""The marks of filesystems and of other formats in an image's first bytes, and where labels are.

Offsets are those of the kernel's headers (``fs/*/``, ``include/uapi/linux/``) and of libblkid.
Pure.
"""

from collections.abc import Callable
from typing import NamedTuple

HEAD = 68 << 10  # bytes that are looked at: the last mark is btrfs's


class Mark(NamedTuple):
    """Bytes that stand at ``offset``."""

    offset: int
    content: bytes


def no_label(_head: bytes) -> str:
    """Of what has no label, or none in its first bytes."""
    return ""


def _label(offset: int, length: int, encoding: str = "utf-8") -> Callable[[bytes], str]:
    """What reads a label of at most ``length`` bytes, which zeros or spaces end."""

    def read(head: bytes) -> str:
        text = head[offset : offset + length].decode(encoding, errors="replace")
        return text.partition("\0")[0].rstrip()

    return read


def _fat_label(offset: int) -> Callable[[bytes], str]:
    read = _label(offset, 11, "cp437")
    return lambda head: "" if read(head) == "NO NAME" else read(head)


# The most telling first.
FILESYSTEMS: tuple[tuple[str, tuple[Mark, ...], Callable[[bytes], str]], ...] = (
    ("squashfs", (Mark(0, b"hsqs"),), no_label),
    ("erofs", (Mark(1024, b"\xe2\xe1\xf5\xe0"),), _label(1024 + 64, 16)),
    ("ext2, ext3 or ext4", (Mark(0x438, b"\x53\xef"),), _label(0x400 + 0x78, 16)),
    ("btrfs", (Mark(0x10040, b"_BHRfS_M"),), _label(0x1012B, 256)),
    ("xfs", (Mark(0, b"XFSB"),), _label(108, 12)),
    ("F2FS", (Mark(1024, b"\x10\x20\xf5\xf2"),), _label(1024 + 0x7C, 1024, "utf-16-le")),
    ("ISO 9660", (Mark(0x8001, b"CD001"),), _label(0x8028, 32)),
    ("UDF", (Mark(0x8001, b"BEA01"),), no_label),
    ("NTFS", (Mark(3, b"NTFS    "),), no_label),
    ("exFAT", (Mark(3, b"EXFAT   "),), no_label),
    ("FAT", (Mark(82, b"FAT32   "),), _fat_label(71)),
    ("FAT", (Mark(54, b"FAT16   "), Mark(54, b"FAT12   ")), _fat_label(43)),
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

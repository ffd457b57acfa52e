"""What an image is, by the marks that its kind puts into the first bytes. Pure."""

from typing import NamedTuple

HEAD = 68 << 10  # bytes that are looked at: the last mark is btrfs's


class Mark(NamedTuple):
    offset: int
    content: bytes
    kind: str


_MARKS = (
    Mark(0, b"hsqs", "squashfs"),
    Mark(1024, b"\xe2\xe1\xf5\xe0", "erofs"),
    Mark(0x438, b"\x53\xef", "ext2, ext3 or ext4"),
    Mark(0x10040, b"_BHRfS_M", "btrfs"),
    Mark(0, b"XFSB", "xfs"),
    Mark(0x8001, b"CD001", "ISO 9660"),
    Mark(0x8001, b"BEA01", "UDF"),
    Mark(0, b"\x1f\x8b", "gzip"),
    Mark(0, b"\xfd7zXZ\0", "xz"),
    Mark(0, b"\x28\xb5\x2f\xfd", "zstd"),
    Mark(0, b"BZh", "bzip2"),
    Mark(0, b"\x04\x22\x4d\x18", "lz4"),
    Mark(0, b"QFI\xfb", "qcow2"),
    Mark(0, b"KDMV", "vmdk"),
    Mark(0, b"vhdxfile", "vhdx"),
    Mark(0, b"LUKS\xba\xbe", "LUKS"),
    Mark(3, b"NTFS    ", "NTFS"),
    Mark(82, b"FAT32   ", "FAT"),
    Mark(54, b"FAT16   ", "FAT"),
    Mark(257, b"ustar", "tar"),
)

_PARTITIONS = range(446, 510, 16)


def kinds(head: bytes) -> list[str]:
    """What it may be, the most telling first; empty if no mark is known."""
    return [mark.kind for mark in _MARKS if head.startswith(mark.content, mark.offset)]


def partition_table(head: bytes) -> str:
    """``"GPT"``, ``"MBR"`` or empty."""
    if head.startswith(b"EFI PART", 512):
        return "GPT"
    signed = head[510:512] == b"\x55\xaa"
    types = [head[start + 4] for start in _PARTITIONS if start + 4 < len(head)]
    return "MBR" if signed and any(types) and _sane(head) else ""


def _sane(head: bytes) -> bool:
    """Whether the partitions look like some: a boot sector of a filesystem is signed as well."""
    return all(head[start] in (0x00, 0x80) for start in _PARTITIONS)

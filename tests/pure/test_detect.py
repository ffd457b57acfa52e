"""What an image is, asked of what the usual programs make, and of nonsense."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.formats.detect import HEAD, kinds, partition_table


def at(offset: int, content: bytes, size: int = HEAD) -> bytes:
    """An image that is empty but for this."""
    return (bytes(offset) + content).ljust(size, b"\0")


def tar_of_one_file() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return held.getvalue()


def boot_sector(*types: int, active: int = 0x80, signature: bytes = b"\x55\xaa") -> bytes:
    """512 bytes with partitions of these types."""
    entries = [bytes([active, 0, 2, 0, kind]) + b"\0\0\0" + struct.pack("<LL", 1, 99)
               for kind in types]  # fmt: skip
    return bytes(446) + b"".join(entries).ljust(64, b"\0") + signature


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (gzip.compress(b"text"), "gzip"),
        (lzma.compress(b"text"), "xz"),
        (bz2.compress(b"text"), "bzip2"),
        (tar_of_one_file(), "tar"),
        (at(0, b"hsqs"), "squashfs"),
        (at(1024, struct.pack("<L", 0xE0F5E1E2)), "erofs"),
        (at(1080, struct.pack("<H", 0xEF53)), "ext2, ext3 or ext4"),
        (at(64 * 1024 + 64, b"_BHRfS_M"), "btrfs"),
        (at(0, b"XFSB"), "xfs"),
        (at(16 * 2048, b"\1CD001\1"), "ISO 9660"),
        (at(16 * 2048, b"\0BEA01\1"), "UDF"),
        (at(0, struct.pack("<L", 0xFD2FB528)), "zstd"),
        (at(0, struct.pack("<L", 0x184D2204)), "lz4"),
        (at(0, b"QFI\xfb\0\0\0\3"), "qcow2"),
        (at(0, b"KDMV"), "vmdk"),
        (at(0, b"vhdxfile"), "vhdx"),
        (at(0, b"LUKS\xba\xbe\0\2"), "LUKS"),
        (at(0, b"\xeb\x52\x90NTFS    "), "NTFS"),
        (at(82, b"FAT32   "), "FAT"),
        (at(54, b"FAT16   "), "FAT"),
    ],
)
def test_a_kind_is_known_by_its_mark(image: bytes, kind: str) -> None:
    assert kinds(image[:HEAD]) == [kind]


@pytest.mark.parametrize(
    "image", [b"", b"\0", bytes(HEAD), b"just a text\n", b"\x1f", at(0, b"hsq")]
)
def test_what_has_no_mark_is_unknown(image: bytes) -> None:
    assert kinds(image) == []
    assert partition_table(image) == ""


def test_what_an_image_is_for_comes_before_how_it_can_be_booted() -> None:
    both = bytearray(at(16 * 2048, b"\1CD001\1"))
    both[:512] = boot_sector(0x17)
    assert kinds(bytes(both)) == ["ISO 9660"]
    assert partition_table(bytes(both)) == "MBR"


@pytest.mark.parametrize(
    ("image", "table"),
    [
        (boot_sector(0x83), "MBR"),
        (boot_sector(0, 0, 0, 0x0C, active=0), "MBR"),
        (boot_sector(0xEE, active=0) + b"EFI PART\0\0\1\0", "GPT"),
        (boot_sector(), ""),
        (boot_sector(0x83, signature=b"\0\0"), ""),
        (boot_sector(0x83, active=0x33), ""),
        (boot_sector(0x83)[:500], ""),
    ],
)
def test_partition_tables_are_known(image: bytes, table: str) -> None:
    assert partition_table(image) == table
    assert partition_table(image + bytes(HEAD)) == (table if len(image) >= 512 else "")


def test_the_signature_of_a_filesystems_boot_sector_is_no_partition_table() -> None:
    """Where an MBR has its partitions, FAT and NTFS have the code that boots."""
    code = b"\x0d\x0aMissing operating system. Press any key to restart".ljust(64)
    assert partition_table(bytes(446) + code + b"\x55\xaa") == ""


@given(st.binary(max_size=600))
def test_any_bytes_have_an_answer(head: bytes) -> None:
    assert all(isinstance(kind, str) for kind in kinds(head))
    assert partition_table(head) in ("", "MBR", "GPT")

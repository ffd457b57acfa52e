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

from lazyfs.formats import registry
from lazyfs.formats.registry import HEAD, filesystem_of, formats_of


def at(offset: int, content: bytes, size: int = HEAD) -> bytes:
    """An image that is empty but for this."""
    return (bytes(offset) + content).ljust(size, b"\0")


def tar_of_one_file() -> bytes:
    held = io.BytesIO()
    with tarfile.open(fileobj=held, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("name"))
    return held.getvalue()


def kinds(head: bytes) -> list[str]:
    return [known.name for known in formats_of(head)]


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        (gzip.compress(b"text", mtime=0), "gzip"),
        (lzma.compress(b"text"), "xz"),
        (bz2.compress(b"text"), "bzip2"),
        (tar_of_one_file(), "tar"),
        (at(0, b"hsqs"), "squashfs"),
        (at(1024, struct.pack("<L", 0xE0F5E1E2)), "erofs"),
        (at(1080, struct.pack("<H", 0xEF53)), "ext2"),
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
    assert filesystem_of(image) is None


@pytest.mark.parametrize(
    ("head", "label"),
    [
        (at(1080, b"\x53\xef" + bytes(62) + b"root fs".ljust(16, b"\0")), "root fs"),
        (at(0, b"XFSB" + bytes(104) + b"twelve bytes"), "twelve bytes"),
        (at(43, b"EFI        FAT16   "), "EFI"),
        (at(71, b"NO NAME    FAT32   "), ""),
        (at(16 * 2048, b"\1CD001\1" + bytes(33) + b"DEBIAN 12".ljust(32)), "DEBIAN 12"),
        (at(1024, b"\xe2\xe1\xf5\xe0" + bytes(60) + b"\xff\xfe".ljust(16, b"\0")), "\ufffd\ufffd"),
        (at(0, b"hsqs"), ""),
    ],
)
def test_the_label_of_a_filesystem_is_read_from_its_head(head: bytes, label: str) -> None:
    found = filesystem_of(head)
    assert found is not None
    assert found.label(head) == label


def test_each_word_of_a_fragment_belongs_to_one_format() -> None:
    words = [w for known in registry.FORMATS if known.opening for w in known.opening.words]
    assert len(words) == len(set(words))
    assert registry.opening_of("part") is not None
    assert registry.opening_of("nothing") is None


@given(st.binary(max_size=600))
def test_any_bytes_have_an_answer(head: bytes) -> None:
    assert all(isinstance(kind, str) for kind in kinds(head))
    found = filesystem_of(head)
    assert found is None or isinstance(found.label(head), str)

"""What an image says of itself as a whole."""

import io
import struct
from pathlib import Path

import pytest
from real.images import PACKAGED, Images, cache_directory
from real.mounts import run_well

from lazyfs.core.errors import ImageError
from lazyfs.formats.iso import volume
from lazyfs.formats.iso.catalog import ROCK_RIDGE, read_tree
from lazyfs.formats.iso.volume import SECTOR
from lazyfs.formats.tree import BootImage, Kind, Tree

from . import views
from .flavours import extract, make
from .handmade import ROOT, image, record

PACKAGED_ISOS = [(p, m) for p, members in PACKAGED.items() for m in members if m.endswith(".iso")]


def read(path: Path) -> Tree:
    with open(path, "rb") as file:
        return read_tree(file)


@pytest.fixture(scope="module")
def bootable(tmp_path_factory: pytest.TempPathFactory) -> tuple[Tree, Path]:
    """An image that boots on BIOS and EFI, from a CD and from a disk."""
    directory = tmp_path_factory.mktemp("bootable")
    tree = directory / "tree"
    (tree / "boot").mkdir(parents=True)
    (tree / "boot/bios.img").write_bytes(b"BIOS".ljust(2048, b"b"))
    (tree / "boot/efi.img").write_bytes(b"EFI".ljust(1 << 20, b"e"))
    mbr = directory / "mbr"
    mbr.write_bytes(bytes(range(1, 200)).ljust(432, b"\1"))
    options: list[str | Path] = ["-V", "BOOT", "-isohybrid-mbr", mbr, "-partition_offset", "16"]
    options += ["-c", "boot/catalog", "-b", "boot/bios.img", "-no-emul-boot"]
    options += ["-boot-load-size", "4", "-boot-info-table", "-eltorito-alt-boot"]
    options += ["-e", "boot/efi.img", "-no-emul-boot", "-isohybrid-gpt-basdat"]
    made = directory / "boot.iso"
    run_well(["xorriso", "-as", "mkisofs", *options, "-o", made, tree])
    return read(made), made


def test_boot_images_are_listed_where_their_files_are(bootable: tuple[Tree, Path]) -> None:
    tree, _ = bootable
    (bios,) = tree.extents("boot/bios.img")
    (efi,) = tree.extents("boot/efi.img")
    assert tree.volume.boot_images == (
        BootImage("x86", True, "none", bios.offset, 2048),
        BootImage("EFI", True, "none", efi.offset, 1 << 20),
    )


def test_partition_tables_are_seen(bootable: tuple[Tree, Path]) -> None:
    tree, made = bootable
    assert (tree.volume.mbr, tree.volume.gpt) == (True, True)
    assert tree.volume.label == "BOOT"
    assert tree.volume.image_size == made.stat().st_size


def test_an_image_for_no_disk_has_no_partition_table(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    made = read(make(["genisoimage", "-R"], tree, tmp_path / "image.iso")).volume
    assert (made.mbr, made.gpt, made.boot_images) == (False, False, ())
    assert made.declared_size == made.image_size


@pytest.mark.parametrize("kind", [1, 2])
def test_of_several_descriptors_the_first_counts(kind: int) -> None:
    head = bytearray(image({ROOT: []}))
    for number, label in ((17, b"FIRST"), (18, b"SECOND")):
        sector = head[16 * SECTOR : 17 * SECTOR]
        sector[0], sector[88:91] = kind, b"%/E"
        sector[40:72] = (
            label.decode().encode("utf-16-be" if kind == 2 else "ascii").ljust(32, b"\0")
        )
        head[number * SECTOR : (number + 1) * SECTOR] = sector
    found = volume.parse(bytes(head[: volume.HEAD]))
    assert found.primary
    assert found.primary.label == "HANDMADE"
    if kind == 2:
        assert found.joliet
        assert found.joliet.label == "FIRST"


def catalog(*entries: bytes) -> bytes:
    validation = b"\1\0".ljust(30, b"\0") + b"\x55\xaa"
    return (validation + b"".join(entries)).ljust(SECTOR, b"\0")


def boot(indicator: int, media: int, count: int, sector: int) -> bytes:
    return struct.pack("<BBHBBHL", indicator, media, 0, 0, 0, count, sector).ljust(32, b"\0")


def section(indicator: int, platform: int) -> bytes:
    return bytes((indicator, platform, 1, 0)).ljust(32, b"\0")


def test_sections_of_a_boot_catalog_have_their_platforms() -> None:
    found = volume.boot_images(
        catalog(
            boot(0x88, 2, 1, 20),
            section(0x90, 0xEF),
            boot(0x88, 0, 8, 30),
            bytes((0x44,)).ljust(32, b"x"),
            boot(0x00, 4, 1, 40),
            section(0x91, 7),
            boot(0x88, 9, 1, 50),
        )
    )
    assert found == (
        BootImage("x86", True, "floppy", 20 * SECTOR, 1440 << 10),
        BootImage("EFI", True, "none", 30 * SECTOR, 4096),
        BootImage("EFI", False, "hard disk", 40 * SECTOR, 512),
        BootImage("platform 7", True, "unknown", 50 * SECTOR, 512),
    )


@pytest.mark.parametrize("content", [b"", bytes(SECTOR), b"\1" * 31, catalog()[:32]])
def test_what_is_no_boot_catalog_has_no_entries(content: bytes) -> None:
    assert volume.boot_images(content) == ()


@pytest.mark.parametrize("block_size", [0, 1, 4096, 0xFFFF])
def test_impossible_block_sizes_are_an_error(block_size: int) -> None:
    made = bytearray(image({ROOT: []}))
    struct.pack_into("<H", made, 16 * SECTOR + 128, block_size)
    with pytest.raises(ImageError, match=f"blocks of {block_size} bytes"):
        read_tree(io.BytesIO(bytes(made)))


def test_blocks_may_be_smaller_than_sectors() -> None:
    """With blocks of 512 bytes, all places are counted in those."""
    root = record(b"\0", ROOT * 4, SECTOR, flags=2)
    made = bytearray(image({ROOT: [record(b"A.;1", 40 * 4 + 1, 10)]}))
    struct.pack_into("<H", made, 16 * SECTOR + 128, 512)
    made[16 * SECTOR + 156 : 16 * SECTOR + 190] = root
    (extent,) = read_tree(io.BytesIO(bytes(made))).extents("a")
    assert extent.offset == 40 * SECTOR + 512


@pytest.mark.parametrize(("package", "member"), PACKAGED_ISOS)
def test_images_of_packages_are_read_as_xorriso_reads_them(
    tmp_path: Path, package: str, member: str
) -> None:
    path = Images(cache_directory()).packaged(package, member)
    tree = read(path)
    assert tree.namespace == ROCK_RIDGE
    assert tree.notes == ()
    assert tree.volume.boot_images
    assert tree.volume.mbr
    extract(path, tmp_path / "x")
    seen, wanted = views.of_tree(tree, path), views.of_directory(tmp_path / "x")
    assert seen == wanted
    assert any(one.kind is Kind.FILE for one in seen.values())

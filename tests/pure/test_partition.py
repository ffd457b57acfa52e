"""Partition tables, asked of what sfdisk, sgdisk, parted and xorriso make, of damage, of nonsense.

What is right is what sfdisk and partx (libblkid) say.
"""

import contextlib
import json
import os
import random
import re
import shlex
import struct
import subprocess
import uuid
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import ImageError
from lazyfs.formats import partition
from lazyfs.formats.partition import HEAD, Partition, Table, choose, read_table

MIB = 1 << 20
SIZE = 8 * MIB
ROOT = "4f68bce3-e8cd-4db1-96e7-fbcaf984b709"
Make = Callable[..., bytes]

GPT = """
    label: gpt
    1: size=2048, type=U, name="EFI and more"
    3: size=4096, type=S
    9: type=4F68BCE3-E8CD-4DB1-96E7-FBCAF984B709, name=root
"""
MBR = """
    label: dos
    1: start=2048, size=2048, type=83, bootable
    2: size=2048, type=c
    4: start=6144, size=9000, type=f
    5: start=6200, size=2048, type=82
    6: start=8300, size=2000, type=fd
    7: start=10400, type=8e
"""
MSDOS = "mkpart primary 1 2 mkpart extended 2 7 mkpart logical 3 4 mkpart logical linux-swap 5 6"


def run(*command: str | Path, stdin: str = "", **environment: str) -> str:
    path = os.environ["PATH"] + ":/usr/sbin:/sbin"
    done = subprocess.run(
        [str(word) for word in command],
        input=stdin, capture_output=True, text=True, check=False,
        env={**os.environ, "PATH": path, "LC_ALL": "C.UTF-8", **environment},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def answer(image: bytes, size: int | None = None) -> tuple[Table | None, list[tuple[int, int]]]:
    """The table of the first ``size`` bytes, and what was asked for; that is never much."""
    size = len(image) if size is None else size
    asked: list[tuple[int, int]] = []
    reading = read_table(size)
    try:
        offset, length = next(reading)
        while True:
            asked.append((offset, length))
            assert offset >= 0
            assert 0 < length <= size - offset
            assert len(asked) <= 110
            assert sum(length for _, length in asked) <= MIB
            offset, length = reading.send(image[offset : offset + length])
    except StopIteration as end:
        return end.value, asked


def table_of(image: bytes) -> Table:
    table, _ = answer(image)
    assert table is not None
    return table


def numbers(table: Table) -> list[int]:
    return [found.number for found in table.partitions]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """``make(command, ...)``: the image that a command makes; ``DISK`` in it is the image."""

    def made(*commands: str, stdin: str = "", size: int = SIZE, **environment: str) -> bytes:
        disk = tmp_path / "disk"
        with disk.open("wb") as file:
            file.truncate(size)
        for command in commands:
            words = shlex.split(command.replace("DISK", str(disk)))
            run(*words, stdin=stdin, **environment)
        return disk.read_bytes()

    return made


@pytest.fixture(scope="module")
def made_by_sfdisk(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    images = {}
    for kind, script in (("GPT", GPT), ("MBR", MBR)):
        disk = tmp_path_factory.mktemp("sfdisk") / "disk"
        disk.write_bytes(bytes(SIZE))
        run("sfdisk", "--quiet", disk, stdin=script)
        images[kind] = disk.read_bytes()
    return images


@pytest.fixture(scope="module")
def gpt(made_by_sfdisk: dict[str, bytes]) -> bytes:
    return made_by_sfdisk["GPT"]


@pytest.fixture(scope="module")
def mbr(made_by_sfdisk: dict[str, bytes]) -> bytes:
    return made_by_sfdisk["MBR"]


def patched(image: bytes, *patches: tuple[int, bytes]) -> bytes:
    content = bytearray(image)
    for offset, patch in patches:
        content[offset : offset + len(patch)] = patch
    return bytes(content)


# What others say of an image.


def told_by_sfdisk(disk: Path) -> list[Partition]:
    told = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    return [sfdisk_partition(told, entry) for entry in told["partitions"]]


def sfdisk_partition(told: dict[str, Any], entry: dict[str, Any]) -> Partition:
    number = int(entry["node"].removeprefix(told["device"]))
    if told["label"] == "dos":
        kind, disk_id = int(entry["type"], 16), int(told["id"], 16)
        type_id = f"0x{kind:02x}"
        name = partition._MBR_TYPES.get(kind, type_id)
        unique = f"{disk_id:08x}-{number:02x}" if disk_id else ""
    else:
        type_id, unique = entry["type"].lower(), entry["uuid"].lower()
        name = partition._GPT_TYPES.get(type_id, type_id)
    return Partition(
        number=number,
        start=entry["start"] * told["sectorsize"],
        length=entry["size"] * told["sectorsize"],
        type=name,
        type_id=type_id,
        name=entry.get("name", ""),
        uuid=unique,
        container=type_id in ("0x05", "0x0f", "0x85"),
    )


def told_by_partx(disk: Path, sector: int = 512) -> list[tuple[int, int, int, str, str, str]]:
    columns = "NR,START,SECTORS,TYPE,UUID,NAME"
    text = run("partx", "--pairs", "-S", str(sector), "-o", columns, disk)
    lines = [re.findall(r'"(.*?)"', line) for line in text.splitlines()]
    # partx counts in 512 bytes, whatever the sectors.
    return [(int(n), int(start) * 512, int(length) * 512, *rest)
            for n, start, length, *rest in lines]  # fmt: skip


def as_partx_tells(table: Table) -> list[tuple[int, int, int, str, str, str]]:
    return [
        (p.number, p.start, p.length, re.sub("^0x0", "0x", p.type_id), p.uuid, p.name)
        for p in table.partitions
    ]


@pytest.mark.parametrize("kind", ["GPT", "MBR"])
def test_partition_tables_of_sfdisk(
    made_by_sfdisk: dict[str, bytes], kind: str, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(made_by_sfdisk[kind])
    table = table_of(made_by_sfdisk[kind])
    told = json.loads(run("sfdisk", "--json", disk))["partitiontable"]
    assert list(table.partitions) == told_by_sfdisk(disk)
    assert as_partx_tells(table) == told_by_partx(disk)
    assert table.uuid == told["id"].lower().removeprefix("0x")
    assert (table.kind, table.sector, table.notes) == (kind, 512, ())


def test_partition_table_of_the_usual_gpt_is_read_at_once(gpt: bytes) -> None:
    table, asked = answer(gpt)
    assert asked == [(0, HEAD)]
    assert table is not None
    assert [(p.number, p.type, p.name) for p in table.partitions] == [
        (1, "EFI System", "EFI and more"),
        (3, "Linux swap", ""),
        (9, "Linux root (x86-64)", "root"),
    ]


def test_partition_table_of_an_mbr_takes_one_request_and_one_for_each_logical(mbr: bytes) -> None:
    table, asked = answer(mbr)
    assert asked[0] == (0, HEAD)
    assert [length for _, length in asked[1:]] == [512] * 3
    assert table is not None
    assert [(p.number, p.type, p.container) for p in table.partitions] == [
        (1, "Linux", False),
        (2, "W95 FAT32 (LBA)", False),
        (4, "Extended", True),
        (5, "Linux swap / Solaris", False),
        (6, "Linux raid autodetect", False),
        (7, "Linux LVM", False),
    ]


def test_partition_names_of_sgdisk_in_unicode(make: Make, tmp_path: Path) -> None:
    image = make("sgdisk -n 1:0:+1M -c '1:Grüße 日本 😀' -n 5:0:+2M -t 5:ef00 -c '5:a \"b\"' DISK")
    table = table_of(image)
    assert list(table.partitions) == told_by_sfdisk(tmp_path / "disk")
    assert [p.name for p in table.partitions] == ["Grüße 日本 😀", 'a "b"']
    assert choose(table, "LABEL:Grüße 日本 😀").number == 1


def test_partition_table_of_sgdisk_with_room_for_256(make: Make, tmp_path: Path) -> None:
    image = make("sgdisk -S 256 -n 256:0:+1M -n 2:0:+1M DISK")
    table, asked = answer(image)
    assert asked == [(0, HEAD), (1024, 256 * 128)]
    assert table is not None
    assert list(table.partitions) == sorted(told_by_sfdisk(tmp_path / "disk"), key=by_number)
    assert numbers(table) == [2, 256]


def by_number(found: Partition) -> int:
    return found.number


def test_partition_table_with_entries_elsewhere(make: Make, tmp_path: Path) -> None:
    """As for a boot loader that lies where the entries usually do: sgdisk -j."""
    table = table_of(make("sgdisk -j 1000 -n 1:0:+1M DISK"))
    assert list(table.partitions) == told_by_sfdisk(tmp_path / "disk")


def test_partition_table_of_a_hybrid_mbr_is_the_gpt(make: Make, tmp_path: Path) -> None:
    image = make("sgdisk -n 1:0:+1M -n 2:0:+1M -n 3:0:+1M DISK", "sgdisk -h 1:3 DISK")
    table = table_of(image)
    assert (table.kind, table.notes) == ("GPT", ("hybrid MBR: the GPT is used",))
    assert list(table.partitions) == told_by_sfdisk(tmp_path / "disk")
    assert numbers(table) == [1, 2, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        "mklabel gpt mkpart first ext4 1 3 mkpart second linux-swap 3 5 set 1 esp on",
        f"mklabel msdos {MSDOS}",
        "mklabel gpt",
    ],
    ids=["gpt", "msdos", "empty"],
)
def test_partition_tables_of_parted(make: Make, tmp_path: Path, arguments: str) -> None:
    table = table_of(make(f"parted -s DISK unit MiB {arguments}"))
    disk = tmp_path / "disk"
    assert as_partx_tells(table) == told_by_partx(disk)
    if table.partitions:
        assert list(table.partitions) == told_by_sfdisk(disk)


def big_sectors(make: Make) -> bytes:
    """A GPT in sectors of 4096 bytes: sfdisk of Debian 12 and sgdisk make none in a file."""
    arguments = "mklabel gpt mkpart one ext4 1MiB 4MiB mkpart two linux-swap 4MiB 5MiB"
    return make(f"parted -s DISK {arguments}", PARTED_SECTOR_SIZE="4096")


def test_partition_table_in_sectors_of_4096_bytes(make: Make, tmp_path: Path) -> None:
    image = big_sectors(make)
    table, asked = answer(image)
    assert table is not None
    assert (table.kind, table.sector, table.notes) == ("GPT", 4096, ())
    assert asked == [(0, HEAD)]
    assert as_partx_tells(table) == told_by_partx(tmp_path / "disk", 4096)
    assert [(p.start, p.length) for p in table.partitions] == [(MIB, 3 * MIB), (4 * MIB, MIB)]


def test_partition_table_in_big_sectors_is_seen_behind_a_leftover(make: Make, gpt: bytes) -> None:
    """What was there before in sectors of 512 bytes has lost its entries, not its header."""
    image = big_sectors(make)
    assert table_of(patched(image, (512, gpt[512:1024]))) == table_of(image)


@pytest.mark.parametrize(
    ("options", "kind"),
    [("", "MBR"), ("-appended_part_as_gpt", "GPT"), ("-partition_offset 16", "MBR")],
)
def test_partition_table_of_an_iso(tmp_path: Path, options: str, kind: str) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree" / "file").write_bytes(b"content")
    (tmp_path / "efi").write_bytes(bytes(MIB))
    disk = tmp_path / "disk"
    command = ["xorriso", "-as", "mkisofs", "-quiet", "-o", str(disk), *options.split()]
    run(*command, "-append_partition", "2", "0xef", tmp_path / "efi", tmp_path / "tree")
    table = table_of(disk.read_bytes())
    assert table.kind == kind
    assert list(table.partitions) == told_by_sfdisk(disk)
    assert choose(table, "2").length == MIB


def test_partition_of_type_0_counts_as_it_does_for_linux() -> None:
    """The first one of Debian's installation images is such a one: the whole ISO."""
    image = with_mbr([(0x80, 0, 0, 9000), (0, 0xEF, 4000, 500)])
    table = table_of(image)
    assert [(p.number, p.start, p.type) for p in table.partitions] == [
        (1, 0, "Empty"),
        (2, 4000 * 512, "EFI (FAT-12/16/32)"),
    ]


@pytest.mark.parametrize("kind", ["gpt", "dos"])
def test_partition_types_have_the_names_that_sfdisk_has(kind: str) -> None:
    lines = run("sfdisk", "--label", kind, "--list-types").splitlines()[2:]
    known = dict(line.split(None, 1) for line in lines if line)
    if kind == "gpt":
        ours = {type_id.upper(): name for type_id, name in partition._GPT_TYPES.items()}
        newer = {"Linux LUKS"}  # than some sfdisk
    else:
        ours = {f"{number:x}": name for number, name in partition._MBR_TYPES.items()}
        newer = {"Extended"}
    differ = {name for key, name in ours.items() if known.get(key, "").strip() != name}
    assert differ <= newer


@pytest.mark.parametrize("bits", [12, 16, 32])
@pytest.mark.parametrize("fake", ["n", "y"])
def test_partition_table_is_not_seen_in_a_fat(make: Make, bits: int, fake: str) -> None:
    """``mkfs.fat --mbr``: a table in the boot sector, whose partition is the filesystem."""
    image = make(f"mkfs.fat -F {bits} --mbr={fake} DISK", size=40 * MIB)
    assert image[510:512] == b"\x55\xaa"
    assert answer(image) == (None, [(0, HEAD)])


def test_partition_table_is_seen_behind_the_parameters_of_a_fat(make: Make, mbr: bytes) -> None:
    fat = make("mkfs.fat -F 12 --mbr=n DISK")
    assert table_of(patched(mbr, (0, fat[:440]))) == table_of(mbr)


NTFS = bytes.fromhex("eb5290 4e54465320202020 0002 08 0000 00 0000 0000 f8 0000")
EXFAT = bytes.fromhex("eb7690 4558464154202020") + bytes(53)
FLOPPY = bytes.fromhex("eb3c90 4d53444f53352e30 0002 01 0100 02 e000 400b f0 0900")
TEXT = b"Remove disks or other media.\xff\r\nPress any key to restart\r\n".ljust(64)
ENTRIES = struct.pack("<B3xB3xLL", 0x80, 7, 63, 10000).ljust(64, b"\0")


@pytest.mark.parametrize("start", [NTFS, EXFAT, FLOPPY], ids=["NTFS", "exFAT", "FAT"])
@pytest.mark.parametrize("end", [TEXT, bytes(64)], ids=["text", "zeros"])
def test_partition_table_is_not_seen_in_a_boot_sector(start: bytes, end: bytes) -> None:
    image = start.ljust(446, b"\x90") + end + b"\x55\xaa" + bytes(MIB)
    assert answer(image)[0] is None


@pytest.mark.parametrize("start", [NTFS, EXFAT], ids=["NTFS", "exFAT"])
def test_partition_table_is_not_seen_where_the_code_looks_like_one(start: bytes) -> None:
    image = start.ljust(446, b"\x90") + ENTRIES + b"\x55\xaa" + bytes(MIB)
    assert answer(image)[0] is None


@pytest.mark.parametrize(
    "start",
    [
        patched(NTFS, (14, b"\1")),
        patched(EXFAT, (63, b"\1")),
        patched(FLOPPY, (11, b"\3")),
        patched(FLOPPY, (13, b"\0")),
        patched(FLOPPY, (13, b"\3")),
        patched(FLOPPY, (14, b"\0")),
        patched(FLOPPY, (16, b"\0")),
        patched(FLOPPY, (21, b"\xf1")),
    ],
)
def test_partition_table_is_seen_where_no_filesystem_can_be(start: bytes) -> None:
    assert answer(patched(with_mbr([(0x80, 7, 0, 1000)]), (0, start)))[0] is not None


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"\x55\xaa",
        bytes(511),
        bytes(512),
        bytes(SIZE),
        bytes(446) + ENTRIES + b"\0\0",
        b"\xc9\xc2\xd4\xc1" + bytes(442) + ENTRIES + b"\x55\xaa",
        bytes(446) + bytes(64) + b"\x55\xaa",
        bytes(446) + struct.pack("<B3xB3xLL", 0, 0x83, 63, 0).ljust(64, b"\0") + b"\x55\xaa",
        bytes(446) + struct.pack("<B3xB3xLL", 0, 0, 63, 10).ljust(64, b"\0") + b"\x55\xaa",
        bytes(446) + b"\x33" + ENTRIES[1:] + b"\x55\xaa",
        bytes(512) + b"EFI PART" + bytes(SIZE),
    ],
)
def test_partition_table_is_none_where_there_is_none(image: bytes) -> None:
    table, asked = answer(image)
    assert table is None
    assert asked == ([(0, min(HEAD, len(image)))] if image else [])


def crc_of(sector: int) -> int:
    return sector + 16


@pytest.mark.parametrize("offset", [512, 512 + 17, 512 + 72, 1024 + 60], ids=str)
def test_partition_table_is_taken_from_the_backup(gpt: bytes, offset: int) -> None:
    damaged = patched(gpt, (offset, bytes([gpt[offset] ^ 0xFF])))
    table, asked = answer(damaged)
    notes = ("the primary GPT is damaged: its backup is used",)
    assert table == replace(table_of(gpt), notes=notes)
    assert asked == [(0, HEAD), (SIZE - HEAD, HEAD)]


@pytest.mark.parametrize("more", [0, 100, 512, 4095])
def test_partition_table_in_big_sectors_is_taken_from_the_backup(make: Make, more: int) -> None:
    image = big_sectors(make)
    damaged = patched(image, (4096, bytes(8))) + bytes(more)
    table = table_of(damaged)
    assert table.partitions == table_of(image).partitions
    assert table.notes == ("the primary GPT is damaged: its backup is used",)


@pytest.mark.parametrize("backup", [SIZE - 512, SIZE - 33 * 512], ids=["header", "entries"])
def test_partition_table_that_is_damaged_twice_is_an_error(gpt: bytes, backup: int) -> None:
    damaged = patched(gpt, (crc_of(512), b"junk"), (backup, b"junk"))
    with pytest.raises(ImageError) as caught:
        answer(damaged)
    assert caught.value.message == "its GPT is damaged, and so is the backup"
    assert caught.value.cure


def test_partition_table_that_was_announced_and_is_not_there_is_an_error(gpt: bytes) -> None:
    for size in (512, 513, 1000, 1024, 5000, 4 * MIB):
        with pytest.raises(ImageError, match="damaged"):
            answer(gpt[:512].ljust(size, b"\0"))


def test_partition_table_without_a_protective_mbr(gpt: bytes) -> None:
    table = table_of(patched(gpt, (0, bytes(512))))
    assert table.partitions == table_of(gpt).partitions
    assert "no MBR protects the GPT" in table.notes[0]
    assert answer(patched(gpt, (0, bytes(512)), (600, b"junk")))[0] is None


def test_partition_table_is_the_mbr_where_it_protects_no_gpt(gpt: bytes, mbr: bytes) -> None:
    """As in ISO images that isohybrid made for UEFI."""
    table = table_of(patched(mbr, (512, gpt[512:20000])))
    assert table.partitions == table_of(mbr).partitions
    assert table.notes == ("there is a GPT, too, but no MBR protects it: the MBR is used",)


def test_partition_table_of_an_image_that_was_cut_off(gpt: bytes, mbr: bytes) -> None:
    cut = "the image ends before the backup of its GPT: it may have been cut off"
    assert cut in table_of(gpt[:-512]).notes
    table = table_of(gpt[: 3 * MIB])
    assert [(p.number, p.start, p.length) for p in table.partitions] == [
        (1, MIB, MIB),
        (3, 2 * MIB, MIB),
    ]
    assert table.notes == (
        cut,
        "partition 3 reaches past the end of the image: it is cut there",
        "partition 9 starts past the end of the image: it is left out",
    )
    assert table_of(mbr[: 3 * MIB]).notes == (
        "partition 4 starts past the end of the image: it is left out",
        "the list of logical partitions in partition 4 breaks off",
    )


def test_partition_table_of_an_image_that_grew(gpt: bytes) -> None:
    """A virtual disk that was made bigger: the backup is no longer at its end."""
    table, asked = answer(gpt + bytes(MIB))
    assert table == table_of(gpt)
    assert asked == [(0, HEAD)]


def with_mbr(entries: list[tuple[int, int, int, int]], size: int = SIZE, disk_id: int = 0) -> bytes:
    """``entries``: flag, type, start and length in sectors."""
    head = bytes(440) + struct.pack("<LH", disk_id, 0) + table_sector(entries)[446:]
    return head.ljust(size, b"\0")


def table_sector(entries: list[tuple[int, int, int, int]]) -> bytes:
    packed = b"".join(struct.pack("<B3xB3xLL", *entry) for entry in entries)
    return bytes(446) + packed.ljust(64, b"\0") + b"\x55\xaa"


def with_gpt(
    entries: list[tuple[int, int]],
    sector: int = 512,
    entry_size: int = 128,
    slots: int = 128,
    entries_at: int = 2,
    header_size: int = 92,
) -> bytes:
    """A GPT without a backup. ``entries``: first and last sector."""
    packed = b"".join(
        struct.pack("<16s16sQQQ", uuid.UUID(ROOT).bytes_le, bytes([n + 1] * 16), first, last, 0)
        .ljust(entry_size, b"\0") for n, (first, last) in enumerate(entries)
    ).ljust(entry_size * slots, b"\0")  # fmt: skip
    fields = [b"EFI PART", 0x10000, header_size, 0, 0, 1, SIZE // sector - 1, 34, SIZE // sector,
              b"0123456789abcdef", entries_at, slots, entry_size, zlib.crc32(packed)]  # fmt: skip
    header = struct.pack("<8s4L4Q16sQ3L", *fields).ljust(max(92, header_size), b"\0")
    header = patched(header, (16, struct.pack("<L", zlib.crc32(header[:header_size]))))
    blank = with_mbr([(0, 0xEE, 1, 0xFFFFFFFF)])
    return patched(blank, (sector, header), (entries_at * sector, packed))[:SIZE]


@pytest.mark.parametrize("sector", [512, 4096])
@pytest.mark.parametrize(
    "layout",
    [
        {"entry_size": 256, "slots": 4},
        {"entry_size": 4096, "slots": 64},
        {"entry_size": 136, "slots": 1000},
        {"slots": 1024, "entries_at": 300},
        {"header_size": 512},
    ],
    ids=str,
)
def test_partition_entries_of_any_size_at_any_place(sector: int, layout: dict[str, int]) -> None:
    table = table_of(with_gpt([(600, 699), (700, 700)], sector, **layout))
    assert [(p.number, p.start, p.length, p.type) for p in table.partitions] == [
        (1, 600 * sector, 100 * sector, "Linux root (x86-64)"),
        (2, 700 * sector, sector, "Linux root (x86-64)"),
    ]
    assert table.partitions[0].uuid == "01010101-0101-0101-0101-010101010101"


@pytest.mark.parametrize(
    ("layout", "says"),
    [
        ({"slots": 1025}, "its GPT has 1025 entries of 128 bytes"),
        ({"slots": 1024, "entry_size": 512}, "its GPT has 1024 entries of 512 bytes"),
        ({"entry_size": 64}, "damaged"),
        ({"entry_size": 129}, "damaged"),
        ({"slots": 0}, "damaged"),
        ({"header_size": 91}, "damaged"),
        ({"header_size": 513}, "damaged"),
        ({"entries_at": SIZE // 512 - 1}, "damaged"),
        ({"entries_at": 1 << 62}, "damaged"),
    ],
    ids=str,
)
def test_partition_table_out_of_bounds_is_an_error(layout: dict[str, int], says: str) -> None:
    entries_at = layout.pop("entries_at", 2)
    image = with_gpt([], **layout)
    header = patched(image[512:1024], (72, struct.pack("<Q", entries_at)), (16, bytes(4)))
    size = min(layout.get("header_size", 92), 512)
    image = patched(image, (512, header), (528, struct.pack("<L", zlib.crc32(header[:size]))))
    with pytest.raises(ImageError, match=says):
        answer(image)


def test_partition_table_whose_header_or_entries_belong_elsewhere_is_an_error() -> None:
    fields = ((24, struct.pack("<Q", 2)),)
    entries = (
        (72, struct.pack("<Q", SIZE // 512 - 1)),
        (88, struct.pack("<L", zlib.crc32(bytes(512)))),
    )
    for patches in (fields, entries):
        header = patched(with_gpt([])[512:604], *patches, (16, bytes(4)))
        header = patched(header, (16, struct.pack("<L", zlib.crc32(header))))
        with pytest.raises(ImageError, match="damaged"):
            answer(patched(with_gpt([]), (512, header)))


def test_partition_table_with_oddities_of_a_gpt() -> None:
    table = table_of(with_gpt([(600, 599), (600, 100), (1 << 63, (1 << 64) - 1), (0, 1 << 40)]))
    assert [(p.number, p.start, p.length) for p in table.partitions] == [(4, 0, SIZE)]
    assert table.notes == (
        "partition 1 has no length: it is left out",
        "partition 2 has no length: it is left out",
        "partition 3 starts past the end of the image: it is left out",
        "partition 4 reaches past the end of the image: it is cut there",
    )


def test_partition_name_that_is_no_utf_16() -> None:
    image = bytearray(with_gpt([(600, 700)]))
    image[1024 + 56 : 1024 + 60] = b"\x3d\xd8a\0"  # half of a pair, and an a
    image[512 + 88 : 512 + 92] = struct.pack("<L", zlib.crc32(image[1024 : 1024 + 128 * 128]))
    image[528:532] = bytes(4)
    image[528:532] = struct.pack("<L", zlib.crc32(image[512:604]))
    (found,) = table_of(bytes(image)).partitions
    assert found.name.endswith(("a", "\ufffd"))
    found.name.encode()


def test_partition_table_with_oddities_of_an_mbr() -> None:
    entries = [(0, 0x83, 100, 0), (0, 0x12, 20000, 10), (0x80, 0x7F, 16000, 1000), (0, 0, 0, 0)]
    table = table_of(with_mbr(entries, disk_id=0xAB))
    assert table.uuid == "000000ab"
    assert table.partitions == (
        Partition(3, 16000 * 512, 384 * 512, "0x7f", "0x7f", "", "000000ab-03"),
    )
    assert [note[:20] for note in table.notes] == [
        "partition 1 has no l",
        "partition 2 starts p",
        "partition 3 reaches ",
    ]


def test_partition_without_a_disk_id_has_no_uuid() -> None:
    table = table_of(with_mbr([(0, 0x83, 100, 100)]))
    assert (table.uuid, table.partitions[0].uuid) == ("", "")


Tables = dict[int, list[tuple[int, int, int, int]]]


def with_logicals(tables: Tables, length: int = 10000, kind: int = 0x05) -> bytes:
    """An extended partition at sector 1000; ``tables`` lie at these sectors of it."""
    image = with_mbr([(0, 0x83, 100, 100), (0, kind, 1000, length)], disk_id=1)
    places = [((1000 + at) * 512, table_sector(entries)) for at, entries in tables.items()]
    return patched(image, *places)


def data(start: int, length: int = 10) -> tuple[int, int, int, int]:
    return 0, 0x83, start, length


def link(start: int, length: int = 100) -> tuple[int, int, int, int]:
    return 0, 0x05, start, length


CHAIN = "the list of logical partitions in partition 2 "


@pytest.mark.parametrize("kind", [0x05, 0x0F, 0x85])
def test_partition_links_count_from_the_extended_one(kind: int) -> None:
    table = table_of(
        with_logicals({0: [data(1), link(100)], 100: [data(2), link(50)], 50: [data(3)]}, kind=kind)
    )
    assert [(p.number, p.start // 512, p.container) for p in table.partitions] == [
        (1, 100, False),
        (2, 1000, True),
        (5, 1001, False),
        (6, 1102, False),
        (7, 1053, False),
    ]
    assert table.notes == ()
    assert choose(table, "PARTUUID:00000001-07").number == 7


def test_partition_order_in_an_extended_one_is_free() -> None:
    """DR-DOS has the link first, OS/2 up to four partitions."""
    first = [link(100), data(1), data(20), data(40)]
    assert numbers(table_of(with_logicals({0: first, 100: [data(1)]}))) == [1, 2, 5, 6, 7, 8]


@pytest.mark.parametrize(
    ("length", "garbage"),
    [(100, data(5, 0xFFFFFFF0)), (100, data(60, 50)), (20000, data(9000, 1500))],
)
@pytest.mark.parametrize("place", [2, 3])
def test_partition_that_is_garbage_behind_the_second_entry(
    length: int, garbage: tuple[int, int, int, int], place: int
) -> None:
    """The kernel believes the last two of the four only within their bounds."""
    second = [data(1), *[data(0, 0)] * (place - 1), garbage]
    table = table_of(with_logicals({0: [data(1), link(100, length)], 100: second}))
    assert numbers(table) == [1, 2, 5, 6]
    assert table.notes == ()


@pytest.mark.parametrize(
    ("tables", "logical", "note"),
    [
        ({0: [data(1), link(0)]}, [5], "runs in a circle"),
        ({0: [data(1), link(9)], 9: [data(1), link(5)], 5: [link(9)]}, [5, 6], "runs in a circle"),
        ({0: [data(1), link(10000)]}, [5], "leads out of it"),
        ({0: [data(1), link(0xFFFFFFFF)]}, [5], "leads out of it"),
        ({0: [data(1), link(200)]}, [5], "breaks off"),
        ({}, [], "breaks off"),
    ],
)
def test_partition_chain_that_does_not_end_well(
    tables: Tables, logical: list[int], note: str
) -> None:
    table = table_of(with_logicals(tables))
    assert numbers(table) == [1, 2, *logical]
    assert table.notes == (CHAIN + note,)


@pytest.mark.parametrize("count", [100, 101, 500])
@pytest.mark.parametrize("filled", [True, False])
def test_partition_chain_is_followed_100_links(count: int, filled: bool) -> None:
    content = [data(1, 1)] if filled else []
    tables = {2 * n: [*content, link(2 * n + 2)] for n in range(count - 1)}
    table, asked = answer(with_logicals(tables | {2 * count - 2: content}))
    assert table is not None
    assert len(table.partitions) == (102 if filled else 2)
    assert len(asked) <= 101
    notes = () if count == 100 else (CHAIN + "goes on after 100: the rest is left out",)
    assert table.notes == notes


def test_partition_chain_is_followed_for_100_partitions() -> None:
    tables = {n: [data(1, 1)] * 3 + [link(n + 1)] for n in range(200)}
    table, asked = answer(with_logicals(tables))
    assert table is not None
    assert 102 <= len(table.partitions) <= 104
    assert len(asked) < 40


def test_partition_outside_its_extended_one_is_noted() -> None:
    table = table_of(with_logicals({0: [data(1, 12000)]}))
    assert numbers(table) == [1, 2, 5]
    assert table.notes == ("partition 5 reaches out of its extended one",)


def test_partition_chains_of_two_extended_ones_share_the_numbers() -> None:
    image = with_mbr([(0, 5, 1000, 100), (0, 0x85, 2000, 100)])
    tables = [(at * 512, table_sector([data(1)])) for at in (1000, 2000)]
    assert numbers(table_of(patched(image, *tables))) == [1, 2, 5, 6]


def test_partition_is_chosen(gpt: bytes, mbr: bytes) -> None:
    table = table_of(gpt)
    by_uuid = f"PARTUUID:{table.partitions[1].uuid}"
    assert [choose(table, which).number for which in ("3", by_uuid, by_uuid.upper())] == [3, 3, 3]
    assert choose(table, "LABEL:EFI and more").number == 1
    assert choose(table, "label:root").number == 9
    table = table_of(mbr)
    assert choose(table, f"PARTUUID:{table.uuid.upper()}-06").number == 6


@pytest.mark.parametrize(
    ("which", "says"),
    [
        ("7", "there is no partition 7; there are 1, 3 and 9"),
        ("03", "there is no partition 03; there are 1, 3 and 9"),
        ("", "there is no partition ; there are 1, 3 and 9"),
        ("9" * 5000, "there are 1, 3 and 9"),
        ("FOO:1", "there is no partition FOO:1; there are 1, 3 and 9"),
        ("LABEL:", "there is no partition LABEL:; there are LABEL:EFI and more and LABEL:root"),
        ("LABEL:Root", "there are LABEL:EFI and more and LABEL:root"),
        ("PARTUUID:", "there are PARTUUID:"),
        ("PARTUUID:x", "there are PARTUUID:"),
    ],
)
def test_partition_that_is_not_there(gpt: bytes, which: str, says: str) -> None:
    with pytest.raises(ImageError) as caught:
        choose(table_of(gpt), which)
    assert says in caught.value.message
    assert caught.value.cure == "name its number, PARTUUID:... or LABEL:..."


def test_partition_that_is_ambiguous_or_a_container(mbr: bytes, gpt: bytes) -> None:
    with pytest.raises(ImageError, match=r"^partition 4 only holds others; there are 1, 2, 5, 6 "):
        choose(table_of(mbr), "4")
    table = table_of(gpt)
    twins = tuple(replace(found, name="twin") for found in table.partitions)
    with pytest.raises(ImageError, match=r"^partitions 1, 3 and 9 are all LABEL:twin; name the n"):
        choose(replace(table, partitions=twins), "LABEL:twin")


def test_partition_errors_name_no_more_than_twenty() -> None:
    table = table_of(with_gpt([(600, 600)] * 30))
    with pytest.raises(ImageError, match=r"there are 1, .*, 20 and 10 more; name"):
        choose(table, "31")
    for entries, says in (([], "there is none"), ([(600, 600)], "there is only 1")):
        with pytest.raises(ImageError, match=says):
            choose(table_of(with_gpt(entries)), "31")


def check_any(image: bytes, size: int | None = None) -> None:
    """Only ImageError leaves, and what is found lies in the image."""
    size = len(image) if size is None else size
    with contextlib.suppress(ImageError):
        table, _ = answer(image, size)
        if table is not None:
            assert numbers(table) == sorted(set(numbers(table)))
            assert all(p.start >= 0 and 0 < p.length <= size - p.start for p in table.partitions)
            for found in table.partitions:
                with contextlib.suppress(ImageError):
                    assert choose(table, str(found.number)) == found


@pytest.fixture(scope="module")
def bases(gpt: bytes, mbr: bytes) -> list[bytes]:
    return [gpt[: 4 * MIB - 512] + gpt[-512:], gpt, mbr, with_gpt([(600, 700)], 4096, 256, 8)]


# Where the tables lie: the MBR and the GPT, the tables of logical partitions, the backup.
places = st.one_of(
    st.integers(440, 640),
    st.integers(0, HEAD),
    st.integers(6144 * 512 + 440, 6144 * 512 + 511),
    st.integers(8248 * 512 + 440, 8248 * 512 + 511),
    st.integers(SIZE - HEAD, SIZE - 1),
)


@settings(max_examples=400)
@given(
    st.integers(0, 3),
    st.lists(st.tuples(places, st.binary(min_size=1, max_size=8)), max_size=6),
    st.one_of(st.just(SIZE), st.integers(0, SIZE), st.integers(0, HEAD)),
)
def test_partition_table_survives_damage(
    bases: list[bytes], base: int, patches: list[tuple[int, bytes]], size: int
) -> None:
    image = patched(bases[base], *patches)
    check_any(image, min(size, len(image)))


@settings(max_examples=200)
@given(st.binary(max_size=2048), st.booleans(), st.integers(0, 1 << 16))
def test_partition_table_survives_any_bytes(head: bytes, signed: bool, more: int) -> None:
    check_any((patched(head, (510, b"\x55\xaa")) if signed else head) + bytes(more))


sectors = st.one_of(st.integers(0, 64), st.integers(0, 0xFFFFFFFF))
entry = st.tuples(st.sampled_from([0, 0x80]), st.sampled_from([0, 5, 15, 0x83]), sectors, sectors)
table_sectors = st.lists(entry, max_size=4).map(table_sector)


@given(st.lists(table_sectors, min_size=1, max_size=60))
def test_partition_table_survives_any_chain(sectors: list[bytes]) -> None:
    check_any(b"".join(sectors))


def test_partition_table_survives_a_sector_that_repeats() -> None:
    """Every sector is a table with a link elsewhere: the longest chain that can be made."""
    shuffled = random.Random(1).sample(range(1, 4000), 3999)
    for content in ([data(1, 1)], [data(1, 1)] * 3, []):
        chain = {n: [*content, link(shuffled[n - 1])] for n in range(1, 4000)}
        check_any(with_logicals({0: [link(1)]} | chain))


numbers_64 = st.one_of(st.integers(0, 40), st.integers(0, (1 << 64) - 1))
numbers_32 = st.one_of(st.sampled_from([0, 1, 92, 128, 512, 1024]), st.integers(0, (1 << 32) - 1))


@settings(max_examples=200)
@given(
    st.sampled_from([512, 4096]),
    st.lists(numbers_64, min_size=3, max_size=3),
    st.one_of(st.just(92), numbers_32),
    st.tuples(numbers_64, numbers_32, numbers_32),
    st.binary(max_size=600),
)
def test_partition_table_survives_any_header_whose_checksum_is_right(
    sector: int, limits: list[int], header_size: int, layout: tuple[int, int, int], content: bytes
) -> None:
    fields = [b"EFI PART", 0x10000, header_size, 0, 0, 1, *limits, bytes(16), *layout]
    places, slots, entry_size = layout
    held = content.ljust(min(slots * entry_size, 1 << 18), b"\0")
    header = struct.pack("<8s4L4Q16sQ3L", *fields, zlib.crc32(held)).ljust(sector, b"\0")
    header = patched(header, (16, struct.pack("<L", zlib.crc32(header[:header_size]))))
    image = patched(with_mbr([(0, 0xEE, 1, 99)], size=MIB), (sector, header))
    start = places * sector
    check_any(patched(image, (start, held))[:MIB] if start < MIB else image)


def test_partition_table_asks_for_little_where_all_headers_lie() -> None:
    """Four headers whose entries are as long as can be, and wrong."""
    image = with_gpt([], 512, 256, 1024, entries_at=4000)
    big = with_gpt([], 4096, 256, 1024, entries_at=500)
    last = SIZE // 512 - 1
    header = patched(image[512:604], (24, struct.pack("<Q", last)), (16, bytes(4)))
    header = patched(header, (16, struct.pack("<L", zlib.crc32(header))))
    crafted = patched(image, (4096, big[4096:4200]), (SIZE - 512, header), (4000 * 512, b"junk"),
                      (500 * 4096, b"junk"))  # fmt: skip
    with pytest.raises(ImageError, match="damaged"):
        answer(crafted)

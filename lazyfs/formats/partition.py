"""The partitions of a disk image: GPT and MBR. Pure.

``read_table`` requests the bytes that it needs and parses them. Tables are recognised, and their
partitions numbered, as in Linux:

- GPT: UEFI specification 2.10, section 5.3; kernel, ``block/partitions/efi.c``;
- MBR: UEFI specification 2.10, section 5.2; kernel, ``block/partitions/msdos.c``;
- a filesystem's boot sector is distinguished from an MBR as in libblkid of util-linux
  (``libblkid/src/partitions/dos.c``, ``superblocks/vfat.c``).

Unlike the kernel, it also reads the remainder of a table in a truncated image.
"""

import binascii
import struct
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from lazyfs.core.address import quoted
from lazyfs.core.device import Device
from lazyfs.core.errors import ImageError, UsageError
from lazyfs.core.ranges import Span, clamp
from lazyfs.formats.layer import Layer, Opening
from lazyfs.formats.reading import run
from lazyfs.formats.slice import SliceDevice

T = TypeVar("T")
# Yields (offset, length) in bytes, and is sent the bytes.
Reads = Generator[tuple[int, int], bytes, T]

HEAD = 6 * 4096  # bytes: the MBR, and a GPT header with 128 entries, for any sector size
MOST_ENTRIES = 1024
MOST_BYTES = 256 << 10  # of GPT entries
MOST_LOGICAL = 100  # the kernel's limit

_SECTORS = (512, 4096)  # bytes, of a GPT
_HEADER = struct.Struct("<8s4L4Q16sQ3L")
_HEADER_CRC = slice(16, 20)
_GPT_ENTRY = struct.Struct("<16s16sQQQ72s")
_MBR_SECTOR = 512
_MBR_ENTRY = struct.Struct("<B3xB3xLL")
_MBR_ENTRIES = range(446, 510, 16)
_MBR_ID = struct.Struct("<L")
_FAT = struct.Struct("<11xHBHB4xB")
_AIX = b"\xc9\xc2\xd4\xc1"
_PROTECTIVE = 0xEE
_EXTENDED = (0x05, 0x0F, 0x85)
_MOST_LISTED = 20  # partitions that an error names

_GPT_TYPES = {
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI System",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "024dee41-33e7-11d3-9d69-0008c781f39f": "MBR partition scheme",
    "9e1a2d38-c612-4316-aa26-8b49521e5a8b": "PowerPC PReP boot",
    "e3c9e316-0b5c-4db8-817d-f92df00215ae": "Microsoft reserved",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
    "5808c8aa-7e8f-42e0-85d2-e1e90434cfb3": "Microsoft LDM metadata",
    "af9b60a0-1431-4f62-bc68-3311714a69ad": "Microsoft LDM data",
    "de94bba4-06d1-4d40-a16a-bfd50179d6ac": "Windows recovery environment",
    "e75caf8f-f680-4cee-afa3-b001e56efc2d": "Microsoft Storage Spaces",
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux filesystem",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "3b8f8425-20e0-4f3b-907f-1a25a76f98e8": "Linux server data",
    "933ac7e1-2eb4-4f13-b844-0e14e2aef915": "Linux home",
    "4d21b016-b534-45c2-a9fb-5c16e091fd2d": "Linux variable data",
    "7ec6f557-3bc5-4aca-b293-16ef5df639d1": "Linux temporary data",
    "8da63339-0007-60c0-c436-083ac8230908": "Linux reserved",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux extended boot",
    "ca7d7ccb-63ed-4c53-861c-1742536059cc": "Linux LUKS",
    "44479540-f297-41b2-9af7-d131d5f0458a": "Linux root (x86)",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "69dad710-2ce4-4e3c-b16c-21a1d49abed3": "Linux root (ARM)",
    "b921b045-1df0-41c3-af44-4c6f280d3fae": "Linux root (ARM-64)",
    "72ec70a6-cf74-40e6-bd49-4bda08e8f224": "Linux root (RISC-V-64)",
    "c31c45e6-3f39-412e-80fb-4809c4980599": "Linux root (PPC64LE)",
    "5eead9a9-fe09-4a1e-a1d7-520d00531306": "Linux root (S390X)",
    "8484680c-9521-48c6-9c11-b0720656f69e": "Linux /usr (x86-64)",
    "b0e01050-ee5f-4390-949a-9101b17104e9": "Linux /usr (ARM-64)",
    "2c7357ed-ebd2-46d9-aec1-23d437ec2bf5": "Linux root verity (x86-64)",
    "df3300ce-d69f-4c92-978c-9bfb0f38d820": "Linux root verity (ARM-64)",
    "77ff5f63-e7b6-4633-acf4-1565b864c0e6": "Linux /usr verity (x86-64)",
    "6e11a4e7-fbca-4ded-b9e9-e1a512bb664e": "Linux /usr verity (ARM-64)",
    "516e7cb4-6ecf-11d6-8ff8-00022d09712b": "FreeBSD data",
    "83bd6b9d-7f41-11dc-be0b-001560b84f0f": "FreeBSD boot",
    "516e7cb5-6ecf-11d6-8ff8-00022d09712b": "FreeBSD swap",
    "516e7cb6-6ecf-11d6-8ff8-00022d09712b": "FreeBSD UFS",
    "516e7cba-6ecf-11d6-8ff8-00022d09712b": "FreeBSD ZFS",
    "48465300-0000-11aa-aa11-00306543ecac": "Apple HFS/HFS+",
    "7c3457ef-0000-11aa-aa11-00306543ecac": "Apple APFS",
    "fe3a2a5d-4f32-41a7-b725-accc3285a309": "ChromeOS kernel",
    "3cb8e202-3b7e-47dd-8a3c-7ff2a13cfcec": "ChromeOS root fs",
}

_MBR_TYPES = {
    0x00: "Empty",
    0x01: "FAT12",
    0x04: "FAT16 <32M",
    0x05: "Extended",
    0x06: "FAT16",
    0x07: "HPFS/NTFS/exFAT",
    0x0B: "W95 FAT32",
    0x0C: "W95 FAT32 (LBA)",
    0x0E: "W95 FAT16 (LBA)",
    0x0F: "Extended",
    0x11: "Hidden FAT12",
    0x16: "Hidden FAT16",
    0x17: "Hidden HPFS/NTFS",
    0x1B: "Hidden W95 FAT32",
    0x1C: "Hidden W95 FAT32 (LBA)",
    0x27: "Hidden NTFS WinRE",
    0x41: "PPC PReP Boot",
    0x42: "SFS",
    0x81: "Minix / old Linux",
    0x82: "Linux swap / Solaris",
    0x83: "Linux",
    0x85: "Extended",
    0x8E: "Linux LVM",
    0xA5: "FreeBSD",
    0xA6: "OpenBSD",
    0xA9: "NetBSD",
    0xAF: "HFS / HFS+",
    0xBF: "Solaris",
    0xEA: "Linux extended boot",
    0xEF: "EFI (FAT-12/16/32)",
    0xFD: "Linux raid autodetect",
}


@dataclass(frozen=True)
class Partition:
    """A partition of an image.

    ``number``: as in Linux.
    ``start``, ``length``: bytes, all within the image.
    ``type``: a human-readable name if well known, else ``type_id``.
    ``type_id``: the type's GUID in lower case, or like ``0x83``.
    ``name``: from the GPT; empty in an MBR.
    ``uuid``: Linux's PARTUUID, in lower case; empty if the MBR has no disk id.
    ``container``: whether it only contains the logical partitions.
    """

    number: int
    start: int
    length: int
    type: str
    type_id: str
    name: str
    uuid: str
    container: bool = False


@dataclass(frozen=True)
class Table:
    """A partition table.

    ``kind``: ``GPT`` or ``MBR``.
    ``sector``: bytes.
    ``uuid``: the disk's GUID, or the MBR's disk id as 8 hexadecimal digits; empty if that is 0.
    ``partitions``: in the order of their numbers.
    ``notes``: oddities, for the user.
    """

    kind: str
    sector: int
    uuid: str
    partitions: tuple[Partition, ...]
    notes: tuple[str, ...]


def read_table(size: int) -> Reads[Table | None]:
    """The partition table of an image of ``size`` bytes; None if there is none.

    Yields (offset, length) in bytes, always within the image, and must be sent those bytes. The
    usual table takes one request, and one for each logical partition.

    Raises ImageError if there is a GPT that cannot be used.
    """
    image = _Image(size)
    head = yield from image.read(0, HEAD)
    entries = _primaries(head)
    found = _Found(size)
    if any(entry.type == _PROTECTIVE for entry in entries):
        return (yield from _protected_gpt(image, entries, found))
    if _begins_filesystem(head, entries):
        return None
    if any(entry.type and entry.length for entry in entries):
        return (yield from _mbr(image, head, entries, found))
    return (yield from _bare_gpt(image, found))


def choose(table: Table, which: str) -> Partition:
    """The partition that ``which`` names: ``2``, ``PARTUUID:...`` or ``LABEL:...``.

    UUIDs are case-insensitive, labels (names in the GPT) case-sensitive. Raises ImageError if none
    or several match, or if it only contains others.
    """
    key, wanted = _key(which)
    fitting = [p for p in table.partitions if wanted and _address(p, key) == wanted]
    if not fitting:
        message = f"there is no partition {which}; {_what_there_is(table, key)}"
        raise ImageError(message, "name its number, PARTUUID:... or LABEL:...")
    if len(fitting) > 1:
        numbers = _listed([str(partition.number) for partition in fitting])
        raise ImageError(f"partitions {numbers} are all {which}", "name the number of one")
    if fitting[0].container:
        message = f"partition {which} only holds others; {_what_there_is(table)}"
        raise ImageError(message, "name one that has a content of its own")
    return fitting[0]


def _key(which: str) -> tuple[str, str]:
    """The kind of an address (empty: a number), and its value."""
    key, colon, value = which.partition(":")
    if not colon:
        return "", which
    return key.upper(), value if key.upper() == "LABEL" else value.lower()


def _address(partition: Partition, key: str) -> str:
    """The partition's address of this kind; empty if it has none."""
    addresses = {"": str(partition.number), "PARTUUID": partition.uuid, "LABEL": partition.name}
    return addresses.get(key, "")


def _what_there_is(table: Table, key: str = "") -> str:
    usable = [partition for partition in table.partitions if not partition.container]
    names = [f"{key}:{_address(p, key)}" for p in usable if key and _address(p, key)]
    names = names or [str(partition.number) for partition in usable]
    if not names:
        return "there is none"
    return f"there are {_listed(names)}" if len(names) > 1 else f"there is only {names[0]}"


def _listed(names: Sequence[str]) -> str:
    """``1, 2 and 5``"""
    if len(names) > _MOST_LISTED:
        names = [*names[:_MOST_LISTED], f"{len(names) - _MOST_LISTED} more"]
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


class _Image:
    """The image, with the bytes read so far, which are not requested again."""

    def __init__(self, size: int) -> None:
        self.size = size
        self._known: list[tuple[int, bytes]] = []

    def read(self, offset: int, length: int) -> Reads[bytes]:
        """Read these bytes; fewer at the end of the image."""
        wanted = clamp(offset, length, self.size)
        if not wanted.length:
            return b""
        for start, content in self._known:
            if start <= wanted.start and wanted.stop <= start + len(content):
                return content[wanted.start - start : wanted.stop - start]
        content = yield wanted.start, wanted.length
        self._known.append((wanted.start, content))
        return content


class _Found:
    """The partitions found, in the order of their numbers, and the oddities."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.partitions: list[Partition] = []
        self.notes: list[str] = []

    def add(self, partition: Partition) -> None:
        """Add a partition, cut at the end of the image; an empty one leaves only a note."""
        inside = clamp(partition.start, partition.length, self._size).length
        if inside > 0:
            self.partitions.append(replace(partition, length=inside))
        if inside != partition.length or not inside:
            self.notes.append(f"partition {partition.number} {self._oddity(partition)}")

    def _oddity(self, partition: Partition) -> str:
        if partition.length <= 0:
            return "has no length: it is left out"
        if partition.start >= self._size:
            return "starts past the end of the image: it is left out"
        return "reaches past the end of the image: it is cut there"

    def table(self, kind: str, sector: int, uuid: str) -> Table:
        return Table(kind, sector, uuid, tuple(self.partitions), tuple(self.notes))


class _Header(NamedTuple):
    """A GPT header with a valid checksum. ``sector``: bytes. The other fields are as on disk."""

    sector: int
    alternate: int
    disk: bytes
    entries_at: int
    slots: int
    entry_size: int
    entries_crc: int

    @property
    def entries_length(self) -> int:
        return self.slots * self.entry_size


class _Gpt(NamedTuple):
    """A header and its entries."""

    header: _Header
    entries: bytes


def _protected_gpt(image: _Image, entries: list["_Entry"], found: _Found) -> Reads[Table]:
    """The GPT that a protective MBR announces: the primary, else its backup."""
    if any(entry.type not in (0, _PROTECTIVE) for entry in entries):
        found.notes.append("hybrid MBR: the GPT is used")
    gpt = yield from _primary_gpt(image)
    if gpt is None:
        gpt = yield from _backup_gpt(image)
        if gpt is None:
            raise ImageError("its GPT is damaged, and so is the backup")
        found.notes.append("the primary GPT is damaged: its backup is used")
    elif gpt.header.alternate * gpt.header.sector >= image.size:
        found.notes.append("the image ends before the backup of its GPT: it may have been cut off")
    return _table_of(gpt, found)


def _bare_gpt(image: _Image, found: _Found) -> Reads[Table | None]:
    """A GPT without an MBR, which UEFI accepts and Linux does not."""
    gpt = yield from _primary_gpt(image)
    if gpt is None:
        return None
    found.notes.append("no MBR protects the GPT: Linux uses it only with the kernel parameter gpt")
    return _table_of(gpt, found)


def _primary_gpt(image: _Image) -> Reads[_Gpt | None]:
    """The first intact one: a header for small sectors may be stale."""
    for sector in _SECTORS:
        header = yield from _header(image, 1, sector)
        gpt = header and (yield from _with_entries(image, header))
        if gpt:
            return gpt
    return None


def _backup_gpt(image: _Image) -> Reads[_Gpt | None]:
    """The backup in the last sector."""
    # The entries are usually in front of it, so one request gets both.
    yield from image.read(max(0, image.size - HEAD), HEAD)
    for sector in _SECTORS:
        header = yield from _header(image, image.size // sector - 1, sector)
        if header:
            return (yield from _with_entries(image, header))
    return None


def _header(image: _Image, lba: int, sector: int) -> Reads[_Header | None]:
    """The GPT header in this sector; None if missing or damaged."""
    block = yield from image.read(lba * sector, sector)
    if len(block) < sector:
        return None
    magic, _, length, crc, _, here, alternate, _, _, disk, *entries = _HEADER.unpack_from(block)
    if magic != b"EFI PART" or here != lba or not _HEADER.size <= length <= sector:
        return None
    content = bytearray(block[:length])
    content[_HEADER_CRC] = bytes(4)
    if binascii.crc32(content) != crc:
        return None
    return _Header(sector, alternate, disk, *entries)


def _with_entries(image: _Image, header: _Header) -> Reads[_Gpt | None]:
    """The header with its entries; None if they are damaged. Raises ImageError if too many."""
    if header.entry_size < _GPT_ENTRY.size or header.entry_size % 8 or not header.slots:
        return None
    if header.slots > MOST_ENTRIES or header.entries_length > MOST_BYTES:
        raise ImageError(
            f"its GPT has {header.slots} entries of {header.entry_size} bytes",
            f"lazyfs reads {MOST_ENTRIES} entries, and {MOST_BYTES} bytes of them, at most",
        )
    entries = yield from image.read(header.entries_at * header.sector, header.entries_length)
    damaged = binascii.crc32(entries) != header.entries_crc
    return None if len(entries) < header.entries_length or damaged else _Gpt(header, entries)


def _table_of(gpt: _Gpt, found: _Found) -> Table:
    for partition in _gpt_partitions(gpt):
        found.add(partition)
    return found.table("GPT", gpt.header.sector, _guid(gpt.header.disk))


def _gpt_partitions(gpt: _Gpt) -> Iterator[Partition]:
    sector = gpt.header.sector
    for index in range(gpt.header.slots):
        fields = _GPT_ENTRY.unpack_from(gpt.entries, index * gpt.header.entry_size)
        kind, unique, first, last, _, name = fields
        if any(kind):
            type_id = _guid(kind)
            yield Partition(
                number=index + 1,
                start=first * sector,
                length=(last - first + 1) * sector,
                type=_GPT_TYPES.get(type_id, type_id),
                type_id=type_id,
                name=name.decode("utf-16-le", "replace").partition("\0")[0],
                uuid=_guid(unique),
            )


def _guid(content: bytes) -> str:
    """A GUID as text: its first three fields are little-endian (UEFI specification, appendix A)."""
    first, second, third = struct.unpack_from("<LHH", content)
    return f"{first:08x}-{second:04x}-{third:04x}-{content[8:10].hex()}-{content[10:16].hex()}"


class _Entry(NamedTuple):
    """An entry of an MBR or of a logical partition's table. In sectors of 512 bytes."""

    flag: int
    type: int
    start: int
    length: int

    @property
    def is_extended(self) -> bool:
        return self.length > 0 and self.type in _EXTENDED


def _signed(sector: bytes) -> bool:
    return sector[510:512] == b"\x55\xaa"


def _entries(sector: bytes) -> list[_Entry]:
    return [_Entry(*_MBR_ENTRY.unpack_from(sector, offset)) for offset in _MBR_ENTRIES]


def _primaries(head: bytes) -> list[_Entry]:
    """The four entries of an MBR; empty if it is not one."""
    if not _signed(head) or head.startswith(_AIX):
        return []
    entries = _entries(head)
    return entries if all(entry.flag in (0x00, 0x80) for entry in entries) else []


def _begins_filesystem(head: bytes, entries: list[_Entry]) -> bool:
    """Whether a filesystem begins here: its boot sector is signed like an MBR.

    An MBR may contain leftovers that look like FAT's parameters; then its first partition is
    elsewhere, whereas the MBR in mkfs.fat's boot sector has only a partition that starts with it.
    """
    if not _signed(head):
        return False
    if head.startswith(b"NTFS    ", 3):
        return not any(head[14:21])
    if head.startswith(b"EXFAT   ", 3):
        return not any(head[11:64])
    elsewhere = bool(entries) and all((entries[0].type, entries[0].start, entries[0].length))
    return _has_fat_parameters(head) and not elsewhere


def _has_fat_parameters(head: bytes) -> bool:
    sector, cluster, reserved, fats, media = _FAT.unpack_from(head)
    sizes = sector in (512, 1024, 2048, 4096) and cluster.bit_count() == 1
    return sizes and reserved > 0 and fats > 0 and (media == 0xF0 or media >= 0xF8)


def _mbr(image: _Image, head: bytes, entries: list[_Entry], found: _Found) -> Reads[Table]:
    disk: int = _MBR_ID.unpack_from(head, 440)[0]
    for number, entry in enumerate(entries, 1):
        if entry.type or entry.length:
            found.add(_mbr_partition(entry, number, disk))
    logicals = _Logicals(image, disk, found)
    for number, entry in enumerate(entries, 1):
        if entry.is_extended:
            yield from logicals.walk(entry, number)
    for sector in _SECTORS:
        if (yield from _header(image, 1, sector)):
            found.notes.append("there is a GPT, too, but no MBR protects it: the MBR is used")
    return found.table("MBR", _MBR_SECTOR, f"{disk:08x}" if disk else "")


def _mbr_partition(entry: _Entry, number: int, disk: int, base: int = 0) -> Partition:
    """``base``: the sector that the entry's start is relative to."""
    type_id = f"0x{entry.type:02x}"
    return Partition(
        number=number,
        start=(base + entry.start) * _MBR_SECTOR,
        length=entry.length * _MBR_SECTOR,
        type=_MBR_TYPES.get(entry.type, type_id),
        type_id=type_id,
        name="",
        uuid=f"{disk:08x}-{number:02x}" if disk else "",
        container=entry.is_extended,
    )


class _Logicals:
    """The logical partitions: a chain of tables in an extended one, as in ``parse_extended``.

    A table has, in any order, the partition that follows it (its start is relative to the table)
    and a link to the next table (its start is relative to the extended partition).
    """

    def __init__(self, image: _Image, disk: int, found: _Found) -> None:
        self._image = image
        self._disk = disk
        self._found = found
        self._count = 0
        self._seen: set[int] = set()  # sectors of tables

    def walk(self, whole: _Entry, number: int) -> Reads[None]:
        """Add the logical partitions of the extended partition ``whole``."""
        link: _Entry | None = whole._replace(start=0)
        while link:
            here = whole.start + link.start
            fault = self._fault(whole, link)
            if not fault:
                sector = yield from self._image.read(here * _MBR_SECTOR, _MBR_SECTOR)
                fault = "" if _signed(sector) else "breaks off"
            if fault:
                self._found.notes.append(
                    f"the list of logical partitions in partition {number} {fault}"
                )
                return
            self._seen.add(here)
            entries = _entries(sector)
            self._take(entries, here, whole, link)
            link = next((entry for entry in entries if entry.is_extended), None)

    def _fault(self, whole: _Entry, link: _Entry) -> str:
        """The fault of this link; empty for none."""
        if whole.start + link.start in self._seen:
            return "runs in a circle"
        if link.start >= whole.length:
            return "leads out of it"
        if max(len(self._seen), self._count) >= MOST_LOGICAL:
            return f"goes on after {MOST_LOGICAL}: the rest is left out"
        return ""

    def _take(self, entries: list[_Entry], here: int, whole: _Entry, link: _Entry) -> None:
        """Add the partitions of the table at the sector ``here``."""
        for index, entry in enumerate(entries):
            if not entry.length or entry.is_extended:
                continue
            if index >= 2 and not _fits(entry, here, whole, link):
                continue
            partition = _mbr_partition(entry, 5 + self._count, self._disk, here)
            self._count += 1
            if not _fits(entry, here, whole, whole):
                number = partition.number
                self._found.notes.append(f"partition {number} reaches out of its extended one")
            self._found.add(partition)


def _fits(entry: _Entry, here: int, whole: _Entry, link: _Entry) -> bool:
    """Whether a logical partition is within the bounds: the last entries may be garbage."""
    end = entry.start + entry.length
    return end <= link.length and here + end <= whole.start + whole.length


def _parse(words: Mapping[str, str]) -> str:
    """The address of the partition, for ``choose``. Raises UsageError."""
    which = words["part"]
    kind, colon, name = which.partition(":")
    if which.isascii() and which.isdigit():
        return str(int(which))
    if colon and name and kind.upper() in ("PARTUUID", "LABEL"):
        return f"{kind.upper()}:{name}"
    raise UsageError(
        f"{which!r} names no partition", "write part=2, part=PARTUUID:... or part=LABEL:..."
    )


def _as_text(which: str) -> str:
    return f"part={quoted(which)}"


def _named(name: str, which: str) -> str:
    kind, _, value = which.rpartition(":")
    safe = "".join(c if c.isprintable() and c != "/" else "_" for c in value)
    return f"{name}.{safe}" if kind else f"{name}.part{value}"


async def _open(below: Device, which: str) -> Layer:
    table = await run(read_table(below.identity.size), below)
    if table is None:
        raise ImageError("there is no partition table", "see what it is: lazyfs info")
    found = choose(table, which)
    window = Span(found.start, found.start + found.length)
    return Layer(_as_text(str(found.number)), SliceDevice(below, window), window)


OPENING = Opening(("part",), _parse, _as_text, _named, _open)

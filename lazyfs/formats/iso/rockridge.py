"""Rock Ridge: the POSIX attributes of a file, in a directory record's system use. Pure.

The entries of a record may continue in areas elsewhere in the image (SUSP, "CE"); an ``Entries``
takes area after area, and tells where the next one is. Unknown entries are skipped, as SUSP
demands.
"""

import stat
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.formats.iso.records import seconds
from lazyfs.formats.tree import Kind, Node

MAX_AREA = 2048  # bytes in a continuation area: it is within a block
MAX_AREAS = 16  # for one record

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
    stat.S_IFSOCK: Kind.SOCKET,
}
_XA_LENGTH = 14  # an extended-attribute record of CD-ROM XA, which comes first

_ZISOFS_SIZE = {b"pz": "<L", b"PZ": "<Q"}  # by the version of zisofs

_CONTINUES = 1  # flag of a symbolic link's component: the next one belongs to the same name
_FIXED_COMPONENTS = {2: b".", 4: b"..", 8: b"/"}


class Area(NamedTuple):
    """A continuation area: a block, and the offset from it and the length in bytes."""

    block: int
    offset: int
    length: int


def bytes_to_skip(system_use: bytes) -> int | None:
    """The bytes before SUSP's entries in each system use, from that of the root's own record.

    None if the image does not use SUSP.
    """
    for start in (0, _XA_LENGTH):
        entry = system_use[start : start + 7]
        if entry[:3] == b"SP\x07" and entry[4:6] == b"\xbe\xef":
            return entry[6]
    return None


@dataclass(slots=True)
class Entries:
    """The attributes from the entries of one directory record, so far."""

    is_there: bool = False  # whether there was any entry specific to Rock Ridge
    continued: Area | None = None
    moved_to: int | None = None  # the block of the directory that belongs here
    is_moved: bool = False  # whether the record belongs elsewhere
    name: bytes = b""
    mode: int | None = None
    nlink: int = 1
    uid: int = 0
    gid: int = 0
    time: bytes = b""
    target: bytes | None = None
    goes_on: bool = False  # whether the last component of the target is incomplete
    device: tuple[int, int] = (0, 0)
    zisofs_size: int | None = None
    is_sparse: bool = False

    def take(self, area: bytes) -> None:
        """Take the entries of the record itself, or of the area ``continued``."""
        self.continued = None
        offset = 0
        while offset + 4 <= len(area):
            length = area[offset + 2]
            if length < 4 or offset + length > len(area):
                break
            entry = area[offset : offset + length]
            if entry[:2] == b"ST":
                break
            with suppress(struct.error, IndexError):  # too short for its type
                self._take(entry)
            offset += length

    def node(self, plain: Node) -> Node:
        """``plain`` (the node from ISO 9660) with the attributes from Rock Ridge."""
        node = plain
        if self.name:
            node = node._replace(name=self.name.decode("utf-8", "surrogateescape"))
        if self.time:
            node = node._replace(mtime=seconds(self.time))
        if self.mode is not None:
            node = node._replace(
                kind=self._kind(plain.kind),
                mode=stat.S_IMODE(self.mode),
                nlink=self.nlink,
                uid=self.uid,
                gid=self.gid,
            )
        if node.kind is Kind.SYMLINK:
            target = self.target or b""
            text = target.decode("utf-8", "surrogateescape")
            return node._replace(target=text, size=len(target), extents=())
        if node.kind is not Kind.FILE:
            return node._replace(device=self.device, size=0, extents=())
        if self.zisofs_size is not None:
            node = node._replace(compressed="zisofs", size=self.zisofs_size)
        return node._replace(problem="it is written as a sparse file") if self.is_sparse else node

    def _kind(self, plain: Kind) -> Kind:
        """The kind from the mode; but ISO 9660, which has the data, decides about directories."""
        kind = _KINDS.get(stat.S_IFMT(self.mode or 0), plain)
        if self.moved_to is not None or Kind.DIRECTORY in (kind, plain):
            return plain
        return kind

    def _take(self, entry: bytes) -> None:
        signature = entry[:2]
        if signature == b"PX":
            attributes = struct.unpack_from("<L4xL4xL4xL", entry, 4)
            self.mode, self.nlink, self.uid, self.gid = attributes
        elif signature == b"NM":
            if not entry[4] & 0b110:  # flags for "." and "..", which have no name here
                self.name += entry[5:]
        elif signature == b"TF":
            self.time = _modification(entry)
        elif signature == b"CE":
            self.continued = Area(*struct.unpack_from("<L4xL4xL", entry, 4))
            return
        else:
            self._take_rare(entry)
            return
        self.is_there = True

    def _take_rare(self, entry: bytes) -> None:
        """Take an entry specific to special files."""
        signature = entry[:2]
        if signature == b"SL":
            self._take_components(entry[5:])
        elif signature == b"CL":
            (self.moved_to,) = struct.unpack_from("<L", entry, 4)
        elif signature == b"RE":
            self.is_moved = True
        elif signature == b"PN":
            self.device = _device(*struct.unpack_from("<L4xL", entry, 4))
        elif signature == b"SF":
            self.is_sparse = True
        elif signature == b"ZF" and entry[4:6] in _ZISOFS_SIZE:
            (self.zisofs_size,) = struct.unpack_from(_ZISOFS_SIZE[entry[4:6]], entry, 8)

    def _take_components(self, components: bytes) -> None:
        """Append components to a symbolic link's target."""
        target = self.target or b""
        offset = 0
        while offset + 2 <= len(components):
            flags, length = components[offset], components[offset + 1]
            name = _FIXED_COMPONENTS.get(flags & 0b1110)
            if name is None:
                name = components[offset + 2 : offset + 2 + length]
            if name == b"/":
                target = name
            elif self.goes_on or not target or target.endswith(b"/"):
                target += name
            else:
                target += b"/" + name
            self.goes_on = bool(flags & _CONTINUES)
            offset += 2 + length
        self.target = target


def _modification(entry: bytes) -> bytes:
    """The recorded time of the last modification; empty for none."""
    flags = entry[4]
    size = 17 if flags & 0x80 else 7
    if not flags & 0b10:
        return b""
    place = 5 + (flags & 1) * size
    time = entry[place : place + size]
    return time if len(time) == size else b""


def _device(high: int, low: int) -> tuple[int, int]:
    """Major and minor number. Some writers put one into each half, some both into the low one."""
    if high:
        return high, low
    return low >> 8 & 0xFFF, low & 0xFF | low >> 12 & 0xFFF00

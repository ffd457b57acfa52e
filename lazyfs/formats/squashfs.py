"""Locating the metadata of a squashfs. Pure.

A squashfs (version 4, Documentation/filesystems/squashfs.rst of the kernel) begins with a
superblock of 96 bytes; file data follow; the tables (inodes, directories, fragments, export, ids,
xattrs) come last, up to ``bytes_used``. ``find`` reads only these, in small scattered pieces, so
over a network it pays to fetch them at once.
"""

import struct

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span

SUPERBLOCK = 96  # bytes
_NAME_ONE = "name a squashfs, or leave out squashfs:"
_MAGIC = 0x73717368
_FIELDS = struct.Struct("<5I6H8Q")


def tables(superblock: bytes, length: int) -> Span:
    """The range of the tables in a squashfs of ``length`` bytes. Raises ImageError."""
    if len(superblock) < SUPERBLOCK:
        raise ImageError("it is too short to be a squashfs", _NAME_ONE)
    fields = _FIELDS.unpack_from(superblock)
    magic, major = fields[0], fields[9]
    if magic != _MAGIC or major != 4:
        raise ImageError("it is not a squashfs of version 4", _NAME_ONE)
    bytes_used, inodes = fields[12], fields[15]
    if not SUPERBLOCK <= inodes < bytes_used <= length:
        raise ImageError("it is a damaged squashfs: its tables are not in it")
    return Span(inodes, bytes_used)

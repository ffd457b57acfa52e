"""Directory records of ISO 9660 (ECMA-119, clause 9.1) and their times. Pure."""

import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

_FIXED = struct.Struct("<BBL4xL4x7sBBB4xB")  # both-endian numbers: the little-endian half

_DIRECTORY, _ASSOCIATED, _CONTINUED = 0x02, 0x04, 0x80


class Record(NamedTuple):
    """One record: an entry of a directory, or a part of the entry of a file in several pieces."""

    identifier: bytes
    block: int  # the first block of the data
    length: int
    time: bytes
    flags: int
    interleaved: bool
    system_use: bytes

    @property
    def is_directory(self) -> bool:
        return bool(self.flags & _DIRECTORY)

    @property
    def is_associated(self) -> bool:
        """Whether it belongs to the file of the same name, like a resource fork."""
        return bool(self.flags & _ASSOCIATED)

    @property
    def is_continued(self) -> bool:
        """Whether the next record continues the same file."""
        return bool(self.flags & _CONTINUED)


def parse(data: bytes) -> Record | None:
    """Parse the record in ``data``; None if it is invalid."""
    if len(data) < _FIXED.size + 1:
        return None
    _, attributes, block, length, time, flags, unit, gap, name_length = _FIXED.unpack_from(data)
    end = _FIXED.size + name_length
    if not name_length or end > len(data):
        return None
    system_use = data[end + (name_length % 2 == 0) :]
    # The data follow the extended attribute record.
    place = block + attributes
    interleaved = bool(unit or gap)
    return Record(data[_FIXED.size : end], place, length, time, flags, interleaved, system_use)


def records(directory: bytes, block_size: int) -> Iterator[Record | None]:
    """The records of a directory, in order; None for an invalid one.

    Records never cross the end of a block: a length of zero means that the next one begins there.
    """
    offset = 0
    while offset < len(directory):
        length = directory[offset]
        block_end = offset - offset % block_size + block_size
        if length == 0:
            offset = block_end
            continue
        yield parse(directory[offset : min(offset + length, block_end)])
        offset += length


@lru_cache(maxsize=4096)
def seconds(time: bytes) -> int:
    """Seconds since the epoch, from 7 bytes (clause 9.1.5) or 17 (8.4.26.1); 0 if invalid."""
    try:
        if len(time) == 7:
            year, month, day, hour, minute, second = time[:6]
            moment = datetime(1900 + year, month, day, hour, minute, second, tzinfo=UTC)
        else:
            moment = datetime.strptime(time[:14].decode(), "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        return 0
    quarters = int.from_bytes(time[-1:], signed=True)  # of an hour, east of Greenwich
    return int(moment.timestamp()) - quarters * 900

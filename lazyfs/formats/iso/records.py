"""Directory records of ISO 9660 (ECMA-119, clause 9.1) and their times. Pure."""

import struct
from collections.abc import Iterator
from datetime import UTC, datetime
from functools import lru_cache
from typing import NamedTuple

_FIXED = struct.Struct("<BBL4xL4x7sBBB4xB")  # both-endian numbers: the little-endian half

_DIRECTORY, _ASSOCIATED, _CONTINUED = 0x02, 0x04, 0x80


class Record(NamedTuple):
    """One record: an entry of a directory, or one piece of a file's."""

    identifier: bytes
    block: int  # where the data begin
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
        """Whether it only accompanies the file of the same name, as a resource fork does."""
        return bool(self.flags & _ASSOCIATED)

    @property
    def is_continued(self) -> bool:
        """Whether the next record goes on with the same file."""
        return bool(self.flags & _CONTINUED)


def parse(data: bytes) -> Record | None:
    """The record that ``data`` holds; None when it makes no sense."""
    if len(data) < _FIXED.size + 1:
        return None
    _, attributes, block, length, time, flags, unit, gap, name_length = _FIXED.unpack_from(data)
    end = _FIXED.size + name_length
    if not name_length or end > len(data):
        return None
    system_use = data[end + (name_length % 2 == 0) :]
    # An extended attribute record stands in front of the data.
    place = block + attributes
    interleaved = bool(unit or gap)
    return Record(data[_FIXED.size : end], place, length, time, flags, interleaved, system_use)


def records(directory: bytes, block_size: int) -> Iterator[Record | None]:
    """The records of a directory, in order; None for one that makes no sense.

    Records never cross the end of a block: a length of zero says that the next one begins there.
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
    """A time of 7 bytes (clause 9.1.5) or 17 (8.4.26.1), since the epoch; 0 if it is none."""
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

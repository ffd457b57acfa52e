"""The Network Block Device protocol: the parts common to client and server. Pure.

By doc/proto.md of https://github.com/NetworkBlockDevice/nbd, with its extension "extended headers".
``nbdserver.py`` and ``nbdclient.py`` have the parts that differ.

A handshake is written as a *dialogue*: a generator that yields the next step it needs and is sent
the bytes it requested. It knows no segmentation, sockets or time; ``wire.py`` runs it on a real
connection, and tests on anything else. All lengths that it requests are limited, so any input takes
limited memory.

All integers on the wire are big-endian.
"""

from collections.abc import Generator
from dataclasses import dataclass
from enum import Enum, IntEnum
from struct import Struct
from typing import NamedTuple, TypeVar

from lazyfs.core.errors import LazyfsError

PORT = 10809  # of TCP, by IANA

GREETING = 0x4E42444D41474943  # "NBDMAGIC"
NEWSTYLE = 0x49484156454F5054  # "IHAVEOPT"; also in front of each option
OLDSTYLE = 0x00420281861253
OPTION_REPLY = 0x0003E889045565A9
REQUEST = 0x25609513
EXTENDED_REQUEST = 0x21E41C71
SIMPLE_REPLY = 0x67446698
STRUCTURED_REPLY = 0x668E33EF
EXTENDED_REPLY = 0x6E8A278C

LONGEST_STRING = 4096  # bytes
LONGEST_OPTION = 64 << 10  # bytes of data of one option, or of one reply to it
LARGEST_PAYLOAD = 32 << 20  # bytes per request that every server supports
MOST_EXTENTS = 1 << 20  # in one reply to BLOCK_STATUS
MAX_COMPACT = (1 << 32) - 1  # the greatest length in a compact header

# Handshake flags, of server and client alike.
FIXED_NEWSTYLE = 1
NO_ZEROES = 2

# Transmission flags.
HAS_FLAGS = 1
READ_ONLY = 1 << 1
SEND_DF = 1 << 7
CAN_MULTI_CONN = 1 << 8
SEND_CACHE = 1 << 10

# Command flags.
DF = 1 << 2
REQ_ONE = 1 << 3
PAYLOAD_LEN = 1 << 5

CHUNK_DONE = 1  # a flag of a chunk: no other follows

# Metadata contexts, and the flags of their extents.
ALLOCATION = "base:allocation"
HOLE = 1
ZERO = 2
CACHED = "lazyfs:cached"
IS_LOCAL = 1


class Option(IntEnum):
    EXPORT_NAME = 1
    ABORT = 2
    LIST = 3
    STARTTLS = 5
    INFO = 6
    GO = 7
    STRUCTURED_REPLY = 8
    LIST_META_CONTEXT = 9
    SET_META_CONTEXT = 10
    EXTENDED_HEADERS = 11


class Reply(IntEnum):
    """The types of replies to options; errors have the highest bit set."""

    ACK = 1
    SERVER = 2
    INFO = 3
    META_CONTEXT = 4
    UNSUPPORTED = (1 << 31) + 1
    POLICY = (1 << 31) + 2
    INVALID = (1 << 31) + 3
    PLATFORM = (1 << 31) + 4
    TLS_REQUIRED = (1 << 31) + 5
    UNKNOWN = (1 << 31) + 6
    SHUTDOWN = (1 << 31) + 7
    BLOCK_SIZE_REQUIRED = (1 << 31) + 8
    TOO_BIG = (1 << 31) + 9
    EXTENDED_REQUIRED = (1 << 31) + 10


REPLY_IS_ERROR = 1 << 31


class Info(IntEnum):
    EXPORT = 0
    NAME = 1
    DESCRIPTION = 2
    BLOCK_SIZE = 3


class Command(IntEnum):
    READ = 0
    WRITE = 1
    DISC = 2
    FLUSH = 3
    TRIM = 4
    CACHE = 5
    WRITE_ZEROES = 6
    BLOCK_STATUS = 7


class Chunk(IntEnum):
    """The kinds of chunks; errors have the highest bit set."""

    NONE = 0
    DATA = 1
    HOLE = 2
    STATUS = 5
    EXTENDED_STATUS = 6
    ERROR = (1 << 15) + 1
    ERROR_AT = (1 << 15) + 2


CHUNK_IS_ERROR = 1 << 15


class Error(IntEnum):
    """The error codes of failed requests."""

    PERM = 1
    IO = 5
    NOMEM = 12
    INVAL = 22
    NOSPC = 28
    OVERFLOW = 75
    NOTSUP = 95
    SHUTDOWN = 108


class Style(Enum):
    """The form of requests and replies, negotiated in the handshake."""

    SIMPLE = 1
    STRUCTURED = 2
    EXTENDED = 3


class ProtocolError(LazyfsError):
    """The other end violates the protocol."""

    usual_cure = "tell whoever runs the other end"


class Request(NamedTuple):
    """One request. ``offset`` and ``length``: bytes of the image."""

    flags: int
    command: int
    cookie: int
    offset: int
    length: int


Extent = tuple[int, int]  # length in bytes, and the flags of a status

# Formats on the wire, with their fields.
U16 = Struct(">H")
U32 = Struct(">I")
U64 = Struct(">Q")
HELLO = Struct(">QQ")  # greeting, style of negotiation; handshake flags follow
OPTION_HEAD = Struct(">QII")  # magic, option, length
OPTION_REPLY_HEAD = Struct(">QIII")  # magic, option, reply, length
EXPORT_INFO = Struct(">QH")  # size, transmission flags
BLOCK_SIZES = Struct(">III")  # minimum, preferred, largest payload
COMPACT_REQUEST = Struct(">IHHQQI")  # magic, flags, command, cookie, offset, length
WIDE_REQUEST = Struct(">IHHQQQ")
SIMPLE_HEAD = Struct(">IIQ")  # magic, error, cookie
COMPACT_CHUNK = Struct(">IHHQI")  # magic, flags, kind, cookie, length
WIDE_CHUNK = Struct(">IHHQQQ")  # magic, flags, kind, cookie, offset, length
HOLE_CHUNK = Struct(">QI")  # offset, length
ERROR_HEAD = Struct(">IH")  # error, length of the message
WIDE_STATUS_HEAD = Struct(">II")  # context, count of extents
COMPACT_EXTENT = Struct(">II")  # length, flags
WIDE_EXTENT = Struct(">QQ")

RESERVED = bytes(124)  # after the answer to EXPORT_NAME, unless NO_ZEROES


@dataclass(frozen=True, slots=True)
class Receive:
    """Receive exactly ``count`` bytes."""

    count: int


@dataclass(frozen=True, slots=True)
class ReceiveSome:
    """Receive at least one byte, and at most ``most``."""

    most: int


@dataclass(frozen=True, slots=True)
class Send:
    content: bytes


@dataclass(frozen=True, slots=True)
class StartTls:
    """Start TLS; everything after it is encrypted."""


Step = Receive | ReceiveSome | Send | StartTls
T = TypeVar("T")
# The value sent for a step that receives nothing is ignored.
Dialogue = Generator[Step, bytes, T]


def option(number: Option, data: bytes = b"") -> bytes:
    return OPTION_HEAD.pack(NEWSTYLE, number, len(data)) + data


def option_reply(number: int, reply: Reply, data: bytes = b"") -> bytes:
    return OPTION_REPLY_HEAD.pack(OPTION_REPLY, number, reply, len(data)) + data


def counted(text: str) -> bytes:
    """A string prefixed with its length."""
    content = text.encode()
    return U32.pack(len(content)) + content


class Fields:
    """Parses the data of an option. Raises ProtocolError if it is invalid or too short."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self._position

    def u16(self) -> int:
        return int(U16.unpack(self.take(2))[0])

    def u32(self) -> int:
        return int(U32.unpack(self.take(4))[0])

    def counted(self) -> str:
        return self.text(self.u32())

    def rest(self) -> str:
        return self.text(self.left)

    def text(self, length: int) -> str:
        if length > LONGEST_STRING:
            raise ProtocolError(f"a string of {length} bytes is too long")
        try:
            text = self.take(length).decode()
        except UnicodeDecodeError as error:
            raise ProtocolError("a string is not UTF-8") from error
        if "\0" in text:
            raise ProtocolError("a string holds a NUL")
        return text

    def take(self, length: int) -> bytes:
        if length > self.left:
            raise ProtocolError("a field reaches beyond the end of its message")
        start, self._position = self._position, self._position + length
        return self._data[start : self._position]

    def end(self) -> None:
        if self.left:
            raise ProtocolError(f"a message is {self.left} bytes too long")

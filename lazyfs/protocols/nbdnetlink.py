"""A codec for the generic netlink family "nbd", which controls the kernel's NBD devices. Pure.

By linux/nbd-netlink.h, linux/genetlink.h and linux/netlink.h. A message is a header, a second
header with the command, and attributes: each has a length, a type and a value, padded to 4 bytes.
Integers are in native byte order. A datagram may contain several messages.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from lazyfs.protocols.nbd import ProtocolError

FAMILY = "nbd"
GROUP = "nbd_mc_group"  # the multicast group that reports dead links

_REPORT = "please report it, with the version of the kernel"

_CONTROL = 16  # the family that describes the others (GENL_ID_CTRL)
_GET_FAMILY = 3
_REQUEST_WITH_ACK = 1 | 4  # NLM_F_REQUEST, NLM_F_ACK
_ERROR = 2  # NLMSG_ERROR; an acknowledgement if its number is 0
_NESTED = 1 << 15  # NLA_F_NESTED
_KIND = (1 << 14) - 1  # mask: an attribute's type without its flags
_VERSION = 1

_HEADER = Struct("=IHHII")  # length, type, flags, sequence, port
_GENERIC_HEADER = Struct("=BBH")  # command, version, reserved
_ATTRIBUTE = Struct("=HH")  # length including this header, type
_ERROR_NUMBER = Struct("=i")
_U16 = Struct("=H")
_U32 = Struct("=I")
_U64 = Struct("=Q")


class Command(IntEnum):
    CONNECT = 1
    DISCONNECT = 2
    RECONFIGURE = 3
    LINK_DEAD = 4
    STATUS = 5


class _Family(IntEnum):
    """Attributes of a family (CTRL_ATTR)."""

    ID = 1
    NAME = 2
    GROUPS = 7


class _Group(IntEnum):
    NAME = 1
    ID = 2


class _Attribute(IntEnum):
    """Attributes of the family "nbd". Sizes are in bytes, times in seconds."""

    INDEX = 1
    SIZE = 2
    BLOCK_SIZE = 3
    TIMEOUT = 4
    SERVER_FLAGS = 5
    SOCKETS = 7
    DEAD_CONN_TIMEOUT = 8
    DEVICES = 9
    BACKEND = 10


_SOCKET_ITEM = _DEVICE_ITEM = 1
_SOCKET_FD = 1
_DEVICE_INDEX = 1
_DEVICE_CONNECTED = 2


@dataclass(frozen=True)
class Family:
    """The numbers that this kernel has assigned to the family and its group."""

    number: int
    group: int


@dataclass(frozen=True)
class Setup:
    """The parameters of a new device.

    ``size``, ``block_size``: bytes.
    ``flags``: transmission flags, as a server sends them.
    ``dead_timeout``: seconds that the kernel waits for a new connection when there is none.
    ``backend``: an identifier that a later reconfiguration must match.
    """

    size: int
    block_size: int
    flags: int
    dead_timeout: int
    backend: str


@dataclass(frozen=True)
class Message:
    """One message of the kernel. ``error``: an errno or 0; None if it is no acknowledgement."""

    sequence: int
    command: int
    attributes: dict[int, bytes]
    error: int | None = None


def get_family(sequence: int) -> bytes:
    """A request for the numbers of the family."""
    return _message(_CONTROL, sequence, _GET_FAMILY, [_text(_Family.NAME, FAMILY)])


def connect(family: Family, sequence: int, index: int | None, setup: Setup, fd: int) -> bytes:
    """A request to attach a device to the socket ``fd``, without a timeout for answers.

    ``index``: the device; None for any free one.
    """
    attributes = [
        _attribute(_Attribute.SIZE, _U64.pack(setup.size)),
        _attribute(_Attribute.BLOCK_SIZE, _U64.pack(setup.block_size)),
        _attribute(_Attribute.TIMEOUT, _U64.pack(0)),
        _attribute(_Attribute.SERVER_FLAGS, _U64.pack(setup.flags)),
        _attribute(_Attribute.DEAD_CONN_TIMEOUT, _U64.pack(setup.dead_timeout)),
        _text(_Attribute.BACKEND, setup.backend),
        _sockets(fd),
    ]
    if index is not None:
        attributes.insert(0, _index(index))
    return _message(family.number, sequence, Command.CONNECT, attributes)


def reconfigure(family: Family, sequence: int, index: int, backend: str, fd: int) -> bytes:
    """A request to replace a dead socket by ``fd``; the kernel ignores it if none is dead."""
    attributes = [_index(index), _text(_Attribute.BACKEND, backend), _sockets(fd)]
    return _message(family.number, sequence, Command.RECONFIGURE, attributes)


def disconnect(family: Family, sequence: int, index: int) -> bytes:
    return _message(family.number, sequence, Command.DISCONNECT, [_index(index)])


def status(family: Family, sequence: int, index: int) -> bytes:
    """A request for whether a device is in use."""
    return _message(family.number, sequence, Command.STATUS, [_index(index)])


def messages(datagram: bytes) -> list[Message]:
    """The messages in a datagram. Raises ProtocolError."""
    found = []
    position = 0
    while len(datagram) - position >= _HEADER.size:
        length, kind, _, sequence, _ = _HEADER.unpack_from(datagram, position)
        if not _HEADER.size <= length <= len(datagram) - position:
            raise ProtocolError("a netlink message reaches beyond its datagram", _REPORT)
        body = datagram[position + _HEADER.size : position + length]
        found.append(_parse(kind, sequence, body))
        position += _padded(length)
    return found


def family_in(message: Message) -> Family:
    """The family's numbers in the kernel's answer. Raises ProtocolError."""
    number = _field(message.attributes, _Family.ID, _U16)
    for _, group in _attributes(message.attributes.get(_Family.GROUPS, b"")):
        described = dict(_attributes(group))
        if described.get(_Group.NAME, b"").rstrip(b"\0") == GROUP.encode():
            return Family(number, _field(described, _Group.ID, _U32))
    raise ProtocolError(f"the kernel has no group {GROUP}", _REPORT)


def index_in(message: Message) -> int:
    """The index of the device that a message is about. Raises ProtocolError."""
    return _field(message.attributes, _Attribute.INDEX, _U32)


def connected_in(message: Message) -> dict[int, bool]:
    """Whether devices are in use, by index, from an answer to STATUS. Raises ProtocolError."""
    found = {}
    for kind, item in _attributes(message.attributes.get(_Attribute.DEVICES, b"")):
        if kind == _DEVICE_ITEM:
            device = dict(_attributes(item))
            index = _field(device, _DEVICE_INDEX, _U32)
            found[index] = device.get(_DEVICE_CONNECTED, b"\0") != b"\0"
    return found


def _parse(kind: int, sequence: int, body: bytes) -> Message:
    if kind == _ERROR:
        if len(body) < _ERROR_NUMBER.size:
            raise ProtocolError("a netlink acknowledgement is too short", _REPORT)
        return Message(sequence, 0, {}, -_ERROR_NUMBER.unpack_from(body)[0])
    if len(body) < _GENERIC_HEADER.size:
        raise ProtocolError("a netlink message is too short", _REPORT)
    command = _GENERIC_HEADER.unpack_from(body)[0]
    return Message(sequence, command, dict(_attributes(body[_GENERIC_HEADER.size :])))


def _attributes(data: bytes) -> Iterator[tuple[int, bytes]]:
    position = 0
    while len(data) - position >= _ATTRIBUTE.size:
        length, kind = _ATTRIBUTE.unpack_from(data, position)
        if not _ATTRIBUTE.size <= length <= len(data) - position:
            raise ProtocolError("a netlink attribute reaches beyond its message", _REPORT)
        yield kind & _KIND, data[position + _ATTRIBUTE.size : position + length]
        position += _padded(length)


def _field(attributes: dict[int, bytes], kind: int, form: Struct) -> int:
    value = attributes.get(kind, b"")
    if len(value) != form.size:
        raise ProtocolError(f"netlink attribute {kind} is missing or of a wrong size", _REPORT)
    return int(form.unpack(value)[0])


def _message(family: int, sequence: int, command: int, attributes: Iterable[bytes]) -> bytes:
    body = _GENERIC_HEADER.pack(command, _VERSION, 0) + b"".join(attributes)
    length = _HEADER.size + len(body)
    return _HEADER.pack(length, family, _REQUEST_WITH_ACK, sequence, 0) + body


def _attribute(kind: int, value: bytes) -> bytes:
    length = _ATTRIBUTE.size + len(value)
    return _ATTRIBUTE.pack(length, kind) + value + bytes(_padded(length) - length)


def _text(kind: int, text: str) -> bytes:
    return _attribute(kind, text.encode() + b"\0")


def _index(index: int) -> bytes:
    return _attribute(_Attribute.INDEX, _U32.pack(index))


def _sockets(fd: int) -> bytes:
    item = _attribute(_SOCKET_ITEM | _NESTED, _attribute(_SOCKET_FD, _U32.pack(fd)))
    return _attribute(_Attribute.SOCKETS | _NESTED, item)


def _padded(length: int) -> int:
    return (length + 3) & ~3

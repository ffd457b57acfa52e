"""What is said to the kernel about NBD devices, against a small model of the kernel's end."""

import struct
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.protocols import nbdnetlink
from lazyfs.protocols.nbd import ProtocolError
from lazyfs.protocols.nbdnetlink import Command, Family, Setup

NESTED = 1 << 15
FAMILY = Family(31, 7)

u32 = st.integers(0, (1 << 32) - 1)
u64 = st.integers(0, (1 << 64) - 1)
setups = st.builds(
    Setup, size=u64, block_size=u64, flags=u64, dead_timeout=u64, backend=st.text(max_size=40)
)
values = st.binary(max_size=20)
kinds = st.integers(1, 100)


def attribute(kind: int, value: bytes) -> bytes:
    length = 4 + len(value)
    return struct.pack("=HH", length, kind) + value + bytes(-length % 4)


def answer(sequence: int, command: int, attributes: Sequence[bytes]) -> bytes:
    body = struct.pack("=BBH", command, 1, 0) + b"".join(attributes)
    return struct.pack("=IHHII", 16 + len(body), FAMILY.number, 0, sequence, 99) + body


def acknowledgement(sequence: int, error: int) -> bytes:
    """With the header of the request behind the error, as the kernel sends it."""
    return struct.pack("=IHHIIi16x", 36, 2, 0, sequence, 99, -error)


def taken_apart(message: bytes) -> tuple[int, int, int, dict[int, bytes]]:
    """Family, sequence, command and attributes, as a kernel reads them."""
    length, family, flags, sequence, _ = struct.unpack_from("=IHHII", message)
    assert length == len(message)
    assert flags == 1 | 4
    return family, sequence, message[16], attributes_in(message[20:])


def attributes_in(data: bytes) -> dict[int, bytes]:
    found = {}
    while data:
        length, kind = struct.unpack_from("=HH", data)
        found[kind] = data[4:length]
        data = data[(length + 3) & ~3 :]
    return found


@given(st.none() | u32, setups, u32, u32)
def test_a_connect_says_all_that_was_wanted(
    index: int | None, setup: Setup, fd: int, sequence: int
) -> None:
    message = nbdnetlink.connect(FAMILY, sequence, index, setup, fd)
    family, number, command, said = taken_apart(message)
    assert (family, number, command) == (FAMILY.number, sequence, Command.CONNECT)
    assert said.get(1) == (None if index is None else struct.pack("=I", index))
    wanted = (setup.size, setup.block_size, 0, setup.flags, setup.dead_timeout)
    assert tuple(struct.unpack("=Q", said[kind])[0] for kind in (2, 3, 4, 5, 8)) == wanted
    assert said[10] == setup.backend.encode() + b"\0"
    assert sockets_in(said) == fd


def sockets_in(said: dict[int, bytes]) -> int:
    item = attributes_in(said[7 | NESTED])
    return int(struct.unpack("=I", attributes_in(item[1 | NESTED])[1])[0])


@given(u32, u32, u32, st.text(max_size=40))
def test_other_wishes_name_their_device(sequence: int, index: int, fd: int, backend: str) -> None:
    for message, command in (
        (nbdnetlink.disconnect(FAMILY, sequence, index), Command.DISCONNECT),
        (nbdnetlink.status(FAMILY, sequence, index), Command.STATUS),
        (nbdnetlink.reconfigure(FAMILY, sequence, index, backend, fd), Command.RECONFIGURE),
    ):
        family, number, said_command, said = taken_apart(message)
        assert (family, number, said_command) == (FAMILY.number, sequence, command)
        assert said[1] == struct.pack("=I", index)
    assert said[10] == backend.encode() + b"\0"
    assert sockets_in(said) == fd


@given(
    st.lists(
        st.tuples(u32, st.sampled_from(Command), st.dictionaries(kinds, values))
        | st.tuples(u32, st.integers(0, 133))
    )
)
def test_a_datagram_is_taken_apart_into_its_messages(
    sent: list[tuple[int, Command, dict[int, bytes]] | tuple[int, int]],
) -> None:
    raw = []
    for message in sent:
        if len(message) == 2:
            raw.append(acknowledgement(*message))
        else:
            sequence, command, attributes = message
            said = [attribute(kind, value) for kind, value in attributes.items()]
            raw.append(answer(sequence, command, said))
    found = nbdnetlink.messages(b"".join(raw))
    assert len(found) == len(sent)
    for message, parsed in zip(sent, found, strict=True):
        if len(message) == 2:
            assert (parsed.sequence, parsed.error) == message
        else:
            assert (parsed.sequence, parsed.command, parsed.attributes) == message
            assert parsed.error is None


@given(u32, st.integers(0, 0xFFFF), st.text(st.characters(exclude_characters="\0"), max_size=10))
def test_the_family_is_found_with_its_group_among_others(
    group: int, number: int, other: str
) -> None:
    groups = [(other.encode() + b"\0", group ^ 1), (b"nbd_mc_group\0", group)]
    items = [
        attribute(place | NESTED, attribute(1, name) + attribute(2, struct.pack("=I", value)))
        for place, (name, value) in enumerate(groups, 1)
    ]
    said = [attribute(1, struct.pack("=H", number)), attribute(7 | NESTED, b"".join(items))]
    (message,) = nbdnetlink.messages(answer(1, 1, said))
    assert nbdnetlink.family_in(message) == Family(number, group)


@given(st.dictionaries(u32, st.booleans(), max_size=5))
def test_a_status_says_which_devices_are_in_use(devices: dict[int, bool]) -> None:
    items = [
        attribute(
            1 | NESTED, attribute(1, struct.pack("=I", index)) + attribute(2, bytes([connected]))
        )
        for index, connected in devices.items()
    ]
    raw = answer(1, Command.STATUS, [attribute(9 | NESTED, b"".join(items))])
    (message,) = nbdnetlink.messages(raw)
    assert nbdnetlink.connected_in(message) == devices


@given(
    st.lists(st.tuples(kinds, values), max_size=4), st.data(), st.integers(0, 255), st.booleans()
)
def test_whatever_comes_is_messages_or_a_protocol_error(
    said: list[tuple[int, bytes]], data: st.DataObject, byte: int, cut: bool
) -> None:
    """An answer that is cut off, or has one wrong byte."""
    right = answer(1, Command.STATUS, [attribute(9 | NESTED, attribute(*one)) for one in said])
    place = data.draw(st.integers(0, len(right) - 1))
    datagram = right[:place] if cut else right[:place] + bytes([byte]) + right[place + 1 :]
    try:
        for message in nbdnetlink.messages(datagram):
            nbdnetlink.connected_in(message)
            nbdnetlink.family_in(message)
    except ProtocolError:
        pass


def test_an_answer_without_what_it_must_say_is_refused() -> None:
    (message,) = nbdnetlink.messages(answer(1, Command.CONNECT, []))
    with pytest.raises(ProtocolError):
        nbdnetlink.index_in(message)
    with pytest.raises(ProtocolError):
        nbdnetlink.family_in(message)
    assert nbdnetlink.connected_in(message) == {}


@pytest.mark.parametrize(
    ("datagram", "said"),
    [
        (
            struct.pack("=IHHII", 99, 31, 0, 1, 9),
            "a netlink message reaches beyond its datagram",
        ),
        (struct.pack("=IHHII", 16, 2, 0, 1, 9), "a netlink acknowledgement is too short"),
        (struct.pack("=IHHII", 16, 31, 0, 1, 9), "a netlink message is too short"),
        (
            answer(1, Command.STATUS, [struct.pack("=HH", 99, 1)]),
            "a netlink attribute reaches beyond its message",
        ),
    ],
)
def test_what_is_wrong_with_a_datagram_is_said(datagram: bytes, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        nbdnetlink.messages(datagram)
    assert caught.value.message == said
    assert "version of the kernel" in caught.value.cure


def test_what_an_answer_does_not_say_is_named() -> None:
    number = attribute(1, struct.pack("=H", 31))
    (message,) = nbdnetlink.messages(answer(1, 1, [number]))
    with pytest.raises(ProtocolError, match="the kernel has no group nbd_mc_group"):
        nbdnetlink.family_in(message)
    (message,) = nbdnetlink.messages(answer(1, Command.CONNECT, []))
    with pytest.raises(ProtocolError, match="netlink attribute 1 is missing or of a wrong size"):
        nbdnetlink.index_in(message)

"""Both ends of the NBD protocol, against each other, in any chunks, and against anything at all."""

import contextlib
import itertools
import struct
import tracemalloc
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.protocols import nbd, nbdclient, nbdserver
from lazyfs.protocols.nbd import (
    Command,
    Dialogue,
    Error,
    Fields,
    Option,
    ProtocolError,
    Receive,
    ReceiveSome,
    Reply,
    Request,
    Send,
    StartTls,
    Style,
)
from lazyfs.protocols.nbdclient import Opened, PendingRead, PendingStatus, Refused, ReplyReader
from lazyfs.protocols.nbdserver import ExportInfo, RequestReader, Session, judge

MIB = 1 << 20
DISK = ExportInfo("disk.raw", "http://host/disk.raw", 10 * MIB)
OTHER = ExportInfo("ünïcode", "", (1 << 40) + 1)
EXPORTS = [DISK, OTHER]
BOTH = (nbd.ALLOCATION, nbd.CACHED)
STYLES = list(Style)

chunkings = st.lists(st.integers(1, 40), max_size=30)


class End:
    """One end of a connection: a dialogue, and what it has received and not taken."""

    def __init__(self, dialogue: Dialogue[Any]) -> None:
        self.dialogue = dialogue
        self.received = bytearray()
        self.sent = bytearray()
        self.result: Any = None
        self.ended = False
        self.encrypted = False
        self._step: Any = None
        self._begun = False

    def run(self) -> None:
        """Go on for as long as there is enough to go on with."""
        while not self.ended:
            try:
                if not self._begun:
                    self._begun = True
                    self._step = next(self.dialogue)
                    continue
                match self._step:
                    case Send(content):
                        self.sent += content
                        answer = b""
                    case StartTls():
                        self.encrypted = True
                        answer = b""
                    case Receive(count):
                        if len(self.received) < count:
                            return
                        answer = self._take(count)
                    case ReceiveSome(most):
                        if not self.received:
                            return
                        answer = self._take(most)
                self._step = self.dialogue.send(answer)
            except StopIteration as end:
                self.result, self.ended = end.value, True

    def _take(self, most: int) -> bytes:
        taken = bytes(self.received[:most])
        del self.received[:most]
        return taken


def converse(client: Dialogue[Any], server: Dialogue[Any], chunks: list[int]) -> tuple[End, End]:
    """Let both ends talk until neither can go on; bytes travel in chunks of these lengths."""
    ends = (End(client), End(server))
    lengths: Iterator[int] = iter(chunks)
    moved = True
    while moved:
        moved = False
        for end in ends:
            end.run()
        for one, other in (ends, ends[::-1]):
            if one.sent:
                length = next(lengths, 1 << 20)
                other.received += one.sent[:length]
                del one.sent[:length]
                moved = True
    return ends


def shaken_hands(
    name: str,
    contexts: tuple[str, ...] = BOTH,
    chunks: list[int] | None = None,
    *,
    tls: bool = False,
) -> tuple[Opened, Session, tuple[End, End]]:
    client = nbdclient.Handshake(name, contexts, tls=tls).run()
    server = nbdserver.Handshake(EXPORTS, tls=tls).run()
    ends = converse(client, server, chunks or [])
    assert ends[0].ended
    assert ends[1].ended
    return ends[0].result, ends[1].result, ends


# Handshakes


@given(st.sampled_from(["", "disk.raw", "ünïcode"]), chunkings, st.booleans())
def test_client_and_server_agree_in_whatever_chunks_they_talk(
    name: str, chunks: list[int], tls: bool
) -> None:
    opened, session, ends = shaken_hands(name, BOTH, chunks, tls=tls)
    export = OTHER if name == OTHER.name else DISK
    assert (opened.size, session.export) == (export.size, export)
    assert opened.style is session.style is Style.EXTENDED
    assert {number: name for name, number in opened.contexts.items()} == session.contexts
    assert set(opened.contexts) == set(BOTH)
    assert opened.flags & nbd.READ_ONLY
    assert opened.flags & nbd.CAN_MULTI_CONN
    assert ends[0].encrypted is ends[1].encrypted is tls


def test_the_client_says_what_the_server_refuses() -> None:
    client = nbdclient.Handshake("absent").run()
    with pytest.raises(Refused, match="GO") as caught:
        converse(client, nbdserver.Handshake(EXPORTS).run(), [])
    assert caught.value.reply == Reply.UNKNOWN


def test_a_client_without_tls_is_told_that_it_is_needed() -> None:
    client = nbdclient.Handshake("").run()
    with pytest.raises(Refused) as caught:
        converse(client, nbdserver.Handshake(EXPORTS, tls=True).run(), [])
    assert caught.value.reply == Reply.TLS_REQUIRED


def test_a_client_that_needs_tls_does_not_go_on_without_it() -> None:
    client = nbdclient.Handshake("", tls=True).run()
    with pytest.raises(Refused, match="STARTTLS"):
        converse(client, nbdserver.Handshake(EXPORTS).run(), [])


def test_nothing_is_settled_before_tls() -> None:
    server = End(nbdserver.Handshake(EXPORTS, tls=True).run())
    server.received += nbd.U32.pack(3) + STRUCTURED + nbd.option(Option.STARTTLS)
    server.run()
    assert server.encrypted
    server.received += nbd.option(Option.GO, nbd.counted("") + bytes(2))
    server.run()
    assert server.result.style is Style.SIMPLE


def test_an_oldstyle_server_is_refused_by_name() -> None:
    client = End(nbdclient.Handshake("").run())
    client.received += struct.pack(">QQQI", nbd.GREETING, nbd.OLDSTYLE, MIB, 3) + bytes(124)
    with pytest.raises(ProtocolError, match="oldstyle"):
        client.run()


def test_what_is_no_nbd_server_is_said_to_be_none() -> None:
    client = End(nbdclient.Handshake("").run())
    client.received += b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with pytest.raises(ProtocolError, match="no NBD server"):
        client.run()


@pytest.mark.parametrize("zeroes", [True, False])
def test_a_server_of_before_fixed_newstyle_is_asked_by_export_name(zeroes: bool) -> None:
    client = End(nbdclient.Handshake("disk.raw", BOTH).run())
    offered = 0 if zeroes else nbd.NO_ZEROES
    client.received += nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(offered)
    client.run()
    assert bytes(client.sent) == nbd.U32.pack(offered) + nbd.option(Option.EXPORT_NAME, b"disk.raw")
    client.received += nbd.EXPORT_INFO.pack(MIB, nbd.HAS_FLAGS)
    client.run()
    assert client.ended is not zeroes
    client.received += bytes(124 if zeroes else 0)
    client.run()
    assert client.result == Opened(MIB, nbd.HAS_FLAGS, Style.SIMPLE)


@pytest.mark.parametrize("flags", [0, nbd.FIXED_NEWSTYLE, nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES])
def test_the_server_answers_export_name_as_the_client_flags_say(flags: int) -> None:
    server = End(nbdserver.Handshake(EXPORTS).run())
    server.received += nbd.U32.pack(flags) + nbd.option(Option.EXPORT_NAME, b"")
    server.run()
    padding = 0 if flags & nbd.NO_ZEROES else 124
    assert len(server.sent) == nbd.HELLO.size + 2 + nbd.EXPORT_INFO.size + padding
    assert server.result == Session(DISK, Style.SIMPLE, {})


def answers(*options: bytes, tls: bool = False) -> list[tuple[int, int, bytes]]:
    """What a server replies to options: (option, reply, data) of each reply."""
    server = End(nbdserver.Handshake(EXPORTS, tls=tls).run())
    server.received += nbd.U32.pack(3) + b"".join(options)
    server.run()
    del server.sent[: nbd.HELLO.size + 2]
    found = []
    while server.sent:
        magic, option, reply, length = nbd.OPTION_REPLY_HEAD.unpack_from(server.sent)
        assert magic == nbd.OPTION_REPLY
        end = nbd.OPTION_REPLY_HEAD.size + length
        found.append((option, reply, bytes(server.sent[nbd.OPTION_REPLY_HEAD.size : end])))
        del server.sent[:end]
    return found


def reply_to(*options: bytes, tls: bool = False) -> int:
    return answers(*options, tls=tls)[-1][1]


def meta(option: Option, name: str, *queries: str) -> bytes:
    counted = b"".join(map(nbd.counted, queries))
    return nbd.option(option, nbd.counted(name) + nbd.U32.pack(len(queries)) + counted)


STRUCTURED = nbd.option(Option.STRUCTURED_REPLY)


def test_all_exports_are_listed_the_default_first() -> None:
    listed = [data for _, reply, data in answers(nbd.option(Option.LIST)) if reply == Reply.SERVER]
    assert listed == [nbd.counted(e.name) + e.description.encode() for e in EXPORTS]


def test_info_gives_what_is_asked_for_and_goes_on() -> None:
    wish = nbd.counted("") + struct.pack(">HHHHH", 4, 1, 2, 3, 77)
    found = answers(nbd.option(Option.INFO, wish), nbd.option(Option.LIST))
    infos = {data[:2]: data[2:] for _, reply, data in found if reply == Reply.INFO}
    assert infos[nbd.U16.pack(1)] == b"disk.raw"
    assert infos[nbd.U16.pack(2)] == DISK.description.encode()
    assert nbd.BLOCK_SIZES.unpack(infos[nbd.U16.pack(3)]) == (1, 4096, 32 * MIB)
    assert len(infos) == 4
    assert found[-1] == (Option.LIST, Reply.ACK, b"")


@pytest.mark.parametrize(
    ("options", "reply"),
    [
        ([nbd.option(Option.LIST, b"x")], Reply.INVALID),
        ([nbd.option(Option.STRUCTURED_REPLY, b"x")], Reply.INVALID),
        ([nbd.option(Option.STARTTLS)], Reply.POLICY),
        ([nbd.OPTION_HEAD.pack(nbd.NEWSTYLE, 4711, 3) + b"abc"], Reply.UNSUPPORTED),
        ([nbd.option(Option.GO, b"\0")], Reply.INVALID),
        ([nbd.option(Option.GO, nbd.U32.pack(9) + b"abc" + bytes(2))], Reply.INVALID),
        ([nbd.option(Option.GO, nbd.U32.pack(2) + b"\xff\xff" + bytes(2))], Reply.INVALID),
        ([nbd.option(Option.GO, nbd.counted("a" * 4097) + bytes(2))], Reply.INVALID),
        ([nbd.option(Option.GO, nbd.counted("absent") + bytes(2))], Reply.UNKNOWN),
        ([meta(Option.SET_META_CONTEXT, "", nbd.CACHED)], Reply.INVALID),
        ([STRUCTURED, meta(Option.SET_META_CONTEXT, "absent", nbd.CACHED)], Reply.UNKNOWN),
        ([STRUCTURED, meta(Option.SET_META_CONTEXT, "", "nonsense")], Reply.INVALID),
        ([nbd.option(Option.EXTENDED_HEADERS), STRUCTURED], Reply.EXTENDED_REQUIRED),
        ([nbd.option(Option.ABORT, b"bye")], Reply.ACK),
    ],
)
def test_the_server_refuses_as_the_protocol_says(options: list[bytes], reply: Reply) -> None:
    assert reply_to(*options) == reply


@pytest.mark.parametrize(
    "option", [o for o in Option if o not in (Option.EXPORT_NAME, Option.ABORT)]
)
def test_with_certificates_nothing_is_said_without_tls(option: Option) -> None:
    expected = Reply.ACK if option == Option.STARTTLS else Reply.TLS_REQUIRED
    assert reply_to(nbd.option(option), tls=True) == expected


@pytest.mark.parametrize(
    ("queries", "listed"),
    [
        ([], BOTH),
        (["base:"], BOTH[:1]),
        (["lazyfs:"], BOTH[1:]),
        (["lazyfs:cached", "qemu:dirty-bitmap"], BOTH[1:]),
        (["base:other"], ()),
    ],
)
def test_contexts_are_listed_as_asked_for(queries: list[str], listed: tuple[str, ...]) -> None:
    found = answers(STRUCTURED, meta(Option.LIST_META_CONTEXT, "", *queries))
    names = [data[4:].decode() for _, reply, data in found if reply == Reply.META_CONTEXT]
    assert tuple(names) == listed


def test_a_wildcard_selects_nothing_and_the_last_selection_counts() -> None:
    first = meta(Option.SET_META_CONTEXT, "", nbd.CACHED)
    found = answers(STRUCTURED, first, meta(Option.SET_META_CONTEXT, "", "base:"))
    assert [reply for _, reply, _ in found] == [Reply.ACK, Reply.META_CONTEXT, Reply.ACK, Reply.ACK]


def test_contexts_of_another_export_do_not_count() -> None:
    server = End(nbdserver.Handshake(EXPORTS).run())
    chosen = meta(Option.SET_META_CONTEXT, OTHER.name, nbd.CACHED)
    go = nbd.option(Option.GO, nbd.counted("disk.raw") + bytes(2))
    server.received += nbd.U32.pack(3) + STRUCTURED + chosen + go
    server.run()
    assert server.result == Session(DISK, Style.STRUCTURED, {})


@pytest.mark.parametrize(
    "sent",
    [
        nbd.U32.pack(4),
        nbd.U32.pack(3) + b"GET / HTTP/1.1\r\n\r\n",
        nbd.U32.pack(3) + nbd.OPTION_HEAD.pack(nbd.NEWSTYLE, Option.LIST, nbd.LONGEST_OPTION + 1),
        nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME, b"absent"),
        nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME, b"x" * 5000),
        nbd.U32.pack(3)
        + nbd.option(Option.EXTENDED_HEADERS)
        + nbd.option(Option.EXPORT_NAME, b"disk.raw"),
    ],
)
def test_the_server_hangs_up_where_it_cannot_answer(sent: bytes) -> None:
    server = End(nbdserver.Handshake(EXPORTS).run())
    server.received += sent
    with pytest.raises(ProtocolError):
        server.run()


# Requests


def session_of(style: Style = Style.STRUCTURED, *contexts: str) -> Session:
    return Session(DISK, style, dict(enumerate(contexts, 1)))


@given(
    st.lists(
        st.builds(
            Request,
            st.just(0),
            st.sampled_from([Command.READ, Command.WRITE, Command.CACHE, Command.BLOCK_STATUS]),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, (1 << 64) - 1),
            st.integers(0, 100),
        ),
        max_size=8,
    ),
    chunkings,
    st.sampled_from([Style.STRUCTURED, Style.EXTENDED]),
)
def test_requests_come_out_as_they_went_in_and_payloads_are_skipped(
    requests: list[Request], chunks: list[int], style: Style
) -> None:
    stream = b""
    for request in requests:
        payload = bytes(request.length) if request.command == Command.WRITE else b""
        if style is Style.EXTENDED and payload:
            request = request._replace(flags=nbd.PAYLOAD_LEN)
        stream += nbdclient.request(style, request) + payload
    reader = RequestReader(style)
    found = []
    for length in [*chunks, len(stream)]:
        found += reader.feed(stream[:length])
        stream = stream[length:]
    assert [r[1:] for r in found] == [r[1:] for r in requests]


def test_a_client_that_sends_too_much_at_once_is_cut_off() -> None:
    reader = RequestReader(Style.SIMPLE)
    write = Request(0, Command.WRITE, 1, 0, nbd.LARGEST_PAYLOAD + 1)
    with pytest.raises(ProtocolError):
        reader.feed(nbdclient.request(Style.SIMPLE, write))


@pytest.mark.parametrize(
    ("request_", "style", "error"),
    [
        (Request(0, Command.READ, 1, 0, 1), Style.SIMPLE, None),
        (Request(0, Command.READ, 1, 10 * MIB - 1, 1), Style.SIMPLE, None),
        (Request(0, Command.READ, 1, 10 * MIB - 1, 2), Style.SIMPLE, Error.INVAL),
        (Request(0, Command.READ, 1, (1 << 64) - 1, 2), Style.SIMPLE, Error.INVAL),
        (Request(0, Command.READ, 1, 0, 0), Style.SIMPLE, Error.INVAL),
        (Request(nbd.DF, Command.READ, 1, 0, 4096), Style.SIMPLE, Error.INVAL),
        (Request(nbd.DF, Command.READ, 1, 0, 4096), Style.STRUCTURED, None),
        (Request(nbd.DF, Command.READ, 1, 0, 2 * MIB), Style.STRUCTURED, Error.OVERFLOW),
        (Request(1, Command.READ, 1, 0, 4096), Style.STRUCTURED, Error.INVAL),
        (Request(0, Command.WRITE, 1, 0, 4096), Style.SIMPLE, Error.PERM),
        (Request(0, Command.TRIM, 1, 0, 4096), Style.SIMPLE, Error.PERM),
        (Request(0, Command.WRITE_ZEROES, 1, 0, 4096), Style.SIMPLE, Error.PERM),
        (Request(0, Command.FLUSH, 1, 0, 0), Style.SIMPLE, Error.INVAL),
        (Request(0, 99, 1, 0, 0), Style.SIMPLE, Error.INVAL),
        (Request(0, Command.CACHE, 1, 0, 10 * MIB), Style.SIMPLE, None),
        (Request(0, Command.BLOCK_STATUS, 1, 0, 4096), Style.STRUCTURED, Error.INVAL),
    ],
)
def test_requests_are_judged_as_the_protocol_says(
    request_: Request, style: Style, error: Error | None
) -> None:
    refused = judge(request_, session_of(style))
    assert (refused and refused[0]) == error


def test_a_read_longer_than_any_payload_is_an_overflow() -> None:
    session = Session(OTHER, Style.STRUCTURED)
    refused = judge(Request(0, Command.READ, 1, 0, 32 * MIB + 1), session)
    assert refused is not None
    assert refused[0] == Error.OVERFLOW


# Replies


def replies(style: Style, pending: dict[int, Any], stream: bytes, chunks: list[int]) -> None:
    """Give a client's end a stream of replies."""
    end = End(ReplyReader(style, pending).run())
    for length in [*chunks, len(stream)]:
        end.received += stream[:length]
        end.run()
        stream = stream[length:]
    assert not end.received


@given(st.data(), st.sampled_from(STYLES), chunkings)
def test_reads_bring_their_bytes_in_order_however_they_are_cut_and_mixed(
    data: st.DataObject, style: Style, chunks: list[int]
) -> None:
    content = data.draw(st.binary(min_size=1, max_size=300))
    count = data.draw(st.integers(1, 3))
    messages: list[list[bytes]] = []
    pending: dict[int, PendingRead] = {}
    wanted: dict[int, bytes] = {}
    for cookie in range(count):
        start = data.draw(st.integers(0, len(content) - 1))
        stop = data.draw(st.integers(start + 1, len(content)))
        request = Request(0, Command.READ, cookie, start, stop - start)
        pending[cookie] = PendingRead(start, stop - start, lambda: None)
        wanted[cookie] = content[start:stop]
        cuts = sorted(data.draw(st.sets(st.integers(start, stop), max_size=4)) | {start, stop})
        pieces = list(itertools.pairwise(cuts))
        if style is Style.SIMPLE:
            pieces = [(start, stop)]
        sent = [nbdserver.data_head(style, request, a, b - a) + content[a:b] for a, b in pieces]
        # The last chunk says that it is the last; those before it may come in any order.
        messages.append([*data.draw(st.permutations(sent[:-1])), sent[-1]])
    stream = b""
    while any(messages):
        one = data.draw(st.sampled_from([m for m in messages if m]))
        stream += one.pop(0)
    reads = dict(pending)
    replies(style, pending, stream, chunks)
    assert pending == {}
    assert {c: b"".join(read.take()) for c, read in reads.items()} == wanted
    assert all(read.ended and read.failure is None for read in reads.values())


@pytest.mark.parametrize("style", STYLES)
def test_a_failed_read_says_why(style: Style) -> None:
    request = Request(0, Command.READ, 7, 0, 100)
    read = PendingRead(0, 100, lambda: None)
    replies(style, {7: read}, nbdserver.failure(style, request, Error.IO, "no\nnetwork"), [])
    assert read.failure is not None
    assert read.failure.number == Error.IO
    assert read.failure.said == ("" if style is Style.SIMPLE else "no network")


def test_a_hole_reads_as_zeros() -> None:
    read = PendingRead(1000, 5000, lambda: None)
    hole = nbd.HOLE_CHUNK.pack(1000, 5000)
    head = nbd.COMPACT_CHUNK.pack(nbd.STRUCTURED_REPLY, nbd.CHUNK_DONE, nbd.Chunk.HOLE, 1, 12)
    replies(Style.STRUCTURED, {1: read}, head + hole, [])
    assert b"".join(read.take()) == bytes(5000)


extents = st.lists(st.tuples(st.integers(1, 1 << 34), st.integers(0, 3)), min_size=1, max_size=20)


@given(extents, st.sampled_from([Style.STRUCTURED, Style.EXTENDED]), st.booleans())
def test_a_status_says_the_same_on_both_ends(
    known: list[tuple[int, int]], style: Style, one: bool
) -> None:
    total = sum(length for length, _ in known)
    length = total if style is Style.EXTENDED else min(total, nbd.MAX_COMPACT)
    request = Request(nbd.REQ_ONE if one else 0, Command.BLOCK_STATUS, 3, 512, length)
    status = PendingStatus(512, lambda: None)
    replies(style, {3: status}, nbdserver.status(style, request, 2, known, done=True), [])
    (said,) = status.extents.values()
    flags = [flag for _, flag in said]
    assert all(a != b for a, b in itertools.pairwise(flags)), "neighbours are joined"
    assert 0 < sum(extent for extent, _ in said) <= length
    position = 0
    for extent, flag in said:
        assert flag == flag_at(known, position) == flag_at(known, position + extent - 1)
        position += extent
    assert len(said) == 1 if one else position == length


def flag_at(known: list[tuple[int, int]], position: int) -> int:
    for length, flag in known:
        position -= length
        if position < 0:
            return flag
    raise AssertionError("beyond the end")


def head(kind: int, length: int, cookie: int = 1, flags: int = nbd.CHUNK_DONE) -> bytes:
    return nbd.COMPACT_CHUNK.pack(nbd.STRUCTURED_REPLY, flags, kind, cookie, length)


@pytest.mark.parametrize(
    "stream",
    [
        b"x" * 20,
        head(nbd.Chunk.NONE, 0, cookie=2),
        head(nbd.Chunk.NONE, 0),
        head(nbd.Chunk.NONE, 4) + bytes(4),
        head(nbd.Chunk.DATA, 8) + bytes(8),
        head(nbd.Chunk.DATA, 8 + 101) + bytes(109),
        head(nbd.Chunk.DATA, 8 + 10) + nbd.U64.pack(95) + bytes(10),
        head(nbd.Chunk.DATA, 8 + 10, flags=0) + nbd.U64.pack(0) + bytes(10)
        + head(nbd.Chunk.DATA, 8 + 10) + nbd.U64.pack(5) + bytes(10),
        head(nbd.Chunk.HOLE, 12) + nbd.HOLE_CHUNK.pack(0, 101),
        head(nbd.Chunk.HOLE, 12) + nbd.HOLE_CHUNK.pack(0, (1 << 32) - 1),
        head(nbd.Chunk.STATUS, 12) + bytes(12),
        head(nbd.Chunk.ERROR, 1 << 20),
        head(nbd.Chunk.ERROR, 6) + nbd.ERROR_HEAD.pack(5, 100),
        head(99, 0),
        nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, 0, 1) + bytes(100),
        nbd.WIDE_CHUNK.pack(nbd.EXTENDED_REPLY, 1, 0, 1, 0, 0),
    ],
)  # fmt: skip
def test_the_client_goes_when_a_server_sends_what_cannot_be(stream: bytes) -> None:
    with pytest.raises(ProtocolError):
        replies(Style.STRUCTURED, {1: PendingRead(0, 100, lambda: None)}, stream, [])


def test_a_read_that_nobody_takes_keeps_nothing() -> None:
    read = PendingRead(0, 100, lambda: None)
    read.abandon()
    request = Request(0, Command.READ, 1, 0, 100)
    sent = nbdserver.data_head(Style.STRUCTURED, request, 0, 100) + bytes(100)
    replies(Style.STRUCTURED, {1: read}, sent, [])
    assert read.take() == []
    assert read.ended


# Anything at all


def opened_by_anything(data: bytes) -> None:
    end = End(nbdclient.Handshake("disk.raw", BOTH).run())
    end.received += data
    end.run()


def served_anything(data: bytes) -> None:
    end = End(nbdserver.Handshake(EXPORTS).run())
    end.received += nbd.U32.pack(3) + data
    end.run()


def requests_of_anything(data: bytes) -> None:
    for style in STYLES:
        reader = RequestReader(style)
        for request in reader.feed(data):
            judge(request, session_of(style, *BOTH))


def replies_of_anything(data: bytes) -> None:
    for style in STYLES:
        pending: dict[int, Any] = {
            1: PendingRead(0, 1 << 20, lambda: None),
            2: PendingStatus(0, lambda: None),
        }
        end = End(ReplyReader(style, pending).run())
        end.received += data
        end.run()


ENDS = [opened_by_anything, served_anything, requests_of_anything, replies_of_anything]

# Bytes that look like the protocol, so that more than its first magic is reached.
words = st.one_of(
    st.binary(max_size=40),
    st.builds(
        nbd.option, st.sampled_from(list(Option)), st.binary(max_size=40) | st.just(nbd.counted(""))
    ),
    st.builds(
        lambda option, reply, data: nbd.option_reply(option, reply, data),
        st.sampled_from(list(Option)),
        st.sampled_from(list(Reply)),
        st.binary(max_size=20),
    ),
    st.builds(
        nbd.COMPACT_REQUEST.pack,
        st.just(nbd.REQUEST),
        *[st.integers(0, 63)] * 2,
        *[st.integers(0, (1 << 64) - 1)] * 2,
        st.integers(0, (1 << 32) - 1),
    ),
    st.builds(
        lambda kind, flags, cookie, data: head(kind, len(data), cookie, flags) + data,
        st.sampled_from(list(nbd.Chunk)),
        st.integers(0, 3),
        st.integers(1, 2),
        st.binary(max_size=40),
    ),
    st.builds(
        nbd.WIDE_CHUNK.pack,
        st.just(nbd.EXTENDED_REPLY),
        st.integers(0, 1),
        st.sampled_from(list(nbd.Chunk)),
        st.integers(1, 2),
        st.integers(0, 10),
        st.integers(0, 1 << 40),
    ),
    st.just(nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(3)),
)


@pytest.mark.parametrize("end", ENDS)
@settings(max_examples=400, deadline=None)
@given(st.lists(words, max_size=12).map(b"".join))
def test_whatever_comes_is_understood_or_a_protocol_error(
    end: Callable[[bytes], None], data: bytes
) -> None:
    with contextlib.suppress(ProtocolError):
        end(data)


@pytest.mark.parametrize(
    ("end", "data"),
    [
        (served_anything, nbd.OPTION_HEAD.pack(nbd.NEWSTYLE, Option.GO, (1 << 32) - 1)),
        (replies_of_anything, head(nbd.Chunk.HOLE, 12) + nbd.HOLE_CHUNK.pack(0, (1 << 32) - 1)),
        (replies_of_anything, head(nbd.Chunk.STATUS, (1 << 32) - 1, cookie=2)),
        (replies_of_anything, head(nbd.Chunk.DATA, (1 << 32) - 1)),
        (requests_of_anything, nbd.COMPACT_REQUEST.pack(nbd.REQUEST, 0, 1, 1, 0, (1 << 32) - 1)),
    ],
)
def test_a_length_that_is_only_announced_costs_no_memory(
    end: Callable[[bytes], None], data: bytes
) -> None:
    tracemalloc.start()
    try:
        with contextlib.suppress(ProtocolError):
            end(data)
        assert tracemalloc.get_traced_memory()[1] < 4 * MIB
    finally:
        tracemalloc.stop()


# What is said of who does not keep to the protocol

NEW_SERVER = nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(3)
REFUSED = nbd.option_reply(Option.EXTENDED_HEADERS, Reply.UNSUPPORTED)
REFUSED += nbd.option_reply(Option.STRUCTURED_REPLY, Reply.UNSUPPORTED)


def info(kind: nbd.Info, content: bytes) -> bytes:
    return nbd.option_reply(Option.GO, Reply.INFO, nbd.U16.pack(kind) + content)


SIZE = info(nbd.Info.EXPORT, nbd.EXPORT_INFO.pack(MIB, nbd.HAS_FLAGS))
DONE = nbd.option_reply(Option.GO, Reply.ACK)


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n", "what answers there is no NBD server"),
        (nbd.HELLO.pack(nbd.GREETING, 7), "the server speaks a protocol that is not known here"),
        (
            nbd.HELLO.pack(nbd.GREETING, nbd.OLDSTYLE),
            "the server speaks the protocol of before 2011 (oldstyle)",
        ),
        (NEW_SERVER + DONE, "the server's reply to EXTENDED_HEADERS is none"),
        (
            NEW_SERVER + nbd.OPTION_REPLY_HEAD.pack(nbd.OPTION_REPLY, 11, 1, MIB),
            "the server's reply to EXTENDED_HEADERS is too long",
        ),
        (
            NEW_SERVER + nbd.option_reply(Option.EXTENDED_HEADERS, Reply.INFO) * 10_000,
            "the server's reply to EXTENDED_HEADERS has no end",
        ),
        (NEW_SERVER + REFUSED + DONE, "the server does not say how large the export is"),
        (
            NEW_SERVER + REFUSED + SIZE + info(nbd.Info.BLOCK_SIZE, b"?") + DONE,
            "the server's block sizes cannot be understood",
        ),
        (
            NEW_SERVER
            + REFUSED
            + SIZE
            + info(nbd.Info.BLOCK_SIZE, nbd.BLOCK_SIZES.pack(3, 4096, MIB))
            + DONE,
            "the server's block sizes are none: 3, 1048576",
        ),
        (
            NEW_SERVER + REFUSED + nbd.option_reply(Option.GO, Reply.UNKNOWN, b"which?"),
            "the server refuses GO: which?",
        ),
        (NEW_SERVER + REFUSED + nbd.option_reply(Option.GO, Reply.POLICY), "the server refuses GO"),
    ],
)
def test_a_client_says_what_is_wrong_with_a_server(sent: bytes, said: str) -> None:
    client = End(nbdclient.Handshake("absent").run())
    client.received += sent
    with pytest.raises(ProtocolError) as caught:
        client.run()
    assert caught.value.message == said
    assert caught.value.cure


def test_a_server_without_options_cannot_have_tls() -> None:
    client = End(nbdclient.Handshake("", tls=True).run())
    client.received += nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + bytes(2)
    with pytest.raises(ProtocolError, match="the server is too old for TLS"):
        client.run()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (nbd.U32.pack(4), "the client sets unknown flags: 0x4"),
        (nbd.U32.pack(3) + b"GET / HTTP/1.1\r\n", "what the client sends is no option"),
        (
            nbd.U32.pack(3) + nbd.OPTION_HEAD.pack(nbd.NEWSTYLE, Option.LIST, MIB),
            "an option of 1048576 bytes is too long",
        ),
        (
            nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME, b"absent"),
            "the client asks for an export that is not there",
        ),
        (
            nbd.U32.pack(3) + nbd.option(Option.EXTENDED_HEADERS) + nbd.option(Option.EXPORT_NAME),
            "the client sends EXPORT_NAME after EXTENDED_HEADERS",
        ),
    ],
)
def test_a_server_says_what_is_wrong_with_a_client(sent: bytes, said: str) -> None:
    server = End(nbdserver.Handshake(EXPORTS).run())
    server.received += sent
    with pytest.raises(ProtocolError) as caught:
        server.run()
    assert caught.value.message == said


def test_a_client_without_tls_that_cannot_be_told_is_hung_up_on() -> None:
    server = End(nbdserver.Handshake(EXPORTS, tls=True).run())
    server.received += nbd.U32.pack(3) + nbd.option(Option.EXPORT_NAME, b"disk.raw")
    with pytest.raises(ProtocolError, match="the client asks for an export without TLS"):
        server.run()


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"?" * 28, "what the client sends is no request"),
        (
            nbd.COMPACT_REQUEST.pack(nbd.REQUEST, 0, Command.WRITE, 1, 0, 64 * MIB),
            "the client sends 67108864 bytes at once",
        ),
    ],
)
def test_a_server_says_what_is_wrong_with_a_request(sent: bytes, said: str) -> None:
    with pytest.raises(ProtocolError) as caught:
        RequestReader(Style.SIMPLE).feed(sent)
    assert caught.value.message == said


@pytest.mark.parametrize(
    ("data", "take", "said"),
    [
        (b"\xff", Fields.rest, "a string is not UTF-8"),
        (b"a\0b", Fields.rest, "a string holds a NUL"),
        (bytes(5000), Fields.rest, "a string of 5000 bytes is too long"),
        (b"a", Fields.u16, "a field reaches beyond the end of its message"),
        (b"abc", Fields.end, "a message is 3 bytes too long"),
    ],
)
def test_what_is_wrong_with_a_message_is_said(
    data: bytes, take: Callable[[Fields], object], said: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        take(Fields(data))
    assert caught.value.message == said


def status_chunk(*extents: tuple[int, int], flags: int = nbd.CHUNK_DONE) -> bytes:
    packed = b"".join(nbd.COMPACT_EXTENT.pack(*extent) for extent in extents)
    return head(nbd.Chunk.STATUS, 4 + len(packed), flags=flags) + nbd.U32.pack(1) + packed


def piece(offset: int, length: int, flags: int = 0) -> bytes:
    return head(nbd.Chunk.DATA, 8 + length, flags=flags) + nbd.U64.pack(offset) + bytes(length)


def for_a_read() -> PendingRead:
    return PendingRead(0, 100, lambda: None)


def for_a_status() -> PendingStatus:
    return PendingStatus(0, lambda: None)


@pytest.mark.parametrize(
    ("pending", "sent", "said"),
    [
        (for_a_read, b"x" * 20, "what the server sends is no reply"),
        (
            for_a_read,
            head(nbd.Chunk.NONE, 0, cookie=2),
            "the server answers what it was not asked",
        ),
        (for_a_read, piece(0, 10, nbd.CHUNK_DONE), "the server's answer to a READ has gaps"),
        (for_a_read, piece(95, 10), "the server sends what it was not asked for"),
        (
            for_a_read,
            piece(90, 1) + piece(90, 1),
            "the server sends a READ in too many pieces",
        ),
        (
            for_a_read,
            nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, 0, 1),
            "the server sends a simple reply to a READ",
        ),
        (for_a_read, head(nbd.Chunk.DATA, 109), "the server sends a chunk of 109 bytes"),
        (for_a_read, head(99, 0), "the server sends a chunk of kind 99 of 0 bytes"),
        (for_a_read, status_chunk((1, 0)), "the server sends a status that nobody has asked for"),
        (
            for_a_status,
            head(nbd.Chunk.HOLE, 12) + nbd.HOLE_CHUNK.pack(0, 10),
            "the server sends a hole that nobody has asked for",
        ),
        (for_a_status, status_chunk(), "the server's extents cannot be understood"),
        (
            for_a_status,
            status_chunk((0, 1)),
            "the server's answer to a BLOCK_STATUS cannot be right",
        ),
    ],
)
def test_a_client_says_what_is_wrong_with_a_reply(
    pending: Callable[[], Any], sent: bytes, said: str
) -> None:
    with pytest.raises(ProtocolError) as caught:
        replies(Style.STRUCTURED, {1: pending()}, sent, [])
    assert caught.value.message == said


def test_data_that_answer_nothing_are_refused() -> None:
    with pytest.raises(ProtocolError, match="the server sends data that nobody has asked for"):
        for_a_status().data(0, b"x")

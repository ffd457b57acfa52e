"""The client's end of the NBD protocol. Pure: see ``nbd.py``.

It supports only reading. The amount of data accepted from a server is limited by the requests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from struct import Struct

from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import (
    Chunk,
    Dialogue,
    Extent,
    Fields,
    Info,
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

_MOST_REPLIES = 4096  # to one option
_MOST_EARLY = 1024  # chunks of a read that arrived out of order
_LONGEST_ERROR = 3 * nbd.LONGEST_STRING  # bytes of an error chunk, with trailing data
_LONGEST: dict[int, int] = {  # bytes of other chunks, except data
    Chunk.NONE: 0,
    Chunk.HOLE: nbd.HOLE_CHUNK.size,
    Chunk.STATUS: 4 + nbd.COMPACT_EXTENT.size * nbd.MOST_EXTENTS,
    Chunk.EXTENDED_STATUS: 8 + nbd.WIDE_EXTENT.size * nbd.MOST_EXTENTS,
}


@dataclass(frozen=True)
class Opened:
    """The result of a handshake.

    ``size``: of the export, in bytes.
    ``minimum``, ``largest``: the block size and the longest read, in bytes.
    ``contexts``: the numbers of the selected metadata contexts, by name.
    """

    size: int
    flags: int
    style: Style
    minimum: int = 1
    largest: int = nbd.LARGEST_PAYLOAD
    contexts: dict[str, int] = field(default_factory=dict)


class Refused(ProtocolError):
    """The server refuses an option. ``reply``: the reason; see ``nbd.Reply``."""

    def __init__(self, option: Option, reply: int, said: str) -> None:
        super().__init__(f"the server refuses {option.name}{f': {said}' if said else ''}")
        self.reply = reply


class Handshake:
    """A client's handshake for one export."""

    def __init__(self, export: str, contexts: Sequence[str] = (), *, tls: bool = False) -> None:
        """``contexts``: optional metadata contexts. ``tls``: whether TLS is required."""
        self._export = export
        self._wanted = contexts
        self._tls = tls

    def run(self) -> Dialogue[Opened]:
        """Raises Refused or another ProtocolError."""
        offered = yield from self._hello()
        fixed = bool(offered & nbd.FIXED_NEWSTYLE)
        if self._tls:
            if not fixed:
                raise ProtocolError("the server is too old for TLS")
            yield from _ask(Option.STARTTLS)
            yield StartTls()
        if not fixed:
            return (yield from self._export_name(Style.SIMPLE, zeroes=not offered & nbd.NO_ZEROES))
        style = yield from self._choose_style()
        contexts: dict[str, int] = {}
        if style is not Style.SIMPLE and self._wanted:
            contexts = yield from self._select_contexts()
        try:
            described = yield from _ask(Option.GO, self._go())
        except Refused as error:
            if error.reply != Reply.UNSUPPORTED or style is Style.EXTENDED:
                raise
            zeroes = not offered & nbd.NO_ZEROES
            return (yield from self._export_name(style, zeroes=zeroes, contexts=contexts))
        return _opened(described, style, contexts)

    def _hello(self) -> Dialogue[int]:
        """Exchange greetings; returns the server's handshake flags."""
        greeting, style = nbd.HELLO.unpack((yield Receive(nbd.HELLO.size)))
        if greeting != nbd.GREETING:
            raise ProtocolError("what answers there is no NBD server")
        if style == nbd.OLDSTYLE:
            raise ProtocolError("the server speaks the protocol of before 2011 (oldstyle)")
        if style != nbd.NEWSTYLE:
            raise ProtocolError("the server speaks a protocol that is not known here")
        (offered,) = nbd.U16.unpack((yield Receive(2)))
        yield Send(nbd.U32.pack(offered & (nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES)))
        return int(offered)

    def _choose_style(self) -> Dialogue[Style]:
        """Negotiate the best style that the server supports."""
        for option, style in (
            (Option.EXTENDED_HEADERS, Style.EXTENDED),
            (Option.STRUCTURED_REPLY, Style.STRUCTURED),
        ):
            try:
                yield from _ask(option)
            except Refused as error:
                if error.reply in (Reply.TLS_REQUIRED, Reply.SHUTDOWN):
                    raise
            else:
                return style
        return Style.SIMPLE

    def _select_contexts(self) -> Dialogue[dict[str, int]]:
        queries = b"".join(nbd.counted(name) for name in self._wanted)
        wish = nbd.counted(self._export) + nbd.U32.pack(len(self._wanted)) + queries
        try:
            replies = yield from _ask(Option.SET_META_CONTEXT, wish)
        except Refused:  # also if the server has no such export, which GO will report
            return {}
        found = {}
        for reply, data in replies:
            if reply == Reply.META_CONTEXT:
                fields = Fields(data)
                number = fields.u32()
                found[fields.rest()] = number
        return {name: number for name, number in found.items() if name in self._wanted}

    def _go(self) -> bytes:
        return nbd.counted(self._export) + nbd.U16.pack(1) + nbd.U16.pack(Info.BLOCK_SIZE)

    def _export_name(
        self, style: Style, *, zeroes: bool, contexts: dict[str, int] | None = None
    ) -> Dialogue[Opened]:
        """Choose the export with EXPORT_NAME, for servers without GO."""
        yield Send(nbd.option(Option.EXPORT_NAME, self._export.encode()))
        size, flags = nbd.EXPORT_INFO.unpack((yield Receive(nbd.EXPORT_INFO.size)))
        if zeroes:
            yield Receive(len(nbd.RESERVED))
        return Opened(size, flags, style, contexts=contexts or {})


def _ask(option: Option, data: bytes = b"") -> Dialogue[list[tuple[int, bytes]]]:
    """Send an option; returns the server's replies before its ACK. Raises Refused."""
    yield Send(nbd.option(option, data))
    replies: list[tuple[int, bytes]] = []
    while len(replies) < _MOST_REPLIES:
        head = yield Receive(nbd.OPTION_REPLY_HEAD.size)
        magic, number, reply, length = nbd.OPTION_REPLY_HEAD.unpack(head)
        if magic != nbd.OPTION_REPLY or number != option:
            raise ProtocolError(f"the server's reply to {option.name} is none")
        if length > nbd.LONGEST_OPTION:
            raise ProtocolError(f"the server's reply to {option.name} is too long")
        content = yield Receive(length)
        if reply & nbd.REPLY_IS_ERROR:
            raise Refused(option, reply, _readable(content))
        if reply == Reply.ACK:
            return replies
        replies.append((reply, content))
    raise ProtocolError(f"the server's reply to {option.name} has no end")


def _opened(
    described: Sequence[tuple[int, bytes]], style: Style, contexts: dict[str, int]
) -> Opened:
    """The handshake's result, from the replies to GO."""
    found: dict[int, bytes] = {}
    for reply, data in described:
        if reply == Reply.INFO:
            fields = Fields(data)
            kind = fields.u16()
            found[kind] = fields.take(fields.left)
    if len(found.get(Info.EXPORT, b"")) != nbd.EXPORT_INFO.size:
        raise ProtocolError("the server does not say how large the export is")
    size, flags = nbd.EXPORT_INFO.unpack(found[Info.EXPORT])
    minimum, largest = 1, nbd.LARGEST_PAYLOAD
    sizes = found.get(Info.BLOCK_SIZE)
    if sizes is not None:
        if len(sizes) != nbd.BLOCK_SIZES.size:
            raise ProtocolError("the server's block sizes cannot be understood")
        minimum, _, largest = nbd.BLOCK_SIZES.unpack(sizes)
        if minimum & (minimum - 1) or not 0 < minimum <= 1 << 16 or largest < minimum:
            raise ProtocolError(f"the server's block sizes are none: {minimum}, {largest}")
    largest = min(largest, nbd.LARGEST_PAYLOAD)
    return Opened(size, flags, style, minimum, largest - largest % minimum, contexts)


def _readable(said: bytes) -> str:
    """A server's text, sanitised and cut for a message of one line."""
    text = said[: nbd.LONGEST_STRING].decode(errors="replace")
    return "".join(c if c.isprintable() else " " for c in text).strip()[:200]


def request(style: Style, wanted: Request) -> bytes:
    """Encode a request without a payload."""
    if style is Style.EXTENDED:
        return nbd.WIDE_REQUEST.pack(nbd.EXTENDED_REQUEST, *wanted)
    return nbd.COMPACT_REQUEST.pack(nbd.REQUEST, *wanted)


class Failed(Exception):
    """The server reports that a request failed. ``number``: the error; see ``nbd.Error``."""

    def __init__(self, number: int, said: str) -> None:
        super().__init__(said)
        self.number = number
        self.said = said


class Pending:
    """A request in flight, which collects its reply.

    ``payload``: bytes of the image in the reply.
    ``changed``: called when more of the reply is available, and at its end.

    Content that was not requested raises ProtocolError.
    """

    def __init__(self, offset: int, payload: int, changed: Callable[[], None]) -> None:
        self.offset = offset
        self.payload = payload
        self.failure: Failed | None = None
        self.ended = False
        self._changed = changed

    def data(self, offset: int, content: bytes) -> None:  # noqa: ARG002
        raise ProtocolError("the server sends data that nobody has asked for")

    def hole(self, offset: int, length: int) -> None:  # noqa: ARG002
        raise ProtocolError("the server sends a hole that nobody has asked for")

    def status(self, context: int, extents: list[Extent]) -> None:  # noqa: ARG002
        raise ProtocolError("the server sends a status that nobody has asked for")

    def end(self, failure: Failed | None) -> None:
        self.failure, self.ended = failure, True
        self._changed()


class PendingRead(Pending):
    """A READ: yields its bytes in order, even if chunks arrive out of order."""

    def __init__(self, offset: int, length: int, changed: Callable[[], None]) -> None:
        super().__init__(offset, length, changed)
        self._next = offset  # the end of the contiguous bytes that have arrived
        self._stop = offset + length
        self._ready: list[bytes] = []
        self._early: dict[int, bytes | int] = {}  # by offset: content, or the length of a hole
        self._unsent = length  # bytes that the server may still send
        self._wanted = True

    @property
    def ready(self) -> bool:
        """Whether ``take`` returns bytes, or the reply has ended."""
        return bool(self._ready) or self.ended

    def take(self) -> list[bytes]:
        """The next bytes, as far as they have arrived."""
        ready, self._ready = self._ready, []
        return ready

    def abandon(self) -> None:
        """Discard all further bytes."""
        self._wanted = False
        self._ready = []

    def data(self, offset: int, content: bytes) -> None:
        self._add(offset, content, len(content))

    def hole(self, offset: int, length: int) -> None:
        self._add(offset, length, length)

    def end(self, failure: Failed | None) -> None:
        if failure is None and self._next != self._stop:
            raise ProtocolError("the server's answer to a READ has gaps")
        super().end(failure)

    def _add(self, offset: int, content: bytes | int, length: int) -> None:
        self._unsent -= length
        if offset < self._next or offset + length > self._stop or self._unsent < 0:
            raise ProtocolError("the server sends what it was not asked for")
        if offset != self._next:
            if offset in self._early or len(self._early) == _MOST_EARLY:
                raise ProtocolError("the server sends a READ in too many pieces")
            self._early[offset] = content
            return
        self._append(content)
        while self._next in self._early:
            self._append(self._early.pop(self._next))
        self._changed()

    def _append(self, content: bytes | int) -> None:
        if self._wanted:
            self._ready.append(bytes(content))  # bytes(number) makes that many zeros
        self._next += content if isinstance(content, int) else len(content)


class PendingStatus(Pending):
    """A BLOCK_STATUS: collects the extents of each context, by its number."""

    def __init__(self, offset: int, changed: Callable[[], None]) -> None:
        super().__init__(offset, 0, changed)
        self.extents: dict[int, list[Extent]] = {}

    def status(self, context: int, extents: list[Extent]) -> None:
        if context in self.extents or not all(length for length, _ in extents):
            raise ProtocolError("the server's answer to a BLOCK_STATUS cannot be right")
        self.extents[context] = extents


class ReplyReader:
    """Passes each reply to its request, by cookie."""

    def __init__(self, style: Style, pending: dict[int, Pending]) -> None:
        """``pending``: the requests in flight, by cookie; removed at the end of their replies."""
        self._style = style
        self._pending = pending
        self._failures: dict[int, Failed] = {}  # of requests whose replies have not ended

    def run(self) -> Dialogue[None]:
        """Read replies for ever. Raises ProtocolError."""
        while True:
            if self._style is Style.EXTENDED:
                head = nbd.WIDE_CHUNK.unpack((yield Receive(nbd.WIDE_CHUNK.size)))
                magic, flags, kind, cookie, _, length = head
                if magic != nbd.EXTENDED_REPLY:
                    raise ProtocolError("what the server sends is no reply")
                yield from self._chunk(flags, kind, cookie, length)
                continue
            start = yield Receive(nbd.SIMPLE_HEAD.size)
            magic, error, cookie = nbd.SIMPLE_HEAD.unpack(start)
            if magic == nbd.SIMPLE_REPLY:
                yield from self._simple(error, cookie)
            elif magic == nbd.STRUCTURED_REPLY and self._style is Style.STRUCTURED:
                rest = yield Receive(nbd.COMPACT_CHUNK.size - len(start))
                _, flags, kind, cookie, length = nbd.COMPACT_CHUNK.unpack(start + rest)
                yield from self._chunk(flags, kind, cookie, length)
            else:
                raise ProtocolError("what the server sends is no reply")

    def _simple(self, error: int, cookie: int) -> Dialogue[None]:
        pending = self._find(cookie)
        if not error and pending.payload:
            if self._style is not Style.SIMPLE:
                raise ProtocolError("the server sends a simple reply to a READ")
            yield from self._data(pending, pending.offset, pending.payload)
        self._end(cookie, Failed(error, "") if error else None)

    def _chunk(self, flags: int, kind: int, cookie: int, length: int) -> Dialogue[None]:
        pending = self._find(cookie)
        if kind == Chunk.DATA:
            if not 8 < length <= 8 + pending.payload:
                raise ProtocolError(f"the server sends a chunk of {length} bytes")
            (offset,) = nbd.U64.unpack((yield Receive(8)))
            yield from self._data(pending, offset, length - 8)
        elif length > _longest(kind):
            raise ProtocolError(f"the server sends a chunk of kind {kind} of {length} bytes")
        else:
            self._small_chunk(pending, kind, cookie, (yield Receive(length)))
        if flags & nbd.CHUNK_DONE:
            self._end(cookie, self._failures.pop(cookie, None))

    def _data(self, pending: Pending, offset: int, length: int) -> Dialogue[None]:
        """Pass on ``length`` bytes as they arrive."""
        while length:
            piece = yield ReceiveSome(length)
            pending.data(offset, piece)
            offset += len(piece)
            length -= len(piece)

    def _small_chunk(self, pending: Pending, kind: int, cookie: int, payload: bytes) -> None:
        fields = Fields(payload)
        if kind & nbd.CHUNK_IS_ERROR:
            number = fields.u32()
            said = fields.take(fields.u16())
            self._failures.setdefault(cookie, Failed(number, _readable(said)))
        elif kind == Chunk.HOLE:
            offset, length = nbd.HOLE_CHUNK.unpack(fields.take(nbd.HOLE_CHUNK.size))
            pending.hole(offset, length)
        elif kind == Chunk.STATUS:
            extents = _extents(nbd.COMPACT_EXTENT, payload[4:])
            pending.status(fields.u32(), extents)
        elif kind == Chunk.EXTENDED_STATUS:
            extents = _extents(nbd.WIDE_EXTENT, payload[8:])
            pending.status(fields.u32(), extents)

    def _find(self, cookie: int) -> Pending:
        if cookie not in self._pending:
            raise ProtocolError("the server answers what it was not asked")
        return self._pending[cookie]

    def _end(self, cookie: int, failure: Failed | None) -> None:
        self._pending.pop(cookie).end(failure)


def _longest(kind: int) -> int:
    """The longest payload of a chunk, in bytes; -1 for an unknown kind."""
    if kind & nbd.CHUNK_IS_ERROR:
        return _LONGEST_ERROR
    return _LONGEST.get(kind, -1)


def _extents(layout: Struct, described: bytes) -> list[Extent]:
    if not described or len(described) % layout.size:
        raise ProtocolError("the server's extents cannot be understood")
    return list(layout.iter_unpack(described))

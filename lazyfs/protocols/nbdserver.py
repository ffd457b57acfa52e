"""The server's end of the NBD protocol. Pure: see ``nbd.py``.

The exports are read-only. A request is judged before it is executed; an accepted one is within the
export and of limited size.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import (
    Chunk,
    Command,
    Dialogue,
    Error,
    Extent,
    Fields,
    Info,
    Option,
    ProtocolError,
    Receive,
    Reply,
    Request,
    Send,
    StartTls,
    Style,
    option_reply,
)

LARGEST_UNBROKEN = 1 << 20  # bytes that a client may forbid to be fragmented

_CONTEXTS = {1: nbd.ALLOCATION, 2: nbd.CACHED}
_MOST_EXTENTS = 4096  # in one reply, so that none takes long; the client then asks for more
_PREFERRED = 4096  # bytes: the preferred alignment of requests
_WRITING = (Command.WRITE, Command.TRIM, Command.WRITE_ZEROES)
_ALLOWED_FLAGS = {Command.READ: nbd.DF, Command.BLOCK_STATUS: nbd.REQ_ONE, Command.CACHE: 0}


@dataclass(frozen=True)
class ExportInfo:
    """An export, as described to clients. ``size``: bytes."""

    name: str
    description: str
    size: int


@dataclass(frozen=True)
class Session:
    """The result of a handshake. ``contexts``: the selected metadata contexts, by number."""

    export: ExportInfo
    style: Style
    contexts: dict[int, str] = field(default_factory=dict)


class Handshake:
    """The handshake with one client. The first of ``exports`` is the default."""

    def __init__(self, exports: Sequence[ExportInfo], *, tls: bool = False) -> None:
        """``tls``: whether TLS is required."""
        self._default = exports[0]
        self._exports = {export.name: export for export in exports}
        self._tls = tls
        self._encrypted = False
        self._zeroes = True
        self._style = Style.SIMPLE
        self._contexts: dict[int, str] = {}
        self._contexts_of: ExportInfo | None = None

    def run(self) -> Dialogue[Session | None]:
        """Returns the session, or None if the client aborts. Raises ProtocolError."""
        offered = nbd.FIXED_NEWSTYLE | nbd.NO_ZEROES
        yield Send(nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(offered))
        (flags,) = nbd.U32.unpack((yield Receive(4)))
        if flags & ~offered:
            raise ProtocolError(f"the client sets unknown flags: {flags:#x}")
        self._zeroes = not flags & nbd.NO_ZEROES
        while True:
            magic, number, length = nbd.OPTION_HEAD.unpack((yield Receive(16)))
            if magic != nbd.NEWSTYLE:
                raise ProtocolError("what the client sends is no option")
            if length > nbd.LONGEST_OPTION:
                raise ProtocolError(f"an option of {length} bytes is too long")
            data = yield Receive(length)
            if number == Option.EXPORT_NAME:
                return (yield from self._export_name(data))
            answer, session = self._answer(number, data)
            yield Send(answer)
            if session is not None or number == Option.ABORT:
                return session
            if number == Option.STARTTLS and answer == option_reply(number, Reply.ACK):
                yield StartTls()
                self._encrypted = True  # no state to reset: all options before were refused

    def _export_name(self, data: bytes) -> Dialogue[Session]:
        """Answer EXPORT_NAME, the one option that can be refused only by disconnecting."""
        if self._tls and not self._encrypted:
            raise ProtocolError("the client asks for an export without TLS")
        if self._style is Style.EXTENDED:
            raise ProtocolError("the client sends EXPORT_NAME after EXTENDED_HEADERS")
        export = self._find(Fields(data).rest())
        if export is None:
            raise ProtocolError("the client asks for an export that is not there")
        answer = nbd.EXPORT_INFO.pack(export.size, self._flags())
        yield Send(answer + nbd.RESERVED if self._zeroes else answer)
        return self._session(export)

    def _answer(self, number: int, data: bytes) -> tuple[bytes, Session | None]:
        """The reply to an option, and the session if it ends the handshake."""
        if number == Option.ABORT:
            return option_reply(number, Reply.ACK), None
        if self._tls and not self._encrypted and number != Option.STARTTLS:
            return _refusal(number, Reply.TLS_REQUIRED, "nothing is served without TLS"), None
        try:
            if number in (Option.INFO, Option.GO):
                return self._info(number, Fields(data))
            if number in (Option.LIST_META_CONTEXT, Option.SET_META_CONTEXT):
                return self._meta_context(number, Fields(data)), None
            if number in (Option.LIST, Option.STARTTLS, *_SWITCHES):
                Fields(data).end()
                return self._plain(number), None
        except ProtocolError as error:
            return _refusal(number, Reply.INVALID, error.message), None
        return _refusal(number, Reply.UNSUPPORTED, "this option is not known here"), None

    def _plain(self, number: int) -> bytes:
        """The reply to an option without data."""
        if number == Option.LIST:
            servers = [
                option_reply(number, Reply.SERVER, nbd.counted(e.name) + e.description.encode())
                for e in self._exports.values()
            ]
            return b"".join([*servers, option_reply(number, Reply.ACK)])
        if number == Option.STARTTLS:
            if not self._tls:
                return _refusal(number, Reply.POLICY, "this server has no certificate")
            if self._encrypted:
                return _refusal(number, Reply.INVALID, "TLS is in use already")
        elif self._style is Style.EXTENDED:
            reply = Reply.EXTENDED_REQUIRED if number == Option.STRUCTURED_REPLY else Reply.INVALID
            return _refusal(number, reply, "extended headers are in use already")
        else:
            self._style = _SWITCHES[number]
        return option_reply(number, Reply.ACK)

    def _info(self, number: int, fields: Fields) -> tuple[bytes, Session | None]:
        name = fields.counted()
        wanted = {fields.u16() for _ in range(fields.u16())}
        fields.end()
        export = self._find(name)
        if export is None:
            return _refusal(number, Reply.UNKNOWN, "there is no export of this name"), None
        described = [(Info.EXPORT, nbd.EXPORT_INFO.pack(export.size, self._flags()))]
        if Info.NAME in wanted:
            described.append((Info.NAME, export.name.encode()))
        if Info.DESCRIPTION in wanted and export.description:
            described.append((Info.DESCRIPTION, export.description.encode()))
        if Info.BLOCK_SIZE in wanted:
            sizes = nbd.BLOCK_SIZES.pack(1, _PREFERRED, nbd.LARGEST_PAYLOAD)
            described.append((Info.BLOCK_SIZE, sizes))
        replies = [
            option_reply(number, Reply.INFO, nbd.U16.pack(kind) + content)
            for kind, content in described
        ]
        session = self._session(export) if number == Option.GO else None
        return b"".join([*replies, option_reply(number, Reply.ACK)]), session

    def _meta_context(self, number: int, fields: Fields) -> bytes:
        """List contexts, or select some, replacing the previous selection."""
        selecting = number == Option.SET_META_CONTEXT
        if selecting:
            self._contexts, self._contexts_of = {}, None
        export = self._find(fields.counted())
        queries = [fields.counted() for _ in range(fields.u32())]
        fields.end()
        if self._style is Style.SIMPLE:
            return _refusal(number, Reply.INVALID, "this needs structured replies first")
        if export is None:
            return _refusal(number, Reply.UNKNOWN, "there is no export of this name")
        if any(":" not in query for query in queries):
            return _refusal(number, Reply.INVALID, "a query has no namespace")
        if selecting:
            found = {key: name for key, name in _CONTEXTS.items() if name in queries}
            self._contexts, self._contexts_of = found, export
        else:
            found = {key: name for key, name in _CONTEXTS.items() if _is_listed(name, queries)}
        replies = [
            option_reply(number, Reply.META_CONTEXT, nbd.U32.pack(key) + name.encode())
            for key, name in found.items()
        ]
        return b"".join([*replies, option_reply(number, Reply.ACK)])

    def _find(self, name: str) -> ExportInfo | None:
        return self._exports.get(name) if name else self._default

    def _flags(self) -> int:
        flags = nbd.HAS_FLAGS | nbd.READ_ONLY | nbd.CAN_MULTI_CONN | nbd.SEND_CACHE
        return flags if self._style is Style.SIMPLE else flags | nbd.SEND_DF

    def _session(self, export: ExportInfo) -> Session:
        contexts = self._contexts if export is self._contexts_of else {}
        return Session(export, self._style, contexts)


# Options that change how requests are answered.
_SWITCHES: dict[int, Style] = {
    Option.STRUCTURED_REPLY: Style.STRUCTURED,
    Option.EXTENDED_HEADERS: Style.EXTENDED,
}


def _is_listed(context: str, queries: Sequence[str]) -> bool:
    """Whether a context matches the queries; a namespace alone matches all its contexts."""
    namespace = context.partition(":")[0] + ":"
    return not queries or context in queries or namespace in queries


def _refusal(number: int, reply: Reply, why: str) -> bytes:
    return option_reply(number, reply, why.encode())


class RequestReader:
    """Parses requests from a stream of bytes. Payloads of write requests are skipped."""

    def __init__(self, style: Style) -> None:
        self._wide = style is Style.EXTENDED
        self._head = nbd.WIDE_REQUEST if self._wide else nbd.COMPACT_REQUEST
        self._magic = nbd.EXTENDED_REQUEST if self._wide else nbd.REQUEST
        self._unread = b""
        self._skip = 0  # bytes of a payload that are still to come

    def feed(self, data: bytes | bytearray) -> list[Request]:
        """The requests that are complete now. Raises ProtocolError."""
        data = self._unread + data
        position = 0
        found: list[Request] = []
        while True:
            skipped = min(self._skip, len(data) - position)
            position += skipped
            self._skip -= skipped
            if len(data) - position < self._head.size:
                self._unread = bytes(data[position:])
                return found
            magic, *fields = self._head.unpack_from(data, position)
            if magic != self._magic:
                raise ProtocolError("what the client sends is no request")
            position += self._head.size
            request = Request(*fields)
            self._skip = self._payload(request)
            found.append(request)

    def _payload(self, request: Request) -> int:
        """The length of a request's payload, in bytes."""
        if self._wide:
            follows = bool(request.flags & nbd.PAYLOAD_LEN)
        else:
            follows = request.command == Command.WRITE
        if follows and request.length > nbd.LARGEST_PAYLOAD:
            raise ProtocolError(f"the client sends {request.length} bytes at once")
        return request.length if follows else 0


def judge(request: Request, session: Session) -> tuple[Error, str] | None:
    """Why a request is refused: the error code and a text; None if it is accepted."""
    command, length = request.command, request.length
    if command in _WRITING:
        return Error.PERM, "the export is read-only"
    if command not in _ALLOWED_FLAGS:
        return Error.INVAL, f"command {command} is not known here"
    if request.flags & ~_ALLOWED_FLAGS[Command(command)]:
        return Error.INVAL, f"flags {request.flags:#x} do not belong to command {command}"
    if length == 0:
        return Error.INVAL, "nothing is asked for"
    if request.offset + length > session.export.size:
        return Error.INVAL, "this is beyond the end of the export"
    if command == Command.BLOCK_STATUS and not session.contexts:
        return Error.INVAL, "no metadata context was selected"
    if command == Command.READ:
        return _judge_read(request, session)
    return None


def _judge_read(request: Request, session: Session) -> tuple[Error, str] | None:
    if request.length > nbd.LARGEST_PAYLOAD:
        return Error.OVERFLOW, f"at most {nbd.LARGEST_PAYLOAD} bytes are read at once"
    if request.flags & nbd.DF:
        if session.style is Style.SIMPLE:
            return Error.INVAL, "DF needs structured replies"
        if request.length > LARGEST_UNBROKEN:
            return Error.OVERFLOW, f"more than {LARGEST_UNBROKEN} bytes come in fragments"
    return None


def success(style: Style, request: Request) -> bytes:
    """The whole reply to a request without a result."""
    if style is Style.SIMPLE:
        return nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, 0, request.cookie)
    return _chunk(style, request, Chunk.NONE, 0, done=True)


def data_head(style: Style, request: Request, offset: int, length: int) -> bytes:
    """The head before ``length`` bytes of data for a READ.

    It is the last chunk if these are the last bytes of the request. A simple reply has one head,
    before its first bytes.
    """
    if style is Style.SIMPLE:
        first = offset == request.offset
        return nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, 0, request.cookie) if first else b""
    done = offset + length == request.offset + request.length
    head = _chunk(style, request, Chunk.DATA, 8 + length, done=done)
    return head + nbd.U64.pack(offset)


def failure(style: Style, request: Request, error: Error, why: str) -> bytes:
    """The reply, or the end of it, to a failed request. ``why``: a text for the user."""
    if style is Style.SIMPLE:
        return nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, error, request.cookie)
    message = why.encode()[: nbd.LONGEST_STRING].decode(errors="ignore").encode()
    payload = nbd.ERROR_HEAD.pack(error, len(message)) + message
    return _chunk(style, request, Chunk.ERROR, len(payload), done=True) + payload


def status(
    style: Style, request: Request, context: int, extents: Iterable[Extent], *, done: bool
) -> bytes:
    """A chunk with the extents of a context, from the request's offset on.

    Adjacent extents with equal flags are joined. ``done``: whether it is the last chunk.
    """
    wide = style is Style.EXTENDED
    extent = nbd.WIDE_EXTENT if wide else nbd.COMPACT_EXTENT
    described = b"".join(extent.pack(*e) for e in _status_extents(request, extents, wide=wide))
    if wide:
        head = nbd.WIDE_STATUS_HEAD.pack(context, len(described) // extent.size)
    else:
        head = nbd.U32.pack(context)
    kind = Chunk.EXTENDED_STATUS if wide else Chunk.STATUS
    return _chunk(style, request, kind, len(head + described), done=done) + head + described


def _status_extents(request: Request, extents: Iterable[Extent], *, wide: bool) -> list[Extent]:
    """The extents, joined, and cut to the request and to the limits of one reply."""
    joined: list[Extent] = []
    left = request.length if wide else min(request.length, nbd.MAX_COMPACT)
    for whole, flags in extents:
        length = min(whole, left)
        left -= length
        if joined and joined[-1][1] == flags:
            joined[-1] = (joined[-1][0] + length, flags)
        elif length:
            if len(joined) == (1 if request.flags & nbd.REQ_ONE else _MOST_EXTENTS):
                break
            joined.append((length, flags))
        if not left:
            break
    return joined


def _chunk(style: Style, request: Request, kind: Chunk, length: int, *, done: bool) -> bytes:
    flags = nbd.CHUNK_DONE if done else 0
    if style is Style.EXTENDED:
        return nbd.WIDE_CHUNK.pack(
            nbd.EXTENDED_REPLY, flags, kind, request.cookie, request.offset, length
        )
    return nbd.COMPACT_CHUNK.pack(nbd.STRUCTURED_REPLY, flags, kind, request.cookie, length)

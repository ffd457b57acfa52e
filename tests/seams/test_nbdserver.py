"""The NBD server in front of a Device, over streams in memory."""

import contextlib
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import trio
import trio.testing
from fakes import RecordingDevice, noise

from lazyfs.core.errors import SourceError
from lazyfs.frontends import nbdserver
from lazyfs.frontends.nbdserver import PIECE, Export, NbdServer
from lazyfs.protocols import nbd, nbdclient
from lazyfs.protocols.nbd import Command, Error, Option, Request, Style
from lazyfs.protocols.nbdclient import Opened, Pending, PendingRead, PendingStatus, ReplyReader
from lazyfs.protocols.wire import EndOfStream, Wire, converse, take_step

CONTENT = noise(6 << 20)


class Gated(RecordingDevice):
    """A Device that has the first half of its content, and the rest when it is let."""

    def __init__(self, content: bytes = CONTENT) -> None:
        super().__init__(content)
        self.local = len(content) // 2
        self.gate = trio.Event()
        self.failure: Exception | None = None
        self.at_once = self.most_at_once = 0

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        here = min(max(self.local - offset, 0), length)
        yield from [(n, local) for n, local in ((here, True), (length - here, False)) if n]

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        if self.failure is not None:
            raise self.failure
        return [(length // 2, True), (length - length // 2, False)]

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.local:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                await self.gate.wait()
            finally:
                self.at_once -= 1
            if self.failure is not None:
                raise self.failure
        return await super().read(offset, length)


@dataclass
class Client:
    """The client's end, with what it has asked and not been answered."""

    wire: Wire
    opened: Opened
    pending: dict[int, Pending] = field(default_factory=dict)
    cookies: int = 0

    def __post_init__(self) -> None:
        self._replies = ReplyReader(self.opened.style, self.pending).run()
        self._step = next(self._replies)

    async def ask(self, command: int, pending: Pending, length: int, flags: int = 0) -> Any:
        self.cookies += 1
        self.pending[self.cookies] = pending
        request = Request(flags, command, self.cookies, pending.offset, length)
        await self.wire.send(nbdclient.request(self.opened.style, request))
        return pending

    async def ask_read(self, offset: int, length: int, flags: int = 0) -> PendingRead:
        read = PendingRead(offset, length, lambda: None)
        return await self.ask(Command.READ, read, length, flags)

    async def ended(self, pending: Pending) -> None:
        while not pending.ended:
            self._step = self._replies.send(await take_step(self.wire, self._step))

    async def read(self, offset: int, length: int) -> bytes:
        pending = await self.ask_read(offset, length)
        await self.ended(pending)
        assert pending.failure is None
        return b"".join(pending.take())

    async def error(self, command: int, offset: int, length: int, flags: int = 0) -> int | None:
        pending = await self.ask(command, PendingRead(offset, length, lambda: None), length, flags)
        await self.ended(pending)
        return pending.failure and pending.failure.number


async def shake_hands(stream: trio.abc.Stream, style: Style = Style.EXTENDED) -> Client:
    """Connect as a client that knows no better style."""
    wire = Wire(stream)
    handshake = nbdclient.Handshake("", (nbd.ALLOCATION, nbd.CACHED))
    handshake._choose_style = lambda: _fixed(style)  # type: ignore[method-assign]
    return Client(wire, await converse(wire, handshake.run()))


def _fixed(style: Style) -> Iterator[Any]:
    options = {Style.STRUCTURED: Option.STRUCTURED_REPLY, Style.EXTENDED: Option.EXTENDED_HEADERS}
    if style in options:
        yield from nbdclient._ask(options[style])
    return style


@asynccontextmanager
async def serving(*devices: Any) -> AsyncIterator[Callable[[], trio.abc.Stream]]:
    """A server for these devices; the result connects to it. Whatever hangs fails, by the clock."""
    server = NbdServer([Export(f"disk{n}", "a disk", device) for n, device in enumerate(devices)])
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 1000

        def connect() -> trio.abc.Stream:
            ours, theirs = trio.testing.lockstep_stream_pair()
            nursery.start_soon(server.attend, theirs)
            return ours

        yield connect
        assert not nursery.cancel_scope.cancelled_caught
        nursery.cancel_scope.cancel()
        return
    pytest.fail("nothing happened any more")


@pytest.mark.parametrize("style", list(Style))
async def test_reads_bring_the_content(
    style: Style, autojump_clock: trio.testing.MockClock
) -> None:
    device = Gated()
    device.gate.set()
    async with serving(device) as connect:
        client = await shake_hands(connect(), style)
        assert client.opened.style is style
        for offset, length in ((0, 1), (4095, 2), (0, len(CONTENT)), (len(CONTENT) - 5, 5)):
            assert await client.read(offset, length) == CONTENT[offset : offset + length]


async def test_what_is_local_is_answered_before_what_has_to_be_fetched(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    async with serving(device) as connect:
        client = await shake_hands(connect())
        slow = await client.ask_read(device.local, 100)
        assert await client.read(0, 100) == CONTENT[:100]
        assert not slow.ended
        device.gate.set()
        await client.ended(slow)
        assert b"".join(slow.take()) == CONTENT[device.local :][:100]


@pytest.mark.parametrize("style", list(Style))
async def test_a_failed_read_is_an_io_error_and_the_next_one_goes_well(
    style: Style, autojump_clock: trio.testing.MockClock
) -> None:
    device = Gated()
    device.failure = SourceError("the server is gone")
    device.gate.set()
    async with serving(device) as connect:
        client = await shake_hands(connect(), style)
        assert await client.error(Command.READ, device.local, 100) == Error.IO
        assert await client.read(0, 100) == CONTENT[:100]


async def test_a_defect_fails_one_request_only(
    autojump_clock: trio.testing.MockClock, expected_log: Callable[..., None]
) -> None:
    expected_log("unforeseen")
    device = Gated()
    device.failure = ZeroDivisionError()
    device.gate.set()
    async with serving(device) as connect:
        client = await shake_hands(connect())
        assert await client.error(Command.READ, device.local, 100) == Error.IO
        assert await client.read(0, 100) == CONTENT[:100]


async def test_a_long_simple_reply_that_fails_in_the_middle_ends_the_connection(
    autojump_clock: trio.testing.MockClock, expected_log: Callable[..., None]
) -> None:
    expected_log("in the middle of an answer")
    device = Gated()
    device.failure = SourceError("the server is gone")
    device.gate.set()
    async with serving(device) as connect:
        client = await shake_hands(connect(), Style.SIMPLE)
        read = await client.ask_read(0, len(CONTENT))
        with pytest.raises(EndOfStream):
            await client.ended(read)
        assert CONTENT.startswith(b"".join(read.take()))


async def test_a_long_structured_reply_that_fails_in_the_middle_says_so(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    device.failure = SourceError("the server is gone")
    device.gate.set()
    async with serving(device) as connect:
        client = await shake_hands(connect(), Style.STRUCTURED)
        read = await client.ask_read(0, len(CONTENT))
        await client.ended(read)
        assert read.failure is not None
        assert "the server is gone" in read.failure.said
        assert await client.read(0, 100) == CONTENT[:100]


async def test_writing_is_refused_and_its_data_skipped(
    autojump_clock: trio.testing.MockClock,
) -> None:
    server = NbdServer([Export("disk", "", Gated())])
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.attend, theirs)
        client = await shake_hands(ours, Style.SIMPLE)
        write = Request(0, Command.WRITE, 99, 0, 100_000)
        client.pending[99] = Pending(0, 0, lambda: None)
        await client.wire.send(nbdclient.request(Style.SIMPLE, write), bytes(100_000))
        pending = client.pending[99]
        await client.ended(pending)
        assert pending.failure is not None
        assert pending.failure.number == Error.PERM
        assert await client.read(0, 10) == CONTENT[:10]
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("style", [Style.STRUCTURED, Style.EXTENDED])
async def test_a_status_tells_what_is_local_and_what_is_zeros(
    style: Style, autojump_clock: trio.testing.MockClock
) -> None:
    device = Gated()
    async with serving(device) as connect:
        client = await shake_hands(connect(), style)
        status = PendingStatus(0, lambda: None)
        await client.ended(await client.ask(Command.BLOCK_STATUS, status, len(CONTENT)))
        half = len(CONTENT) // 2
        by_name = {name: status.extents[n] for name, n in client.opened.contexts.items()}
        assert by_name == {
            nbd.CACHED: [(half, nbd.IS_LOCAL), (half, 0)],
            nbd.ALLOCATION: [(half, nbd.HOLE | nbd.ZERO), (half, 0)],
        }


async def test_where_holes_cannot_be_found_out_all_is_data(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    device.failure = SourceError("the server is gone")
    async with serving(device) as connect:
        client = await shake_hands(connect())
        status = PendingStatus(0, lambda: None)
        await client.ended(await client.ask(Command.BLOCK_STATUS, status, len(CONTENT)))
        assert status.extents[client.opened.contexts[nbd.ALLOCATION]] == [(len(CONTENT), 0)]


async def test_cache_is_a_hint_that_goes_down(autojump_clock: trio.testing.MockClock) -> None:
    device = Gated()
    async with serving(device) as connect:
        client = await shake_hands(connect())
        hint = Pending(4096, 0, lambda: None)
        await client.ended(await client.ask(Command.CACHE, hint, 1 << 20))
        assert hint.failure is None
        assert [call[:3] for call in device.calls] == [("ensure", 4096, 1 << 20)]


async def test_disc_waits_for_what_is_under_way(autojump_clock: trio.testing.MockClock) -> None:
    device = Gated()
    async with serving(device) as connect:
        client = await shake_hands(connect())
        read = await client.ask_read(device.local, 100)
        await client.wire.send(
            nbdclient.request(client.opened.style, Request(0, Command.DISC, 0, 0, 0))
        )
        device.gate.set()
        await client.ended(read)
        assert b"".join(read.take()) == CONTENT[device.local :][:100]
        assert await client.wire.receive_some() == b""


async def test_a_client_who_has_gone_is_waited_for_by_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    async with serving(device) as connect:
        client = await shake_hands(connect())
        await client.ask_read(device.local, 100)
        await trio.testing.wait_all_tasks_blocked()
        assert device.at_once == 1
        await client.wire.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert device.at_once == 0


async def test_when_the_server_ends_it_says_so_to_who_still_waits(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    server = NbdServer([Export("disk", "", device)])
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.attend, theirs)
        client = await shake_hands(ours)
        read = await client.ask_read(device.local, 100)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    await client.ended(read)
    assert read.failure is not None
    assert read.failure.number == Error.SHUTDOWN


async def test_what_one_client_has_under_way_is_bounded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    server = NbdServer([Export("disk", "", device)])
    ours, theirs = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.attend, theirs)
        client = await shake_hands(ours)
        reads = [await client.ask_read(device.local + n, 1) for n in range(200)]
        await trio.testing.wait_all_tasks_blocked()
        assert device.at_once == nbdserver.MOST_REQUESTS
        device.gate.set()
        for read in reads:
            await client.ended(read)
        assert device.most_at_once == nbdserver.MOST_REQUESTS
        nursery.cancel_scope.cancel()


async def test_what_all_clients_have_under_way_is_bounded_and_each_gets_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    server = NbdServer([Export("disk", "", device)])
    share = nbdserver.MOST_BYTES // PIECE
    async with trio.open_nursery() as nursery:
        clients = []
        for _ in range(3):
            ours, theirs = trio.testing.memory_stream_pair()
            nursery.start_soon(server.attend, theirs)
            clients.append(await shake_hands(ours))
        for client in clients[:2]:
            for _ in range(nbdserver.MOST_REQUESTS):
                await client.ask_read(device.local, PIECE)
        last = await clients[2].ask_read(device.local, PIECE)
        await trio.testing.wait_all_tasks_blocked()
        assert device.at_once == share + len(clients)  # one of each is free
        device.gate.set()
        await clients[2].ended(last)
        assert last.failure is None
        nursery.cancel_scope.cancel()


async def test_a_client_that_takes_no_answers_holds_one_piece_and_delays_nobody(
    autojump_clock: trio.testing.MockClock,
) -> None:
    device = Gated()
    async with serving(device) as connect:
        slow = await shake_hands(connect())
        asked = [Request(0, Command.READ, cookie, 0, 100) for cookie in range(3)]
        await slow.wire.send(b"".join(nbdclient.request(slow.opened.style, a) for a in asked))
        await trio.testing.wait_all_tasks_blocked()
        assert len(device.calls) == 1
        other = await shake_hands(connect())
        assert await other.read(0, 100) == CONTENT[:100]


async def test_when_there_are_too_many_those_go_that_have_not_chosen(
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
    expected_log: Callable[..., None],
) -> None:
    monkeypatch.setattr(nbdserver, "MOST_CONNECTIONS", 2)
    async with serving(Gated()) as connect:
        first = await shake_hands(connect())
        idle = connect()
        await idle.receive_some()
        second = await shake_hands(connect())
        assert await idle.receive_some() == b""
        for client in (first, second):
            assert await client.read(0, 10) == CONTENT[:10]
        expected_log("turned away")
        refused = connect()
        with contextlib.suppress(trio.BrokenResourceError):
            assert await refused.receive_some() == b""
        assert await first.read(0, 10) == CONTENT[:10]


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n\r\n", b"\0\0\0\3" + b"x" * 16, b"\xff" * 4])
async def test_what_is_no_nbd_client_is_disconnected_and_others_stay(
    said: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    async with serving(Gated()) as connect:
        good = await shake_hands(connect())
        stream = connect()
        greeting = await stream.receive_some()
        assert greeting[:8] == b"NBDMAGIC"
        with contextlib.suppress(trio.BrokenResourceError):
            await stream.send_all(said)
            assert await stream.receive_some() == b""
        assert await good.read(0, 10) == CONTENT[:10]

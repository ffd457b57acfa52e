"""NBD servers as Sources: a server of ours behind a Unix socket, and one that answers by script."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from fakes import RecordingDevice, disk_store, noise, running
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cache.blockcache import BlockCache
from lazyfs.core.device import Priority
from lazyfs.core.errors import (
    AccessDenied,
    BadAnswer,
    ImageChanged,
    NotFound,
    ServerBusy,
    SourceError,
    Unreachable,
    UsageError,
)
from lazyfs.core.options import ServerOptions
from lazyfs.frontends.nbdserver import Export, NbdServer
from lazyfs.protocols import nbd
from lazyfs.protocols.nbd import Option, Reply
from lazyfs.protocols.nbdclient import Refused
from lazyfs.sources.nbd import NbdSource
from lazyfs.sources.nbdconnection import Connection, Endpoint, _refusal
from lazyfs.sources.zeros import ZeroMap

MIB = 1 << 20
HOLE = (1 * MIB, 3 * MIB)  # of CONTENT: from, to
CONTENT = noise(MIB) + bytes(2 * MIB) + noise(2 * MIB + 123, seed=1)


class Holey(RecordingDevice):
    """A Device that knows its hole, and fails as it is told."""

    def __init__(self, content: bytes = CONTENT) -> None:
        super().__init__(content)
        self.failures: list[Exception] = []
        self.gate: trio.Event | None = None

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        yield length, False

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        edges = [offset, *(e for e in HOLE if offset < e < offset + length), offset + length]
        return [(b - a, HOLE[0] <= a < HOLE[1]) for a, b in itertools.pairwise(edges)]

    async def read(self, offset: int, length: int) -> bytes:
        if self.gate is not None:
            await self.gate.wait()
        if self.failures:
            raise self.failures.pop()
        return await super().read(offset, length)

    def reads(self) -> list[tuple[object, ...]]:
        return sorted(call[1:] for call in self.calls if call[0] == "read")


@asynccontextmanager
async def serving(path: Path, *devices: RecordingDevice) -> AsyncIterator[trio.CancelScope]:
    """A server for these devices; the scope ends it."""
    server = NbdServer([Export(f"disk{n}", "", device) for n, device in enumerate(devices)])  # type: ignore[arg-type]
    await trio.Path(path).unlink(missing_ok=True)
    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        scope = trio.CancelScope()

        async def listen() -> None:
            with scope:
                await server.listen([trio.SocketListener(listener)])

        nursery.start_soon(listen)
        yield scope
        nursery.cancel_scope.cancel()


def url_of(path: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={path}"


def source_of(path: Path, export: str = "", *, vouched: bool = False) -> NbdSource:
    return NbdSource(url_of(path, export), "img", ServerOptions(stall=2.0), vouched=vouched)


async def fetched(source: NbdSource, *ranges: tuple[int, int]) -> list[bytes]:
    found = []
    for stream in source.streams(ranges):
        async with stream as pieces:
            found.append(b"".join([piece async for piece in pieces]))
    return found


@pytest.fixture
def socket(tmp_path: Path) -> Path:
    return tmp_path / "socket"


async def test_ranges_bring_the_bytes_of_the_export(socket: Path) -> None:
    other = Holey(noise(5000, seed=3))
    async with serving(socket, Holey(), other):
        source = source_of(socket)
        assert (await source.open()).size == len(CONTENT)
        ranges = [(0, 10), (MIB - 5, 2 * MIB + 10), (len(CONTENT) - 7, 7), (0, len(CONTENT))]
        assert await fetched(source, *ranges) == [CONTENT[o : o + n] for o, n in ranges]
        second = source_of(socket, "disk1")
        await second.open()
        assert await fetched(second, (0, 5000)) == [other.content]
        for each in (source, second):
            await each.aclose()


async def test_holes_are_not_asked_for(socket: Path) -> None:
    device = Holey()
    async with serving(socket, device):
        source = source_of(socket)
        await source.open()
        assert await fetched(source, (0, len(CONTENT))) == [CONTENT]
        assert sum(int(str(length)) for _, length in device.reads()) == len(CONTENT) - 2 * MIB
        assert await source.zeros(0, len(CONTENT)) == [
            (MIB, False),
            (2 * MIB, True),
            (len(CONTENT) - 3 * MIB, False),
        ]
        await source.aclose()


async def test_many_streams_at_once_share_the_connections(socket: Path) -> None:
    async with serving(socket, Holey()):
        source = source_of(socket)
        await source.open()

        async def fetch(offset: int) -> None:
            assert await fetched(source, (offset, 70_000)) == [CONTENT[offset:][:70_000]]

        async with trio.open_nursery() as nursery:
            for number in range(40):
                nursery.start_soon(fetch, number * 100_000)
        assert 1 < len(source._connections) <= ServerOptions.connections
        await source.rest()
        assert source._connections == []
        await fetch(0)
        await source.aclose()


async def test_one_who_goes_away_while_he_reads_for_all_costs_nobody_his_answer(
    socket: Path,
) -> None:
    device = Holey()
    device.gate = trio.Event()
    async with serving(socket, device):
        source = NbdSource(url_of(socket), "img", ServerOptions(connections=1))
        await source.open()
        await source.zeros(0, len(CONTENT))
        done = 0

        async def fetch(offset: int) -> None:
            nonlocal done
            assert await fetched(source, (offset, 300_000)) == [CONTENT[offset:][:300_000]]
            done += 1

        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                gone = trio.CancelScope()

                async def fetch_and_go() -> None:
                    with gone:
                        await fetched(source, (4 * MIB, MIB))

                nursery.start_soon(fetch_and_go)
                await trio.testing.wait_all_tasks_blocked()
                for number in range(5):
                    nursery.start_soon(fetch, number * 200_000)
                await trio.testing.wait_all_tasks_blocked(0.1)
                gone.cancel()
                await trio.testing.wait_all_tasks_blocked(0.1)
                device.gate.set()
        assert done == 5
        await source.aclose()


@pytest.mark.parametrize(
    ("url", "error"),
    [("nbd+unix:///absent?socket={}", NotFound), ("nbds+unix:///?socket={}", AccessDenied)],
)
async def test_what_the_server_refuses_is_said(
    url: str, error: type[SourceError], socket: Path
) -> None:
    async with serving(socket, Holey()):
        with pytest.raises(error, match="img"):
            await NbdSource(url.format(socket), "img", ServerOptions()).open()


async def test_an_absent_server_is_unreachable(socket: Path) -> None:
    with pytest.raises(Unreachable, match="cannot connect"):
        await source_of(socket).open()


async def test_an_error_of_the_server_may_pass(socket: Path) -> None:
    device = Holey()
    async with serving(socket, device):
        source = source_of(socket)
        await source.open()
        device.failures.append(SourceError("no network"))
        with pytest.raises(ServerBusy, match="img: the server fails with EIO: no network"):
            await fetched(source, (0, 10))
        assert await fetched(source, (0, 10)) == [CONTENT[:10]]
        await source.aclose()


async def test_after_a_restart_of_the_server_it_is_asked_again(socket: Path) -> None:
    source = source_of(socket)
    async with serving(socket, Holey()):
        await source.open()
    with pytest.raises(Unreachable):
        await fetched(source, (0, 10))
    async with serving(socket, Holey()):
        assert await fetched(source, (0, 10)) == [CONTENT[:10]]
        await source.aclose()


async def test_an_export_of_another_size_is_another_image(socket: Path) -> None:
    source = source_of(socket)
    async with serving(socket, Holey()):
        await source.open()
    async with serving(socket, Holey(CONTENT[:-1])):
        with pytest.raises(Unreachable):
            await fetched(source, (0, 10))
        with pytest.raises(ImageChanged):
            await fetched(source, (0, 10))
        await source.aclose()


@pytest.mark.parametrize("vouched", [True, False])
async def test_only_the_user_can_pin_an_export(vouched: bool, socket: Path) -> None:
    async with serving(socket, Holey()):
        source = source_of(socket, vouched=vouched)
        assert (await source.open()).pinned is vouched
        await source.aclose()


async def test_the_block_cache_reads_through_it_and_outlives_errors(
    socket: Path, tmp_path: Path, expected_log: Callable[..., None]
) -> None:
    expected_log("EIO", required=False)
    device = Holey()
    async with serving(socket, device):
        source = source_of(socket)
        identity = await source.open()
        store = disk_store(tmp_path, identity, 1 << 15)
        async with running(BlockCache("img", source, store, timeout=20.0)) as cache:
            device.failures += [SourceError("no network")] * 2
            assert await cache.read(0, len(CONTENT)) == CONTENT
            await cache.ensure(0, len(CONTENT), Priority.FILL)
            await cache.wait_complete()
        await source.aclose()


# A server that says what it likes


@asynccontextmanager
async def scripted(path: Path, *sent: bytes) -> AsyncIterator[None]:
    """A server that sends this, one piece for each that it receives."""

    async def answer(stream: trio.SocketStream) -> None:
        for piece in sent:
            await stream.send_all(piece)
            if not await stream.receive_some():
                return
        await trio.sleep_forever()

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(path))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, [trio.SocketListener(listener)])
        yield
        nursery.cancel_scope.cancel()


OLD_SERVER = nbd.HELLO.pack(nbd.GREETING, nbd.NEWSTYLE) + nbd.U16.pack(nbd.NO_ZEROES)
HEAD = nbd.EXPORT_INFO.pack(1000, nbd.HAS_FLAGS)


async def test_an_oldstyle_server_is_refused_clearly(socket: Path) -> None:
    hello = nbd.HELLO.pack(nbd.GREETING, nbd.OLDSTYLE) + bytes(136)
    async with scripted(socket, hello):
        with pytest.raises(BadAnswer, match="oldstyle"):
            await source_of(socket).open()


async def test_a_server_that_falls_silent_is_given_up(socket: Path) -> None:
    async with scripted(socket, OLD_SERVER):
        source = NbdSource(url_of(socket), "img", ServerOptions(stall=0.2))
        with pytest.raises(Unreachable, match="silent"):
            await source.open()


async def test_a_server_that_falls_silent_in_an_answer_is_given_up(socket: Path) -> None:
    reply = nbd.SIMPLE_HEAD.pack(nbd.SIMPLE_REPLY, 0, 1)
    async with scripted(socket, OLD_SERVER, HEAD, reply + bytes(10)):
        source = NbdSource(url_of(socket), "img", ServerOptions(stall=0.2))
        await source.open()
        with pytest.raises(Unreachable, match="silent"):
            await fetched(source, (0, 1000))
        await source.aclose()


async def test_a_server_that_sends_nonsense_is_not_asked_again_on_that_connection(
    socket: Path,
) -> None:
    async with scripted(socket, OLD_SERVER, HEAD, b"nonsense" * 10):
        source = source_of(socket)
        await source.open()
        with pytest.raises(BadAnswer, match="no reply"):
            await fetched(source, (0, 1000))
        assert all(connection.broken for connection in source._connections)
        await source.aclose()


# URLs


@pytest.mark.parametrize(
    ("url", "place"),
    [
        ("nbd://host/disk", Endpoint("host", 10809, None, "disk", False, "host")),
        ("nbd://host", Endpoint("host", 10809, None, "", False, "host")),
        ("nbd://host//disk%20a", Endpoint("host", 10809, None, "/disk a", False, "host")),
        ("nbds://[::1]:99/", Endpoint("::1", 99, None, "", True, "::1")),
        ("nbds://[fe80::1%25e0]/", Endpoint("fe80::1%e0", 10809, None, "", True, "fe80::1")),
        (
            "nbd+unix:///d?socket=/a%20b",
            Endpoint("localhost", 10809, "/a b", "d", False, "localhost"),
        ),
        ("nbds://1.2.3.4/?tls-hostname=h", Endpoint("1.2.3.4", 10809, None, "", True, "h")),
    ],
)
def test_a_url_says_where_the_export_is(url: str, place: Endpoint) -> None:
    assert Endpoint.of(url) == place


@pytest.mark.parametrize(
    "url", ["nbd+unix:///x", "nbd://host/x?socket=/a", "nbd://host/x?tls-psk-file=/a"]
)
def test_what_is_no_nbd_url_is_refused(url: str) -> None:
    with pytest.raises(UsageError, match="NBD URL"):
        Endpoint.of(url)


# What is known of zeros


@given(
    st.lists(st.tuples(st.integers(0, 1), st.integers(1, 12)), min_size=1, max_size=5).map(
        lambda runs: [zero for zero, length in runs for _ in range(length)]
    ),
    st.lists(st.tuples(st.integers(0, 59), st.integers(1, 30)), max_size=20),
)
def test_what_was_learnt_is_what_is_known(image: list[int], asked: list[tuple[int, int]]) -> None:
    known: set[int] = set()
    zeros = ZeroMap()
    for offset, length in asked:
        runs = [(1, bool(zero)) for zero in image[offset : offset + length]]
        zeros.learn(offset, runs)
        known |= set(range(offset, offset + len(runs)))
    for start in range(len(image)):
        said = [zero for length, zero in zeros.known(start, len(image)) for _ in range(length)]
        assert said == [bool(zero) for zero in image[start : start + len(said)]]
        stop = next((n for n in range(start, len(image)) if n not in known), len(image))
        assert start + len(said) == stop


# What is said of a server


async def test_an_empty_export_is_refused(socket: Path) -> None:
    async with scripted(socket, OLD_SERVER, nbd.EXPORT_INFO.pack(0, nbd.HAS_FLAGS)):
        with pytest.raises(BadAnswer) as caught:
            await source_of(socket).open()
    assert str(caught.value) == "img: the export is empty; check the name of the export"


async def test_a_server_that_hangs_up_may_not_have_the_export(socket: Path) -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.send_all(OLD_SERVER)
        asked = b""
        while len(asked) < 4 + nbd.OPTION_HEAD.size:
            asked += await stream.receive_some()

    listener = trio.socket.socket(trio.socket.AF_UNIX)
    await listener.bind(str(socket))
    listener.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, hang_up, [trio.SocketListener(listener)])
        with pytest.raises(Unreachable) as caught:
            await source_of(socket).open()
        nursery.cancel_scope.cancel()
    assert caught.value.message == (
        f"img: {socket} closed the connection; it may have no such export"
    )


async def test_a_server_that_wants_tls_is_told_from_others() -> None:
    refused = Refused(Option.GO, Reply.TLS_REQUIRED, "")
    assert str(_refusal(refused)) == "the server wants TLS; write nbds:// or nbds+unix://"


async def test_a_status_that_does_not_answer_the_question(
    socket: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with serving(socket, Holey()):
        source = source_of(socket)
        await source.open()

        async def nothing_said(connection: Connection, ready: Callable[[], bool]) -> None:
            """As if all had been answered."""

        monkeypatch.setattr(Connection, "wait", nothing_said)
        with pytest.raises(BadAnswer, match="the server does not say what it was asked for"):
            await source.zeros(0, 1000)
        await source.aclose()


async def test_a_connection_that_somebody_gave_up_in_the_middle_is_not_used_again(
    socket: Path,
) -> None:
    async with scripted(socket, OLD_SERVER, HEAD):
        source = source_of(socket)
        await source.open()
        (connection,) = source._connections
        with trio.move_on_after(0), connection._breaking():
            await trio.sleep_forever()
        assert connection.broken is not None
        assert connection.broken().message == f"the connection to {socket} was given up"
        await source.aclose()

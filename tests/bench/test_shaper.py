"""The shaping proxy, in virtual time: rate, round trip, windows, cut connections."""

import argparse
import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import AsyncIterator, Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from virtualtime import run

from bench.shaper import (
    CUT_WITHIN,
    LATENESS,
    PIECE,
    SPARE,
    UNLIMITED_WINDOW,
    Link,
    Shaper,
    Window,
    Wire,
    address,
    arguments,
    bits,
    seconds,
)

RATE = 8e6  # bit/s: a megabyte a second
RTT = 0.1


class FakeClock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


# The wire


def test_a_wire_carries_its_rate_and_no_more() -> None:
    clock = FakeClock()
    wire = Wire(RATE, clock)
    ends = [wire.transmit(10_000) for _ in range(100)]
    assert ends[-1] == pytest.approx(clock.now + 1.0 - LATENESS)
    assert ends == sorted(ends)


def test_an_idle_wire_saves_up_a_moment_of_its_rate_and_no_more() -> None:
    clock = FakeClock()
    wire = Wire(RATE, clock)
    clock.now += 1000
    assert wire.transmit(int(LATENESS * RATE / 8)) == clock.now
    assert wire.transmit(10_000) == pytest.approx(clock.now + 0.01)


def test_an_unlimited_wire_never_makes_anybody_wait() -> None:
    clock = FakeClock()
    wire = Wire(0, clock)
    assert [wire.transmit(1 << 30) for _ in range(3)] == [clock.now] * 3


@given(st.lists(st.tuples(st.floats(0, 1), st.integers(1, PIECE)), min_size=1, max_size=50))
def test_however_it_is_used_a_wire_is_never_faster_than_its_rate(
    uses: list[tuple[float, int]],
) -> None:
    clock = FakeClock()
    wire = Wire(RATE, clock)
    began, sent, end = clock.now, 0, clock.now
    for pause, length in uses:
        clock.now += pause
        end = wire.transmit(length)
        sent += length
        assert end >= clock.now
    assert sent / (RATE / 8) <= end - began + LATENESS + 1e-6


# The window


def test_a_window_opens_when_enough_is_given_back() -> None:
    async def test() -> list[str]:
        window, events = Window(100), []

        async def second() -> None:
            await window.take(50)
            events.append("taken")

        await window.take(130)  # overdraws by one piece
        waiting = asyncio.create_task(second())
        for given_back in (10, 20, 1):
            await asyncio.sleep(1)
            events.append(f"give {given_back}")
            window.give(given_back)
        await waiting
        return events

    assert run(test()) == ["give 10", "give 20", "give 1", "taken"]


def test_a_link_holds_its_bandwidth_times_round_trip_and_a_little_more() -> None:
    assert Link(RTT, RATE).window == 100_000 + SPARE
    assert Link(RTT).window == UNLIMITED_WINDOW


# The proxy


class Lab:
    """A shaper in front of a server that does with each connection what a test says."""

    def __init__(self, shaper: Shaper, listener: socket.socket) -> None:
        self.shaper = shaper
        self._address = listener.getsockname()
        self._loop = asyncio.get_running_loop()

    async def connect(self) -> socket.socket:
        client = socket.socket()
        client.setblocking(False)
        await self._loop.sock_connect(client, self._address)
        return client

    async def receive(self, client: socket.socket) -> bytes:
        """All until the end of the connection."""
        pieces = []
        while piece := await self._loop.sock_recv(client, 1 << 16):
            pieces.append(piece)
        return b"".join(pieces)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], object]


@contextlib.asynccontextmanager
async def lab(link: Link, serve: Serve, seed: int = 1) -> AsyncIterator[Lab]:
    server = await asyncio.start_server(serve, "127.0.0.1", 0)  # type: ignore[arg-type]
    shaper = Shaper(server.sockets[0].getsockname(), link, seed)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.setblocking(False)
    serving = asyncio.create_task(shaper.serve(listener))
    try:
        yield Lab(shaper, listener)
    finally:
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await serving
        listener.close()
        server.close()
        await asyncio.sleep(1)  # those who served see their connections end


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while piece := await reader.read(1 << 16):
            writer.write(piece)
            await writer.drain()
    writer.close()


def sender(content: bytes) -> Serve:
    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            writer.write(content)
            await writer.drain()
        writer.close()

    return serve


def test_a_new_connection_waits_a_round_trip_and_each_question_another() -> None:
    async def test() -> list[float]:
        loop = asyncio.get_running_loop()
        async with lab(Link(rtt=RTT), echo) as it:
            moments = [loop.time()]
            with await it.connect() as client:
                for _ in range(3):
                    await loop.sock_sendall(client, b"ping")
                    assert await loop.sock_recv(client, 100) == b"ping"
                    moments.append(loop.time())
            return [after - before for before, after in itertools.pairwise(moments)]

    assert run(test()) == pytest.approx([2 * RTT, RTT, RTT], abs=0.001)


def test_a_long_answer_takes_the_time_of_the_rate_and_arrives_unharmed() -> None:
    content = random.Random(1).randbytes(2_000_000)

    async def test() -> float:
        loop = asyncio.get_running_loop()
        async with lab(Link(RTT, RATE), sender(content)) as it:
            with await it.connect() as client:
                assert await it.receive(client) == content
            counters = it.shaper.counters
            assert (counters.connections, counters.down, counters.up) == (1, len(content), 0)
            return loop.time()

    assert run(test()) == pytest.approx(1.5 * RTT + 2.0, abs=0.02)


def test_connections_share_the_rate_fairly() -> None:
    content = bytes(500_000)

    async def test() -> list[float]:
        loop = asyncio.get_running_loop()

        async def fetch(it: Lab) -> float:
            with await it.connect() as client:
                await it.receive(client)
            return loop.time()

        async with lab(Link(RTT, RATE), sender(content)) as it:
            return list(await asyncio.gather(*(fetch(it) for _ in range(4))))

    ends = run(test())
    assert max(ends) == pytest.approx(1.5 * RTT + 2.0, abs=0.03)
    assert max(ends) - min(ends) < 4 * PIECE * 8 / RATE


def test_a_reader_that_stops_stops_the_sender() -> None:
    link = Link(RTT, RATE)
    sent = 0

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        with contextlib.suppress(OSError):
            while True:
                writer.write(bytes(PIECE))
                await writer.drain()
                sent += PIECE

    async def test() -> int:
        async with lab(link, serve) as it:
            with await it.connect():
                await asyncio.sleep(60)
                early = sent
                await asyncio.sleep(60)
                assert sent == early
                return sent

    kernel = 16 << 20  # buffers of sockets, on both sides
    assert 0 < run(test()) < link.window + kernel < 120 * RATE / 8


@pytest.mark.parametrize(("drop", "cut"), [(0.0, 0), (1.0, 20)])
def test_connections_are_cut_within_their_first_seconds(drop: float, cut: int) -> None:
    async def test() -> None:
        loop = asyncio.get_running_loop()

        async def life(it: Lab) -> str:
            with await it.connect() as client:
                try:
                    async with asyncio.timeout(CUT_WITHIN + 0.5):
                        await loop.sock_recv(client, 1)
                except TimeoutError:
                    return "lived"
                except ConnectionResetError:
                    return "reset"
            return "ended"

        async with lab(Link(RTT, RATE, drop), echo) as it:
            ends = await asyncio.gather(*(life(it) for _ in range(20)))
            assert set(ends) == {"reset" if cut else "lived"}
            assert it.shaper.counters.cut == cut
            await asyncio.sleep(1)
            assert it.shaper.counters.open == 0

    run(test())


def test_the_same_seed_cuts_the_same_connections() -> None:
    async def cut(seed: int) -> list[bool]:
        lives = []
        async with lab(Link(drop=0.5), echo, seed) as it:
            for _ in range(20):
                before = it.shaper.counters.cut
                with await it.connect():
                    await asyncio.sleep(CUT_WITHIN + 0.1)
                    lives.append(it.shaper.counters.cut > before)
                await asyncio.sleep(0.1)
        return lives

    first = run(cut(7))
    assert set(first) == {True, False}
    assert run(cut(7)) == first
    assert run(cut(8)) != first


# Its command line


@pytest.mark.parametrize(("text", "value"), [("20ms", 0.02), ("0.3s", 0.3)])
def test_durations_have_a_unit(text: str, value: float) -> None:
    assert seconds(text) == pytest.approx(value)


@pytest.mark.parametrize(("text", "value"), [("200M", 200e6), ("1G", 1e9), ("64k", 64e3), ("0", 0)])
def test_rates_are_in_bits(text: str, value: float) -> None:
    assert bits(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [(seconds, "20"), (seconds, "ms"), (bits, "fast"), (bits, "1T"), (address, "8080")],
)
def test_what_cannot_be_read_is_refused(read: Callable[[str], object], text: str) -> None:
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        read(text)


def test_the_shaper_knows_where_to_without_being_told_what_to_shape() -> None:
    given_options = arguments(["--to", "127.0.0.1:80"])
    assert given_options.to == ("127.0.0.1", 80)
    link = Link(given_options.rtt, given_options.rate, given_options.drop)
    assert link == Link()

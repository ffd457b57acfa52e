"""Servers as they are found on the web: slow to begin, short of breath, without pipelining."""

import errno
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import pytest
import trio
from fakes import noise, running, streams_of
from sites import (
    Reply,
    Request,
    Site,
    chunked,
    listening,
    part,
    proxying,
    read_request,
    response,
    serving,
)
from trio.testing import MockClock

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import BadAnswer, ImageChanged, Unreachable
from lazyfs.core.options import ServerOptions
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient

Announce = Callable[..., None]

CONTENT = noise(1 << 20)
BLOCK = 4096
PINNED = Identity(len(CONTENT), '"v1"')
STALL, TIMEOUT = 15.0, 60.0  # seconds: the defaults


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(CONTENT) as server:
        yield server


@asynccontextmanager
async def source_of(
    url: str, identity: Identity | None = PINNED, *, first: int = 1, **options: Any
) -> AsyncIterator[HttpSource]:
    """A source, already opened unless ``identity`` is None."""
    client = HttpClient(ServerOptions(stall=STALL, **options), TIMEOUT)
    try:
        yield HttpSource(client, url, identity, first=first)
    finally:
        await client.aclose()


async def read(source: HttpSource, offset: int = 0, length: int = 1000) -> bytes:
    async with streams_of(source, [(offset, length)]) as (stream,), stream as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


def cached(source: HttpSource) -> BlockCache:
    """The cache of an image that keeps nothing on disk."""
    return BlockCache("img", source, MemoryStore(len(CONTENT), BLOCK, 1 << 20), TIMEOUT)


# Servers that are slow to begin


def slow_to_begin(site: Site, seconds: float, shape: Callable[..., bytes]) -> None:
    """From now on, each answer begins after so long; if the client is still there."""
    honest = site.serve

    async def late(stream: trio.abc.Stream) -> None:
        await honest(_Late(stream, seconds))

    site.serve = late  # type: ignore[method-assign]
    site.script = lambda request: Reply(shape(CONTENT, *request.span))


class _Late(trio.abc.Stream):
    """A connection on which all that is sent is held back."""

    def __init__(self, stream: trio.abc.Stream, seconds: float) -> None:
        self._stream = stream
        self._seconds = seconds

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        await trio.sleep(self._seconds)
        await self._stream.send_all(data)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


@pytest.mark.parametrize("shape", [part, chunked], ids=["direct", "careful"])
@pytest.mark.parametrize("seconds", [20, 40])
async def test_web_server_that_is_slow_to_begin_is_waited_for(
    site: Site, patient_clock: MockClock, shape: Callable[..., bytes], seconds: float
) -> None:
    """Each wait is twice as long as the last; what an answer took is not unlearned at once."""
    slow_to_begin(site, seconds, shape)
    async with source_of(site.url()) as source:
        tries = 0
        while True:
            tries += 1
            try:
                assert await read(source) == CONTENT[:1000]
                break
            except Unreachable:
                assert tries < 4
        assert await read(source, 5000) == CONTENT[5000:6000]


async def test_web_read_from_a_server_that_is_slow_to_begin_ends_well(
    site: Site, patient_clock: MockClock
) -> None:
    slow_to_begin(site, 25, part)
    async with source_of(site.url()) as source, running(cached(source)) as cache:
        for offset in (0, 100_000, 500_000):
            assert await cache.read(offset, 10) == CONTENT[offset : offset + 10]


async def test_web_new_image_is_opened_on_a_server_that_is_slow_to_begin(
    site: Site, patient_clock: MockClock
) -> None:
    slow_to_begin(site, 25, part)
    async with source_of(site.url(), None, first=65_536) as source:
        assert await source.open() == PINNED
        assert source.opening == CONTENT[:65_536]


@pytest.mark.parametrize(("first", "longest"), [(1, 17), (65_536, 47)])
async def test_web_server_that_stays_silent_is_given_up_at_opening(
    site: Site, patient_clock: MockClock, first: int, longest: float
) -> None:
    """Sooner if something is cached: that can be served meanwhile."""
    slow_to_begin(site, 3600, part)
    async with source_of(site.url(), None, first=first) as source:
        began = trio.current_time()
        with pytest.raises(Unreachable, match="fell silent"):
            await source.open()
        assert STALL <= trio.current_time() - began < longest


async def test_web_server_that_cannot_be_connected_to_has_no_longer_patience(
    patient_clock: MockClock,
) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, silent, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"https://127.0.0.1:{port}/image.raw") as source:
            for _ in range(3):
                began = trio.current_time()
                with pytest.raises(Unreachable, match="no answer"):
                    await read(source)
                assert trio.current_time() - began < STALL + 2


# What both ways write


@pytest.mark.parametrize("shape", [part, chunked], ids=["direct", "careful"])
async def test_web_host_field_has_no_default_port(
    monkeypatch: pytest.MonkeyPatch, shape: Callable[..., bytes]
) -> None:
    """As signatures want it. (No test can listen on port 80: the connection is led elsewhere.)"""
    async with serving(CONTENT) as site:
        site.script = lambda request: Reply(shape(CONTENT, *request.span))
        connect = trio.open_tcp_stream

        async def led(host: str | bytes, port: int, **more: Any) -> trio.SocketStream:
            assert (host, port) == ("host.test", 80)
            return await connect(site.host, site.port)

        monkeypatch.setattr(trio, "open_tcp_stream", led)
        async with source_of("http://HOST.test:80/image.raw") as source:
            assert await read(source) == CONTENT[:1000]
            assert await read(source) == CONTENT[:1000]
    assert {request.to for request in site.requests} == {"host.test"}


@pytest.mark.parametrize("shape", [part, chunked], ids=["direct", "careful"])
@pytest.mark.parametrize("zone", ["%251", "%1"])
async def test_web_zone_of_an_address_stays_on_this_machine(
    shape: Callable[..., bytes], zone: str
) -> None:
    try:
        async with serving(CONTENT, host="::1") as site:
            site.script = lambda request: Reply(shape(CONTENT, *request.span))
            async with source_of(f"http://[::1{zone}]:{site.port}/image.raw") as source:
                assert await read(source) == CONTENT[:1000]
                assert await read(source) == CONTENT[:1000]
            assert {request.to for request in site.requests} == {f"[::1]:{site.port}"}
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("IPv6 is switched off")


@pytest.mark.parametrize(
    ("location", "target"),
    [
        (b"/d/a b.iso?c d", "/d/a%20b.iso?c%20d"),
        (b"/d/\xe2\x82\xac.iso", "/d/%E2%82%AC.iso"),
        (b"/d/caf\xe9.iso", "/d/caf%E9.iso"),
        (b"a%20b\xc3\xa9 c", "/a%20b%C3%A9%20c"),
    ],
)
async def test_web_redirect_to_characters_that_should_have_been_escaped(
    site: Site, location: bytes, target: str
) -> None:
    def script(request: Request) -> Reply | None:
        raw = response(302, "Location: @").replace(b"@", location)
        return Reply(raw) if request.target == "/image.raw" else None

    site.script = script
    async with source_of(site.url()) as source:
        assert await read(source) == CONTENT[:1000]
        assert await read(source) == CONTENT[:1000]
    assert [request.target for request in site.requests[-2:]] == [target] * 2


async def test_web_tag_that_is_not_ascii_is_the_same_on_both_ways(site: Site) -> None:
    shapes = [part, chunked, part]
    identity = Identity(len(CONTENT), '"\xc3\xa9"')
    site.script = lambda request: Reply(
        shapes.pop()(CONTENT, *request.span).replace(b'"v1"', b'"\xc3\xa9"')
    )
    async with source_of(site.url(), identity) as source:
        assert await read(source) == CONTENT[:1000]
        shapes.append(chunked)
        shapes.append(chunked)
        assert await read(source) == CONTENT[:1000]


@pytest.mark.parametrize(
    ("no_proxy", "direct"), [("127.0.0.0/8", True), ("10.0.0.0/8,localhost", False)]
)
async def test_web_network_that_needs_no_proxy(
    site: Site, monkeypatch: pytest.MonkeyPatch, no_proxy: str, direct: bool
) -> None:
    async with proxying() as proxy:
        monkeypatch.setenv("http_proxy", proxy.url())
        monkeypatch.setenv("NO_PROXY", no_proxy)
        async with source_of(site.url()) as source:
            assert await read(source) == CONTENT[:1000]
    assert bool(proxy.requests) is not direct


# Answers that are shorter than was asked for


def capped(site: Site, most: int, size: str | None = None) -> Callable[[Request], Reply]:
    """Right answers of at most so many bytes. ``size``: what they say of the image's."""

    def script(request: Request) -> Reply:
        first, last = request.span
        raw = part(CONTENT, first, min(last, first + most - 1, len(CONTENT) - 1))
        return Reply(raw.replace(b"/%d" % len(CONTENT), f"/{size or len(CONTENT)}".encode(), 1))

    return script


def uncounted(request: Request, most: int) -> bytes:
    """The same in chunks."""
    first, last = request.span
    return chunked(CONTENT, first, min(last, first + most - 1, len(CONTENT) - 1))


@pytest.mark.parametrize("shape", ["direct", "careful"])
@pytest.mark.parametrize("most", [32 << 10, 256 << 10, 100_000, 4096])
async def test_web_server_with_a_limit_for_answers(site: Site, most: int, shape: str) -> None:
    """From the third answer on, requests are cut to the limit, and sent together."""
    right = capped(site, most)
    site.script = lambda request: (
        right(request) if shape == "direct" else Reply(uncounted(request, most))
    )
    async with source_of(site.url(), None, first=65_536) as source:
        assert await source.open() == PINNED
        assert source.opening == CONTENT[: min(65_536, most)]
        assert await read(source, 5, len(CONTENT) - 5) == CONTENT[5:]
        del site.requests[:]
        assert await read(source, 0, len(CONTENT)) == CONTENT
        spans = [request.span for request in site.requests]
        assert all(last - first < most for first, last in spans)
        assert len(spans) == -(-len(CONTENT) // most)


async def test_web_short_answers_do_not_mix_with_those_to_other_requests(site: Site) -> None:
    site.script = capped(site, 50_000)
    ranges = [(0, 120_000), (500_000, 4096), (7, 300_000)]
    async with source_of(site.url()) as source:
        for _ in range(2):
            async with streams_of(source, ranges) as streams:
                for stream, (offset, length) in zip(streams, ranges, strict=True):
                    async with stream as pieces:
                        got = b"".join([bytes(piece) async for piece in pieces])
                    assert got == CONTENT[offset : offset + length]


async def test_web_server_that_ends_its_answers_at_boundaries(site: Site) -> None:
    def script(request: Request) -> Reply:
        first, last = request.span
        boundary = (first // 65_536 + 1) * 65_536 - 1
        return Reply(part(CONTENT, first, min(last, boundary)))

    site.script = script
    async with source_of(site.url()) as source:
        for offset in (65_530, 0, 100_000):
            assert await read(source, offset, 500_000) == CONTENT[offset : offset + 500_000]
        assert len(site.requests) < 60


@pytest.mark.parametrize("most", [1, 100])
async def test_web_server_that_sends_crumbs_is_refused(site: Site, most: int) -> None:
    site.script = capped(site, most)
    got = b""
    async with source_of(site.url()) as source:
        with pytest.raises(BadAnswer, match=r"image\.raw: .* sends its answers in crumbs"):  # noqa: PT012
            async with streams_of(source, [(0, 1000)]) as (stream,), stream as pieces:
                async for piece in pieces:
                    got += piece
    assert got == CONTENT[: 2 * most]
    assert len(site.requests) == 2


async def test_web_rest_of_a_short_answer_is_judged_too(site: Site) -> None:
    """The image may have been replaced in between."""
    right = capped(site, 10_000)

    def script(request: Request) -> Reply:
        raw = right(request).raw
        return Reply(raw.replace(b'"v1"', b'"v2"') if request.span[0] else raw)

    site.script = script
    got = b""
    async with source_of(site.url()) as source:
        with pytest.raises(ImageChanged):  # noqa: PT012
            async with streams_of(source, [(0, 50_000)]) as (stream,), stream as pieces:
                async for piece in pieces:
                    got += piece
        assert got == CONTENT[:10_000]
        site.script = lambda _: None
        assert await read(source, 0, 50_000) == CONTENT[:50_000]


async def test_web_image_that_comes_as_a_whole(site: Site) -> None:
    """As tornado does it when the range is all of the image."""

    def script(request: Request) -> Reply | None:
        first, last = request.span
        if first == 0 and last >= len(CONTENT) - 1:
            return Reply(response(200, 'ETag: "v1"', "Accept-Ranges: bytes", body=CONTENT))
        return None

    site.script = script
    async with source_of(site.url(), None, first=2 << 20) as source:
        assert await source.open() == PINNED
        assert source.opening == CONTENT
        assert await read(source, 0, len(CONTENT)) == CONTENT
        assert await read(source, 7, 1000) == CONTENT[7:1007]
    assert site.accepted == 1


@pytest.mark.parametrize("first", [1, 65_536])
async def test_web_size_that_is_not_said_is_asked_for(site: Site, first: int) -> None:
    """The last byte shows it; later answers are taken at the size that is known."""
    right = capped(site, 1 << 20, "*")

    def script(request: Request) -> Reply:
        if request.fields["range"] == "bytes=-1":
            size = len(CONTENT)
            return Reply(part(CONTENT, size - 1, size - 1).replace(b"/%d" % size, b"/*"))
        return right(request)

    site.script = script
    async with source_of(site.url(), None, first=first) as source:
        assert await source.open() == PINNED
        assert source.opening == CONTENT[:first]
        assert await read(source, 7, 100_000) == CONTENT[7:100_007]
        assert await source.open() == PINNED
    assert [r.fields["range"] for r in site.requests].count("bytes=-1") == 2


# Servers that answer one request at a time


def alone(site: Site, *, closes: bool = False, garbage: bytes = b"") -> None:
    """From now on, what is sent along with a request is thrown away.

    ``closes``: the connection ends behind the first answer. ``garbage``: what the second is.
    """

    async def serve(stream: trio.abc.Stream) -> None:
        site.accepted += 1
        try:
            while received := bytearray(await stream.receive_some()):
                more = received.count(b"\r\n\r\n") > 1
                request = await read_request(stream, received)
                assert request is not None
                site.requests.append(request)
                await stream.send_all(site.right(request).raw + (garbage if more else b""))
                if closes and more:
                    return
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            await trio.aclose_forcefully(stream)

    site.serve = serve  # type: ignore[method-assign]


RANGES = [(0, 1000), (500_000, 4096), (7, 65_536), (len(CONTENT) - 10, 10)]


async def bring(source: HttpSource) -> None:
    """Read the ranges together."""
    async with streams_of(source, RANGES) as streams:
        for stream, (offset, length) in zip(streams, RANGES, strict=True):
            async with stream as pieces:
                got = b"".join([bytes(piece) async for piece in pieces])
            assert got == CONTENT[offset : offset + length]


async def test_web_server_that_answers_the_first_request_only_is_asked_singly(
    site: Site, patient_clock: MockClock
) -> None:
    """As cpp-httplib and civetweb do. It costs a second, once."""
    alone(site)
    async with source_of(site.url()) as source:
        began = trio.current_time()
        await bring(source)
        assert trio.current_time() - began < 2
        connections, began = site.accepted, trio.current_time()
        for _ in range(5):
            await bring(source)
        assert site.accepted == connections
        assert trio.current_time() - began < 0.5


async def test_web_many_readers_find_out_together_that_a_server_answers_singly(
    site: Site, patient_clock: MockClock
) -> None:
    alone(site)
    async with source_of(site.url(), connections=8) as source:
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(bring, source)
        assert trio.current_time() - began < 2
        assert site.accepted <= 10


@pytest.mark.parametrize(
    "garbage",
    [
        response(400, body=b"what?"),
        b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n",
        part(CONTENT, 0, 999),
        part(CONTENT, 500_001, 504_096),
    ],
    ids=["400", "400 and the end", "the first again", "another"],
)
async def test_web_nonsense_for_the_second_answer_is_asked_again(
    site: Site, garbage: bytes
) -> None:
    alone(site, garbage=garbage)
    async with source_of(site.url()) as source:
        for _ in range(3):
            await bring(source)
        asked = len(site.requests)
        connections = site.accepted
        await bring(source)
        assert (len(site.requests), site.accepted) == (asked + 4, connections)


async def test_web_server_that_closes_behind_the_first_answer_is_asked_singly(site: Site) -> None:
    alone(site, closes=True)
    async with source_of(site.url()) as source:
        for _ in range(3):
            await bring(source)
        connections = site.accepted
        for _ in range(3):
            await bring(source)
        assert site.accepted == connections


async def test_web_server_that_answers_together_stays_trusted(site: Site) -> None:
    """A second's delay now and then is none of its faults."""
    async with source_of(site.url()) as source:
        await bring(source)
        for _ in range(5):
            site.script = lambda request: Reply(site.right(request, "Connection: close").raw, True)
            await bring(source)
            site.script = lambda _: None
            await bring(source)
        connections = site.accepted
        await bring(source)
        await bring(source)
    assert site.accepted == connections


@pytest.mark.parametrize("closes", [False, True], ids=["is silent", "resets"])
async def test_web_no_read_fails_on_a_server_that_answers_singly(
    site: Site, patient_clock: MockClock, expected_log: Announce, closes: bool
) -> None:
    """One that closes with requests unread resets the connection: answers may be lost by that."""
    expected_log("retrying", required=False)
    if closes:
        site.serve = partial(one_at_most, site)  # type: ignore[method-assign]
    else:
        alone(site)

    async def check(cache: BlockCache, offset: int) -> None:
        assert await cache.read(offset, 10) == CONTENT[offset : offset + 10]

    async with source_of(site.url(), connections=1) as source, running(cached(source)) as cache:
        began = trio.current_time()
        for start in range(0, 100_000, 20_000):
            async with trio.open_nursery() as nursery:
                for number in range(8):
                    nursery.start_soon(check, cache, start + number * 100_000)
        assert trio.current_time() - began < 5


async def one_at_most(site: Site, stream: trio.abc.Stream) -> None:
    """A connection for one request, which is closed with all others unread."""
    site.accepted += 1
    received = bytearray()
    while b"\r\n\r\n" not in received:
        received += (piece := await stream.receive_some(1))
        if not piece:
            break
    else:
        request = await read_request(stream, received)
        assert request is not None
        site.requests.append(request)
        await stream.send_all(site.right(request).raw)
    await trio.aclose_forcefully(stream)


async def test_web_connection_that_went_to_another_is_left_alone(site: Site) -> None:
    """A stream that is left at the end of what was sent, with more of it unsent."""
    async with source_of(site.url()) as source:
        await bring(source)
        source.target.limit.size = 4096
        slot, other = [await source.slot(Priority.DEMAND) for _ in range(2)]
        first, second = slot.streams([(0, 20 * 4096), (500_000, 1000)])
        got = b""
        async with first as pieces:
            while len(got) < 16 * 4096:
                got += await anext(pieces)
        assert got == CONTENT[: 16 * 4096]
        (another,) = other.streams([(700_000, 4096)])
        async with another as theirs, second as ours:
            assert b"".join([bytes(piece) async for piece in ours]) == CONTENT[500_000:501_000]
            assert b"".join([bytes(piece) async for piece in theirs]) == CONTENT[700_000:704_096]
        slot.release()
        other.release()

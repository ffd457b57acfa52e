"""The two ways to ask a server, against servers on loopback that say what they are told to."""

import errno
import gc
import socket
from base64 import b64encode
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import trio
from fakes import noise, streams_of
from hypothesis import given
from hypothesis import strategies as st
from real.servers import Certificates
from sites import Proxy, Reply, Request, Site, chunked, listening, part, proxying, response, serving
from trio.testing import MockClock

from lazyfs.core import address
from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import (
    AccessDenied,
    BadAnswer,
    ImageChanged,
    InternalError,
    LazyfsError,
    NoRanges,
    NotFound,
    ServerBusy,
    SourceError,
    Unreachable,
    UntrustedServer,
    UsageError,
)
from lazyfs.core.options import ServerOptions
from lazyfs.sources import fastpath, http1, httprange
from lazyfs.sources.fallback import _translated, httpx
from lazyfs.sources.fastpath import FastOrigin
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient

CONTENT = noise(1 << 20)
PINNED = Identity(len(CONTENT), '"v1"')
STALL = 15.0  # seconds

USER, PASSWORD, TOKEN, SIGNATURE = "ursula", "geheim-4711", "token-0815", "signature-2342"
LOGIN = f"{USER}:{PASSWORD}"
BASIC = "Basic " + b64encode(LOGIN.encode()).decode()


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with serving(CONTENT) as server:
        yield server


@asynccontextmanager
async def source_of(
    url: str, identity: Identity | None = PINNED, **options: Any
) -> AsyncIterator[HttpSource]:
    """A source, already opened unless ``identity`` is None."""
    client = HttpClient(ServerOptions(user_agent="lazyfs/test", **options))
    try:
        yield HttpSource(client, url, identity)
    finally:
        await client.aclose()


@asynccontextmanager
async def one(
    source: HttpSource, offset: int, length: int
) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
    """The stream of a single range."""
    async with streams_of(source, [(offset, length)]) as (stream,), stream as pieces:
        yield pieces


async def read(source: HttpSource, offset: int = 0, length: int = 1000) -> bytes:
    async with one(source, offset, length) as pieces:
        return b"".join([bytes(piece) async for piece in pieces])


async def check(source: HttpSource, offset: int = 0, length: int = 1000) -> None:
    """A read that must succeed."""
    with trio.fail_after(30):
        assert await read(source, offset, length) == CONTENT[offset : offset + length]


async def failure(source: HttpSource, kind: type[LazyfsError]) -> str:
    """What a read that must fail says. It names the image."""
    with pytest.raises(kind) as caught, trio.fail_after(30):
        await read(source)
    assert type(caught.value) is kind
    said = str(caught.value)
    assert source.name in said
    return said


def always(reply: Reply) -> Callable[[Request], Reply]:
    return lambda _: reply


def first_time(reply: Reply) -> Callable[[Request], Reply | None]:
    """This once, then right answers."""
    replies = [reply]
    return lambda _: replies.pop() if replies else None


# Requests


async def test_opening_asks_for_one_byte_and_learns_the_identity(site: Site) -> None:
    async with source_of(site.url("/d/a%20b.raw?x=1#f"), None) as source:
        assert await source.open() == PINNED
        assert source.identity == PINNED
    (request,) = site.requests
    assert (request.method, request.target) == ("GET", "/d/a%20b.raw?x=1")
    assert request.fields == {
        "host": site.authority,
        "user-agent": "lazyfs/test",
        "range": "bytes=0-0",
        "accept-encoding": "identity",
    }


async def test_both_ways_ask_for_the_same(site: Site) -> None:
    async with source_of(site.url("/a%20b?c"), headers=(("X-Token", TOKEN),)) as source:
        await check(source, 7, 20)
        site.script = first_time(Reply(chunked(CONTENT, 7, 26)))
        await check(source, 7, 20)
    _, direct, careful = site.requests
    assert careful == direct


# Without what may not stand in a URL (httpx leaves some of that), and dots, which it resolves.
TARGETS = st.characters(categories=["L", "N", "P", "S"], exclude_characters='"<>\\^`{|}#%.')


@given(st.text(TARGETS, max_size=20))
def test_both_ways_write_a_target_alike(path: str) -> None:
    url = address.bare(f"http://host/{path}")
    assert address.on_the_wire(url) == httpx.URL(url).raw_path.decode()


async def test_ipv6() -> None:
    if not socket.has_ipv6:
        pytest.skip("there is no IPv6")
    try:
        async with serving(CONTENT, host="::1") as server, source_of(server.url()) as source:
            await check(source)
            assert server.requests[0].to == f"[::1]:{server.port}"
    except OSError as error:
        if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            raise
        pytest.skip("IPv6 is switched off")


async def test_a_header_that_was_given_replaces_ours(site: Site) -> None:
    """By both ways, and never sent twice: the site would not have it."""
    headers = (("user-agent", "mine/1"), ("Host", "mirror.test"))
    async with source_of(site.url(), headers=headers) as source:
        await check(source)
        site.script = first_time(Reply(chunked(CONTENT, 0, 999)))
        await check(source)
    assert len(site.requests) == 3
    for request in site.requests:
        assert (request.to, request.fields["user-agent"]) == ("mirror.test", "mine/1")


async def test_a_host_that_was_given_is_not_for_where_a_redirect_leads(site: Site) -> None:
    async with serving(CONTENT, host="127.0.0.2") as other:
        site.script = always(Reply(response(302, f"Location: {other.url()}")))
        async with source_of(site.url(), headers=(("Host", "mirror.test"),)) as source:
            await check(source)
            await check(source)
        assert {request.to for request in other.requests} == {other.authority}
    assert {request.to for request in site.requests} == {"mirror.test"}


# Connections


async def test_one_connection_serves_one_request_after_the_other(site: Site) -> None:
    async with source_of(site.url()) as source:
        for number in range(20):
            await check(source, number * 5000, 5000 + number)
        assert (site.accepted, site.ended) == (1, 0)
        assert source.link.round_trip > 0
    await site.until_ended(1)


async def test_the_connection_that_opened_an_image_is_used_again(site: Site) -> None:
    async with source_of(site.url(), None) as source:
        await source.open()
        await check(source)
    assert site.accepted == 1


async def test_the_careful_way_keeps_its_connection_too(site: Site) -> None:
    site.script = lambda request: Reply(chunked(CONTENT, *request.span))
    async with source_of(site.url()) as source:
        for _ in range(3):
            await check(source)
    assert (site.accepted, len(site.requests)) == (2, 4)


async def test_requests_at_the_same_time_have_a_connection_each(site: Site) -> None:
    async with source_of(site.url()) as source:
        for _ in range(3):
            async with AsyncExitStack() as stack:
                open_ones = [
                    await stack.enter_async_context(one(source, n * 1000, 1000)) for n in range(3)
                ]
                for number, pieces in enumerate(open_ones):
                    got = b"".join([bytes(piece) async for piece in pieces])
                    assert got == CONTENT[number * 1000 :][:1000]
        assert site.accepted == 3


async def test_images_of_one_client_share_connections(site: Site) -> None:
    client = HttpClient(ServerOptions())
    for name in ("/one", "/other"):
        await check(HttpSource(client, site.url(name), PINNED))
    assert site.accepted == 1
    await client.aclose()


async def test_a_large_body_comes_in_pieces(site: Site) -> None:
    async with source_of(site.url()) as source, one(source, 0, len(CONTENT)) as pieces:
        lengths = [len(piece) async for piece in pieces]
    assert sum(lengths) == len(CONTENT)
    assert len(lengths) > 1


@pytest.mark.parametrize("size", [1, 7, 100])
async def test_an_answer_may_come_in_any_pieces(site: Site, size: int) -> None:
    raw = part(CONTENT, 0, 299)

    async def dribble(stream: trio.SocketStream) -> None:
        stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        await stream.receive_some()
        for start in range(0, len(raw), size):
            await stream.send_all(raw[start : start + size])
            await trio.lowlevel.checkpoint()
        await stream.receive_some()  # until the client closes

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, dribble, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"http://127.0.0.1:{port}/image.raw") as source:
            await check(source, 0, 300)


async def test_a_connection_that_was_closed_while_idle_is_replaced(site: Site) -> None:
    async with source_of(site.url()) as source:
        site.script = lambda request: Reply(site.right(request).raw, hang_up=True)
        for number in range(1, 4):
            await check(source)
            await site.until_ended(number)
    assert (site.accepted, len(site.requests)) == (3, 3)


async def test_a_connection_that_is_closed_as_it_is_asked_is_replaced_once(site: Site) -> None:
    async with source_of(site.url()) as source:
        await check(source)
        site.script = first_time(Reply(b"", hang_up=True))
        await check(source)
        assert (site.accepted, len(site.requests)) == (2, 3)
        site.script = always(Reply(b"", hang_up=True))
        assert "broke off" in await failure(source, Unreachable)
        assert (site.accepted, len(site.requests)) == (3, 5)


async def test_a_fresh_connection_that_breaks_is_not_replaced(site: Site) -> None:
    site.script = always(Reply(b"", hang_up=True))
    async with source_of(site.url()) as source:
        await failure(source, Unreachable)
    assert (site.accepted, len(site.requests)) == (1, 1)


@pytest.mark.parametrize("sent", [1, 20, -1])
async def test_a_body_that_breaks_off(site: Site, sent: int) -> None:
    """What came before is right; the connection is not used again."""
    raw = part(CONTENT, 0, 999)
    body = len(raw) - 1000
    site.script = first_time(Reply(raw[: body + sent] if sent > 0 else raw[:-1], hang_up=True))
    got = b""
    async with source_of(site.url()) as source:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1 broke off"):  # noqa: PT012
            async with one(source, 0, 1000) as pieces:
                async for piece in pieces:
                    got += piece
        assert got == CONTENT[: sent if sent > 0 else 999]
        await check(source)
    assert site.accepted == 2


async def test_a_head_that_breaks_off(site: Site) -> None:
    site.script = first_time(Reply(part(CONTENT, 0, 999)[:50], hang_up=True))
    async with source_of(site.url()) as source:
        assert "127.0.0.1 broke off" in await failure(source, Unreachable)
        await check(source)


async def test_a_reset_is_told_in_words(site: Site) -> None:
    async def reset(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await trio.aclose_forcefully(stream)

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, reset, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"http://127.0.0.1:{port}/image.raw") as source:
            said = await failure(source, Unreachable)
    assert "the connection to 127.0.0.1 broke" in said


async def test_more_bytes_than_announced_end_the_connection(site: Site) -> None:
    evil = part(b"evil" * (len(CONTENT) // 4), 0, 999)
    site.script = first_time(Reply(part(CONTENT, 0, 999) + evil))
    async with source_of(site.url()) as source:
        await check(source)
        await site.until_ended(1)
        await check(source)
    assert (site.accepted, len(site.requests)) == (2, 2)


async def test_bytes_that_come_while_nothing_is_asked_end_the_connection(site: Site) -> None:
    evil = part(b"evil" * (len(CONTENT) // 4), 0, 999)
    go = trio.Event()
    site.script = first_time(Reply(part(CONTENT, 0, 999), wait=go, later=evil))
    async with source_of(site.url()) as source:
        await check(source)
        go.set()
        # The server reads on only when it has sent: then the client's kernel has the bytes.
        await trio.testing.wait_all_tasks_blocked(0.05)
        await check(source)
    assert (site.accepted, len(site.requests)) == (2, 2)


@pytest.mark.parametrize("length", [1000, 300_000, len(CONTENT)])
@pytest.mark.parametrize("apart", [False, True], ids=["one record", "two records"])
async def test_more_bytes_than_announced_over_tls(
    certificates: Certificates, length: int, apart: bool
) -> None:
    """They may have been received, or even decrypted, already: then no socket shows them."""
    right = part(CONTENT, 0, length - 1)
    evil = part(b"evil" * (len(CONTENT) // 4), 0, 999)
    at_once = trio.Event()
    at_once.set()
    reply = Reply(right, wait=at_once, later=evil) if apart else Reply(right + evil)
    async with serving(CONTENT, tls=certificates.server()) as server:
        server.script = first_time(reply)
        async with source_of(server.url(), cacert=certificates.file) as source:
            await check(source, 0, length)
            # All has been sent then: what comes after the next request nobody could tell from it.
            await trio.testing.wait_all_tasks_blocked(0.05)
            await check(source)


async def test_a_body_that_nobody_reads_ends_the_connection(site: Site) -> None:
    async with source_of(site.url()) as source:
        async with one(source, 0, len(CONTENT)) as pieces:
            await anext(aiter(pieces))
        await site.until_ended(1)
        await check(source)
    assert site.accepted == 2


async def test_a_reader_that_is_cancelled_ends_the_connection(site: Site) -> None:
    never = trio.Event()
    raw = part(CONTENT, 0, 999)
    site.script = first_time(Reply(raw[:-10], wait=never))
    async with source_of(site.url()) as source:
        with trio.CancelScope() as scope:
            async with one(source, 0, 1000) as pieces:
                async for _ in pieces:
                    scope.cancel()
        assert scope.cancelled_caught
        await check(source)
    assert site.accepted == 2


async def test_an_idle_connection_is_not_kept_for_ever(
    site: Site, patient_clock: MockClock
) -> None:
    async with source_of(site.url()) as source:
        await check(source)
        await trio.sleep(50)
        await check(source)
        assert site.accepted == 1
        await trio.sleep(60)
        await check(source)
        assert site.accepted == 2


async def test_a_connection_of_before_the_machine_slept_is_not_used(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with source_of(site.url()) as source:
        await check(source)
        slept = fastpath.time_suspended()
        monkeypatch.setattr(fastpath, "time_suspended", lambda: slept + 600)
        await check(source)
        await check(source)
    assert site.accepted == 2


async def test_after_silence_no_other_idle_connection_is_tried(
    site: Site, patient_clock: MockClock
) -> None:
    """What has forgotten one, a firewall say, has forgotten all: each would cost the patience."""
    async with source_of(site.url(), stall=STALL) as source:
        async with AsyncExitStack() as stack:
            for pieces in [
                await stack.enter_async_context(one(source, n * 1000, 1000)) for n in range(4)
            ]:
                assert b"".join([bytes(piece) async for piece in pieces])
        assert site.accepted == 4
        site.script = first_time(Reply(b"", wait=trio.Event()))
        with pytest.raises(Unreachable, match="fell silent"):
            await read(source)
        await site.until_ended(3)
        await check(source)
    assert site.accepted == 5


@pytest.mark.parametrize("line", ["Connection: close", "Connection: Close, TE"])
async def test_a_server_that_says_it_closes_is_believed(site: Site, line: str) -> None:
    site.script = lambda request: site.right(request, line)  # it does not close, in fact
    async with source_of(site.url()) as source:
        await check(source)
        await site.until_ended(1)
        await check(source)
    assert (site.accepted, len(site.requests)) == (2, 2)


async def test_a_server_of_http_1_0(site: Site) -> None:
    def old(request: Request) -> Reply:
        return Reply(site.right(request).raw.replace(b"HTTP/1.1", b"HTTP/1.0", 1), hang_up=True)

    site.script = old
    async with source_of(site.url(), None) as source:
        assert await source.open() == PINNED
        for number in range(3):
            await check(source, number * 1000)
    assert (site.accepted, len(site.requests)) == (4, 4)


@pytest.mark.parametrize("interim", ["100 Continue", "103 Early Hints"])
async def test_an_interim_answer_is_not_the_answer(site: Site, interim: str) -> None:
    """A client must take them even where it expects none (RFC 9110 section 15.2)."""
    head = f"HTTP/1.1 {interim}\r\nLink: </style.css>\r\n\r\n".encode()
    site.script = lambda request: Reply(head + site.right(request).raw)
    async with source_of(site.url(), None) as source:
        assert await source.open() == PINNED
        await check(source)


async def test_interim_answers_without_an_end(site: Site) -> None:
    site.script = first_time(Reply(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000))
    async with source_of(site.url()) as source:
        assert "never comes to its answer" in await failure(source, BadAnswer)
        await check(source)
    assert site.accepted == 2


# The origin alone


async def test_an_answer_says_whether_its_connection_was_open_before(site: Site) -> None:
    origin = FastOrigin(address.origin(site.url()), None, STALL)
    request = http1.request(site.authority, "/image.raw", [("Range", "bytes=0-99")])
    for expected in (False, True, True):
        answer, reused = await origin.get(request)
        assert reused is expected
        assert (answer.status, answer.counted) == (206, True)
        assert answer.headers["etag"] == '"v1"'
        assert b"".join([bytes(piece) async for piece in answer]) == CONTENT[:100]
        await answer.aclose()
        await answer.aclose()  # once more does no harm
    await origin.close_idle()
    await site.until_ended(1)


async def test_an_answer_that_is_closed_gives_no_more(site: Site) -> None:
    origin = FastOrigin(address.origin(site.url()), None, STALL)
    request = http1.request(site.authority, "/image.raw", [("Range", "bytes=0-99")])
    answer, _ = await origin.get(request)
    await answer.aclose()
    assert [piece async for piece in answer] == []
    await site.until_ended(1)


async def test_interim_answers_without_an_end_on_the_careful_way(site: Site) -> None:
    """httpx would take them for ever; the time that an answer has as a whole ends it."""
    stop = trio.Event()

    async def hints(stream: trio.SocketStream) -> None:
        try:
            while not stop.is_set():
                await stream.send_all(b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100)
        except trio.BrokenResourceError:
            stop.set()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, hints, listeners)
        port = listeners[0].socket.getsockname()[1]
        site.script = always(Reply(response(302, f"Location: http://127.0.0.1:{port}/x")))
        async with source_of(site.url(), stall=0.2) as source:
            assert "never comes to its answer" in await failure(source, Unreachable)
        with trio.fail_after(10):
            await stop.wait()


# Silence


@pytest.mark.parametrize("sent", [0, 30, -500], ids=["nothing", "in the head", "in the body"])
async def test_a_server_that_falls_silent(site: Site, patient_clock: MockClock, sent: int) -> None:
    raw = part(CONTENT, 0, 999)
    site.script = always(Reply(raw[:sent], wait=trio.Event()))
    async with source_of(site.url(), stall=STALL) as source:
        started = trio.current_time()
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1 fell silent") as caught:
            await read(source)
        assert source.name in str(caught.value)
        assert STALL <= trio.current_time() - started < STALL + 2
        site.script = lambda _: None
        await check(source)
    assert site.accepted == 2


async def test_silence_on_a_connection_that_was_open_takes_no_longer(
    site: Site, patient_clock: MockClock
) -> None:
    async with source_of(site.url(), stall=STALL) as source:
        await check(source)
        site.script = always(Reply(b"", wait=trio.Event()))
        started = trio.current_time()
        with pytest.raises(Unreachable, match="fell silent"):
            await read(source)
        assert trio.current_time() - started < STALL + 2


@asynccontextmanager
async def slowly(raw: bytes, size: int, seconds: float, at_once: int = 0) -> AsyncIterator[str]:
    """The URL of an image that comes like this: ``at_once`` bytes, then ``size`` bytes each time
    that so many seconds have passed."""

    async def drip(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(raw[:at_once])
        for start in range(at_once, len(raw), size):
            await trio.sleep(seconds)
            try:
                await stream.send_all(raw[start : start + size])
            except trio.BrokenResourceError:  # the client has lost patience
                return

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, drip, listeners)
        yield f"http://127.0.0.1:{listeners[0].socket.getsockname()[1]}/image.raw"


def uncounted(raw: bytes) -> bytes:
    """The same answer in one chunk: nothing for the direct way."""
    head, _, body = raw.partition(b"\r\n\r\n")
    head = head.replace(b"Content-Length: %d" % len(body), b"Transfer-Encoding: chunked")
    return head + b"\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)


@pytest.mark.parametrize("shape", [bytes, uncounted], ids=["direct", "careful"])
@pytest.mark.parametrize(
    ("size", "seconds"), [(2500, 1), (600, 1), (3000, 14)], ids=["modem", "its quarter", "bursts"]
)
async def test_a_slow_body_is_not_a_stalled_one(
    patient_clock: MockClock, shape: Callable[[bytes], bytes], size: int, seconds: float
) -> None:
    """A modem of 20 kbit/s, alone or shared by four connections; and a link that comes and goes."""
    raw = shape(part(CONTENT, 0, 11_999))
    async with slowly(raw, size, seconds) as url, source_of(url, stall=STALL) as source:
        assert await read(source, 0, 12_000) == CONTENT[:12_000]


@pytest.mark.parametrize("shape", [bytes, uncounted], ids=["direct", "careful"])
@pytest.mark.parametrize(
    ("size", "seconds"), [(1, 5), (200, 2), (1000, 14)], ids=["bytes", "steadily", "in bursts"]
)
async def test_a_body_that_only_drips_is_given_up(
    patient_clock: MockClock, shape: Callable[[bytes], bytes], size: int, seconds: float
) -> None:
    """Never silent for long, but it would hold its slot for ever. What came of it is right."""
    raw = shape(part(CONTENT, 0, 49_999))
    got = b""
    async with slowly(raw, size, seconds, 600) as url, source_of(url, stall=STALL) as source:
        started = trio.current_time()
        with pytest.raises(Unreachable, match=r"less than 128 bytes a second"):  # noqa: PT012
            async with one(source, 0, 50_000) as pieces:
                async for piece in pieces:
                    got += piece
        assert trio.current_time() - started < 2 * STALL + 2
    assert got
    assert got == CONTENT[: len(got)]


@pytest.mark.parametrize("lead", [b"", b"HTTP/1.1 103 x\r\n\r\n" * 15], ids=["", "hints"])
async def test_a_head_that_only_drips_is_given_up(patient_clock: MockClock, lead: bytes) -> None:
    raw = lead + part(CONTENT, 0, 999)
    async with slowly(raw, 1, 5) as url, source_of(url, stall=STALL) as source:
        started = trio.current_time()
        with pytest.raises(Unreachable, match="fell silent"):
            await read(source)
        assert trio.current_time() - started < STALL + 2


async def test_the_patience_is_for_the_server_and_not_for_who_reads(
    site: Site, patient_clock: MockClock
) -> None:
    """A reader may take his time between two pieces: his disk may be slow."""
    async with source_of(site.url(), stall=STALL) as source:
        got = b""
        async with one(source, 0, len(CONTENT)) as pieces:
            async for piece in pieces:
                got += piece
                await trio.sleep(2 * STALL)
        assert got == CONTENT


async def test_a_silent_server_on_the_careful_way(site: Site, patient_clock: MockClock) -> None:
    async with source_of(site.url(), stall=STALL) as source:
        site.script = lambda request: Reply(chunked(CONTENT, *request.span))
        await check(source)
        site.script = always(Reply(chunked(CONTENT, 0, 999)[:-100], wait=trio.Event()))
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1 fell silent") as caught:
            await read(source)
        assert source.name in str(caught.value)


# No connection


async def test_nobody_listens() -> None:
    with socket.socket() as probe:  # bound, so that nobody takes the port, but not listening
        probe.bind(("127.0.0.1", 0))
        async with source_of(f"http://127.0.0.1:{probe.getsockname()[1]}/image.raw") as source:
            said = await failure(source, Unreachable)
    assert "cannot connect to 127.0.0.1: Connection refused" in said


async def test_a_connection_to_itself_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """As it comes about, once in a while, when a port of this machine is tried again and again."""

    async def own_end(host: str, port: int) -> trio.SocketStream:
        own = trio.socket.socket()
        await own.bind((host, 0))
        await own.connect(own.getsockname())
        return trio.SocketStream(own)

    monkeypatch.setattr(trio, "open_tcp_stream", own_end)
    async with source_of("http://127.0.0.1:9/image.raw") as source:
        assert "nobody listens there" in await failure(source, Unreachable)


async def test_a_server_that_takes_no_connection(patient_clock: MockClock) -> None:
    with socket.socket() as full:
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        first = socket.create_connection(full.getsockname(), timeout=10)  # takes the only place
        with first:
            url = f"http://127.0.0.1:{full.getsockname()[1]}/image.raw"
            async with source_of(url, stall=STALL) as source:
                with pytest.raises(Unreachable, match=r"cannot connect to 127\.0\.0\.1: no answer"):
                    await read(source)


class _Resolver(trio.abc.HostnameResolver):
    """Knows one name, and lets the lookup of any other fail."""

    async def getaddrinfo(self, host: Any, port: Any, *hints: int) -> Any:
        if host in (b"xn--bcher-kva.test", "xn--bcher-kva.test"):
            return [(socket.AF_INET, socket.SOCK_STREAM, 0, "", ("127.0.0.1", int(port)))]
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    async def getnameinfo(self, sockaddr: Any, flags: int) -> Any:
        raise NotImplementedError


@pytest.fixture
async def resolver() -> AsyncIterator[None]:
    trio.socket.set_custom_hostname_resolver(_Resolver())
    yield
    trio.socket.set_custom_hostname_resolver(None)


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_an_unknown_host(resolver: None, scheme: str) -> None:
    async with source_of(f"{scheme}://host.invalid/image.raw") as source:
        said = await failure(source, Unreachable)
    assert "cannot connect to host.invalid: Name or service not known" in said


async def test_an_unknown_host_behind_a_redirect_is_named(site: Site, resolver: None) -> None:
    site.script = always(Reply(response(302, "Location: http://host.invalid/x")))
    async with source_of(site.url()) as source:
        said = await failure(source, Unreachable)
    assert "cannot connect to host.invalid: Name or service not known" in said


async def test_a_host_that_is_not_ascii(site: Site, resolver: None) -> None:
    async with source_of(f"http://b\xfccher.test:{site.port}/image.raw") as source:
        await check(source)
    assert site.requests[0].to == f"xn--bcher-kva.test:{site.port}"


# TLS


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    if not which("openssl"):
        pytest.skip("openssl is not installed (Debian package openssl)")
    return Certificates(tmp_path_factory.mktemp("certificates"))


@pytest.fixture
async def tls_site(certificates: Certificates) -> AsyncIterator[Site]:
    async with serving(CONTENT, tls=certificates.server()) as server:
        yield server


async def test_tls_with_an_authority_of_ones_own(
    tls_site: Site, certificates: Certificates
) -> None:
    async with source_of(tls_site.url(), cacert=certificates.file) as source:
        for number in range(5):
            await check(source, number * 1000, 100_000)
        assert tls_site.accepted == 1
        tls_site.script = lambda request: Reply(chunked(CONTENT, *request.span))
        await check(source)


async def test_tls_with_any_certificate(tls_site: Site) -> None:
    async with source_of(tls_site.url(), insecure=True) as source:
        await check(source)
        await check(source)
    assert tls_site.accepted == 1


async def test_a_certificate_that_nobody_vouches_for(tls_site: Site) -> None:
    async with source_of(tls_site.url()) as source:
        said = await failure(source, UntrustedServer)
    assert "the certificate of 127.0.0.1 does not hold: self-signed certificate" in said
    assert "--cacert" in said
    assert tls_site.requests == []


async def test_a_certificate_of_another_host(certificates: Certificates) -> None:
    async with serving(CONTENT, host="127.0.0.2", tls=certificates.server()) as server:
        async with source_of(server.url(), cacert=certificates.file) as source:
            said = await failure(source, UntrustedServer)
        assert "the certificate of 127.0.0.2 does not hold" in said
        assert server.requests == []


async def test_a_certificate_is_checked_on_the_careful_way_too(site: Site, tls_site: Site) -> None:
    site.script = always(Reply(response(302, f"Location: {tls_site.url()}")))
    async with source_of(site.url()) as source:
        said = await failure(source, UntrustedServer)
    assert "the certificate of 127.0.0.1 does not hold: self-signed certificate" in said


async def test_a_server_that_speaks_no_tls(site: Site) -> None:
    """A TLS failure is told as one, not as what its number means to the operating system."""

    async def plain(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n")
        await stream.aclose()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, plain, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"https://127.0.0.1:{port}/image.raw") as source:
            said = await failure(source, Unreachable)
    assert "cannot connect to 127.0.0.1: " in said
    assert "Operation not permitted" not in said
    assert "wrong version number" in said.lower().replace("_", " ")


async def test_a_server_that_refuses_the_handshake() -> None:
    alert = b"\x15\x03\x03\x00\x02\x02\x28"  # fatal, handshake_failure (RFC 8446 section 6)

    async def refuse(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.send_all(alert)
        await stream.aclose()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, refuse, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"https://127.0.0.1:{port}/image.raw") as source:
            said = await failure(source, Unreachable)
    assert "cannot connect to 127.0.0.1: " in said
    assert "handshake failure" in said.lower().replace("_", " ")


async def test_a_server_that_hangs_up_during_the_handshake() -> None:
    async def hang_up(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        await stream.aclose()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, hang_up, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"https://127.0.0.1:{port}/image.raw") as source:
            said = await failure(source, Unreachable)
    assert "cannot connect to 127.0.0.1: " in said
    assert "Exec format error" not in said


async def test_a_handshake_that_stalls(patient_clock: MockClock) -> None:
    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with listening() as (listeners, nursery):
        nursery.start_soon(trio.serve_listeners, silent, listeners)
        port = listeners[0].socket.getsockname()[1]
        async with source_of(f"https://127.0.0.1:{port}/image.raw", stall=STALL) as source:
            with pytest.raises(Unreachable, match=r"cannot connect to 127\.0\.0\.1: no answer"):
                await read(source)


async def test_a_connection_that_breaks_below_tls(
    tls_site: Site, certificates: Certificates
) -> None:
    """TLS says how a stream ends; a body that is cut off is told without that, too."""
    raw = part(CONTENT, 0, 999)
    tls_site.script = first_time(Reply(raw[:-1], hang_up=True))
    async with source_of(tls_site.url(), cacert=certificates.file) as source:
        assert "127.0.0.1 broke off" in await failure(source, Unreachable)
        await check(source)


async def test_certificates_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "no.pem").write_text("not a certificate")
    for file in (tmp_path / "no.pem", tmp_path / "missing.pem"):
        with pytest.raises(UsageError, match=str(file)):
            async with source_of("https://127.0.0.1/image.raw", cacert=file) as source:
                await source.open()


# Answers that are not counted


def until_closed(content: bytes, first: int, last: int) -> bytes:
    raw = part(content, first, last)
    return raw.replace(b"Content-Length: %d\r\n" % (last - first + 1), b"")


@pytest.mark.parametrize("size", [1, 100, 1000])
async def test_chunks_are_read_on_the_careful_way(site: Site, size: int) -> None:
    site.script = lambda request: Reply(chunked(CONTENT, *request.span, size))
    async with source_of(site.url(), None) as source:
        assert await source.open() == PINNED
        for number in range(3):
            await check(source, number * 1000)
    assert len(site.requests) == 5  # one of them was asked directly, in vain


async def test_a_body_that_ends_with_the_connection(site: Site) -> None:
    site.script = lambda request: Reply(until_closed(CONTENT, *request.span), hang_up=True)
    async with source_of(site.url(), None) as source:
        assert await source.open() == PINNED
        for number in range(3):
            await check(source, number * 1000)
    assert len(site.requests) == 5


# httpcore leaves generators of its own to the collector when a body is not read to its end.
@pytest.mark.filterwarnings("ignore:Async generator 'httpcore.*:ResourceWarning")
@pytest.mark.parametrize("shape", [chunked, until_closed])
async def test_bodies_of_another_length_than_the_range(
    site: Site, shape: Callable[..., bytes]
) -> None:
    def shaped(length: int) -> Reply:
        raw = shape(CONTENT, 0, length - 1)
        return Reply(raw.replace(b"0-%d/" % (length - 1), b"0-999/"), hang_up=True)

    async with source_of(site.url()) as source:
        site.script = always(shaped(999))
        assert "the answer ended 1 bytes early" in await failure(source, Unreachable)
        site.script = always(shaped(1001))
        assert "more than the range asked for" in await failure(source, BadAnswer)
        site.script = always(shaped(1000))
        await check(source)


@pytest.mark.parametrize("length", [0, 1, 999, 1001, 10**17])
async def test_a_counted_body_of_another_length_than_the_range(site: Site, length: int) -> None:
    raw = part(CONTENT, 0, 999).replace(b"Length: 1000", b"Length: %d" % length)
    site.script = first_time(Reply(raw))
    async with source_of(site.url()) as source:
        assert f"sent {length} bytes for a range of 1000" in await failure(source, BadAnswer)
        await check(source)
    assert site.accepted == 2


# Redirects


async def test_a_relative_redirect_is_followed_once_and_remembered(site: Site) -> None:
    def script(request: Request) -> Reply | None:
        moved = request.target == "/d/image.raw?a=b"
        return Reply(response(302, "Location: ../e/x%20y?c=d")) if moved else None

    site.script = script
    async with source_of(site.url("/d/image.raw?a=b"), None) as source:
        await source.open()
        opening = len(site.requests)
        await check(source)
        await check(source)
    targets = [request.target for request in site.requests]
    assert targets[0] == "/d/image.raw?a=b"
    assert targets[opening - 1 :] == ["/e/x%20y?c=d"] * 3


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
@pytest.mark.parametrize("location", ["/new", "//127.0.0.1:{port}/new", "?new", "./new#f"])
async def test_kinds_of_redirects(site: Site, status: int, location: str) -> None:
    where = location.format(port=site.port)

    def script(request: Request) -> Reply | None:
        if "new" in request.target:
            return None
        return Reply(response(status, f"Location: {where}", body=b"moved"))

    site.script = script
    async with source_of(site.url("/old")) as source:
        await check(source)
    assert site.requests[-1].target in ("/new", "/old?new")


def hops(site: Site, count: int) -> Callable[[Request], Reply | None]:
    """The image is at the end of this many redirects."""

    def script(request: Request) -> Reply | None:
        number = int(request.target[1:])
        return Reply(response(302, f"Location: /{number + 1}")) if number < count else None

    return script


async def test_ten_redirects_are_followed(site: Site) -> None:
    site.script = hops(site, 10)
    async with source_of(site.url("/0")) as source:
        await check(source)


async def test_more_are_not(site: Site) -> None:
    site.script = hops(site, 11)
    async with source_of(site.url("/0")) as source:
        assert "more than 10 redirects" in await failure(source, BadAnswer)


async def test_a_circle(site: Site) -> None:
    site.script = always(Reply(response(302, "Location: /image.raw")))
    async with source_of(site.url()) as source:
        assert "more than 10 redirects" in await failure(source, BadAnswer)
    assert len(site.requests) < 30


SECRET_FIELDS = {"authorization": BASIC, "cookie": f"c={TOKEN}", "x-token": TOKEN}


def secrets_of(request: Request) -> dict[str, str]:
    return {name: value for name, value in request.fields.items() if name in SECRET_FIELDS}


@pytest.mark.parametrize("other_host", ["127.0.0.2", "127.0.0.1"], ids=["host", "port"])
async def test_what_is_secret_does_not_go_to_another_origin(site: Site, other_host: str) -> None:
    """By both ways: at first carefully, then directly."""
    headers = (("Cookie", f"c={TOKEN}"), ("X-Token", TOKEN))
    async with serving(CONTENT, host=other_host) as other:
        site.script = always(Reply(response(302, f"Location: {other.url('/there')}")))
        async with source_of(site.url(login=LOGIN), None, headers=headers) as source:
            await source.open()
            await check(source)
            await check(source)
        assert [request.to for request in other.requests] == [other.authority] * 3
        assert [secrets_of(request) for request in other.requests] == [{}] * 3
        assert not any("referer" in request.fields for request in other.requests)
    assert all(secrets_of(request) == SECRET_FIELDS for request in site.requests)


async def test_what_is_secret_stays_with_its_origin_on_a_redirect_and_back(site: Site) -> None:
    """There and back again: the second origin sees nothing, the first one everything."""
    async with serving(CONTENT, host="127.0.0.2") as other:
        other.script = always(Reply(response(302, f"Location: {site.url('/back')}")))

        def script(request: Request) -> Reply | None:
            moved = request.target == "/image.raw"
            return Reply(response(302, f"Location: {other.url()}")) if moved else None

        site.script = script
        headers = (("Cookie", f"c={TOKEN}"), ("X-Token", TOKEN))
        async with source_of(site.url(login=LOGIN), headers=headers) as source:
            await check(source)
            await check(source)
        assert all(secrets_of(request) == {} for request in other.requests)
    assert all(secrets_of(request) == SECRET_FIELDS for request in site.requests)
    assert site.requests[-1].target == "/back"


async def test_a_login_in_a_redirect_is_neither_sent_nor_shown(site: Site) -> None:
    async with serving(CONTENT, host="127.0.0.2") as other:
        target = other.url("/there", login=LOGIN)
        site.script = always(Reply(response(302, f"Location: {target}")))
        async with source_of(site.url()) as source:
            await check(source)
            other.script = always(Reply(response(500)))
            assert PASSWORD not in await failure(source, ServerBusy)
        assert all(secrets_of(request) == {} for request in other.requests)


async def test_from_https_down_to_http_is_refused(
    site: Site, tls_site: Site, certificates: Certificates
) -> None:
    tls_site.script = always(Reply(response(302, f"Location: {site.url()}")))
    async with source_of(tls_site.url(), cacert=certificates.file) as source:
        said = await failure(source, BadAnswer)
    assert "redirects from https to http" in said
    assert "--insecure-redirects" in said
    assert site.requests == []


async def test_from_https_down_to_http_where_that_is_allowed(
    site: Site, tls_site: Site, certificates: Certificates
) -> None:
    tls_site.script = always(Reply(response(302, f"Location: {site.url()}")))
    options = {"cacert": certificates.file, "insecure_redirects": True}
    async with source_of(tls_site.url(login=LOGIN), **options) as source:
        await check(source)
        await check(source)
    assert all(secrets_of(request) == {} for request in site.requests)


async def test_from_http_up_to_https(
    site: Site, tls_site: Site, certificates: Certificates
) -> None:
    site.script = always(Reply(response(302, f"Location: {tls_site.url()}")))
    async with source_of(site.url(), cacert=certificates.file) as source:
        await check(source)
        asked = len(site.requests)
        await check(source)
    assert len(site.requests) == asked


@pytest.mark.parametrize("status", [400, 401, 403, 404, 410, 451])
async def test_an_expired_target_is_resolved_again(site: Site, status: int) -> None:
    valid = 0

    def script(request: Request) -> Reply | None:
        nonlocal valid
        if request.target == "/image.raw":
            valid += 1
            return Reply(response(302, f"Location: /signed?n={valid}"))
        return None if request.target == f"/signed?n={valid}" else Reply(response(status))

    site.script = script
    async with source_of(site.url()) as source:
        await check(source)
        last = valid
        valid += 1  # what was signed before is worth nothing now
        await check(source)
        assert valid == last + 2
        await check(source)
    assert site.requests[-1].target == f"/signed?n={valid}"


@pytest.mark.parametrize(
    ("status", "kind"),
    [(400, BadAnswer), (401, AccessDenied), (403, AccessDenied), (404, NotFound), (451, BadAnswer)],
)
async def test_a_target_that_has_gone_for_good(
    site: Site, status: int, kind: type[LazyfsError]
) -> None:
    def script(request: Request) -> Reply:
        moved = request.target == "/image.raw"
        return Reply(response(302, "Location: /signed") if moved else response(status))

    async with source_of(site.url()) as source:
        site.script = script
        await failure(source, kind)
        site.script = lambda _: None
        await check(source)
        site.script = script
        await failure(source, kind)
    assert len(site.requests) < 15


async def test_a_target_that_redirects_in_its_turn(site: Site) -> None:
    where = {"/image.raw": "/one"}

    def script(request: Request) -> Reply | None:
        target = where.get(request.target)
        return Reply(response(302, f"Location: {target}")) if target else None

    site.script = script
    async with source_of(site.url()) as source:
        await check(source)
        where["/one"] = "/two"
        await check(source)
        del site.requests[:]
        await check(source)
    assert [request.target for request in site.requests] == ["/two"]


async def test_another_image_behind_a_new_target_is_not_taken_for_it(site: Site) -> None:
    def script(request: Request) -> Reply | None:
        if request.target == "/image.raw":
            return Reply(response(302, "Location: /other"))
        return Reply(site.right(request).raw.replace(b'"v1"', b'"v2"'))

    async with source_of(site.url()) as source:
        await check(source)
        site.script = script
        await failure(source, ImageChanged)


# Targets that fail


def to(mirror: Site) -> Callable[[Request], Reply]:
    """A script that redirects to a mirror."""
    return always(Reply(response(302, f"Location: {mirror.url('/there')}")))


@pytest.mark.parametrize("status", [500, 501, 503, 507, 509, 520, 530])
@pytest.mark.parametrize("shape", [part, chunked], ids=["direct", "careful"])
async def test_a_mirror_that_answers_with_an_error_is_left_for_another(
    site: Site, status: int, shape: Callable[..., bytes]
) -> None:
    async with (
        serving(CONTENT, host="127.0.0.2") as first,
        serving(CONTENT, host="127.0.0.3") as second,
        source_of(site.url(), None) as source,
    ):
        site.script = to(first)
        first.script = second.script = lambda request: Reply(shape(CONTENT, *request.span))
        await source.open()
        await check(source)
        first.script = always(Reply(response(status, body=b"<html>out of order</html>")))
        site.script = to(second)
        asked = len(first.requests)
        await check(source)
        await check(source)
        assert len(first.requests) == asked + 1


@pytest.mark.parametrize("how", ["refuses", "hangs up", "is silent"])
async def test_a_mirror_that_cannot_be_reached_is_left_for_another(
    site: Site, patient_clock: MockClock, how: str
) -> None:
    async with serving(CONTENT, host="127.0.0.3") as second, AsyncExitStack() as up:
        first = await up.enter_async_context(serving(CONTENT, host="127.0.0.2"))
        site.script = to(first)
        async with source_of(site.url(), stall=STALL) as source:
            await check(source)
            site.script = to(second)
            first.script = always(Reply(b"", hang_up=True))
            if how == "is silent":
                first.script = always(Reply(b"", wait=trio.Event()))
            if how == "refuses":
                await up.aclose()
            await check(source)
            await check(source)
        assert len(second.requests) >= 2


async def test_a_place_is_kept_while_its_redirect_is_out_of_order(site: Site) -> None:
    """The mirror fails, and who redirects to it too: whichever is back first is used."""
    async with serving(CONTENT, host="127.0.0.2") as mirror, source_of(site.url()) as source:
        site.script = to(mirror)
        await check(source)
        site.script = mirror.script = always(Reply(response(503)))
        assert "status 503" in await failure(source, ServerBusy)
        mirror.script = lambda _: None
        await check(source)


async def test_a_mirror_with_another_version_is_not_taken(site: Site) -> None:
    async with (
        serving(CONTENT, host="127.0.0.2") as first,
        serving(CONTENT, host="127.0.0.3") as second,
        source_of(site.url()) as source,
    ):
        site.script = to(first)
        await check(source)
        first.script = always(Reply(response(500)))
        site.script = to(second)
        second.script = lambda r: Reply(second.right(r).raw.replace(b'"v1"', b'"v2"'))
        await failure(source, ImageChanged)


HOSTS = st.sampled_from(
    ["xn--", "xn---", "xn--a", "\xad", "\u2024", "a\xdf", "*\xf6", "[::1]:1", "%"]
)
NO_ADDRESSES = st.characters(max_codepoint=255, exclude_characters="0123456789")
LOCATIONS = st.builds(
    "{}{}{}".format,
    st.sampled_from(["http://", "https://", "//", "HTTP:/", "http:", "/", "\\\\", ""]),
    HOSTS | st.text(NO_ADDRESSES, max_size=6),
    st.sampled_from(["", ":1", "/x", "?y", "#z", "@127.0.0.1:1"]),
)


@given(LOCATIONS)
def test_wherever_a_redirect_leads_only_errors_of_ours_come_of_it(location: str) -> None:
    """Hosts that cannot be: none can be looked up here, and nobody listens on port 1."""

    async def scenario() -> None:
        trio.socket.set_custom_hostname_resolver(_Resolver())
        base = "http://127.0.0.1:1/image.raw"
        async with source_of(base, stall=STALL) as source:
            try:
                target = httprange.redirect_target("image", base, 302, {"location": location})
            except BadAnswer:
                return
            slot = await source.slot(Priority.DEMAND)
            with pytest.raises(Unreachable):
                await source._follow(slot, address.bare(target or base), [])

    trio.run(scenario)


# A date that does not pin yet

TODAY, LATER = "Mon, 06 Jan 2025 10:00:00 GMT", "Mon, 06 Jan 2025 10:00:01 GMT"


def dated(*lines: str) -> Reply:
    """A right answer to the opening, with these validators and no others."""
    return Reply(part(CONTENT, 0, 0, *lines).replace(b'ETag: "v1"\r\n', b"", 1))


async def test_an_image_of_this_second_is_asked_for_again_in_the_next(
    site: Site, patient_clock: MockClock
) -> None:
    """As Apache does it: a weak tag for a fresh file, a strong one later."""
    weak = dated('ETag: W/"v1"', f"Last-Modified: {TODAY}", f"Date: {TODAY}")
    strong = dated('ETag: "v1"', f"Last-Modified: {TODAY}", f"Date: {LATER}")
    replies = [strong, weak]
    site.script = lambda _: replies.pop()
    async with source_of(site.url(), None) as source:
        assert await source.open() == Identity(len(CONTENT), '"v1"', TODAY)
    assert len(site.requests) == 2


async def test_a_date_that_is_always_now_pins_nothing(site: Site, patient_clock: MockClock) -> None:
    site.script = always(dated(f"Last-Modified: {TODAY}", f"Date: {TODAY}"))
    async with source_of(site.url(), None) as source:
        assert not (await source.open()).pinned
    assert len(site.requests) == 2


async def test_an_image_of_this_second_with_a_strong_tag_is_asked_for_once(site: Site) -> None:
    site.script = always(dated('ETag: "v1"', f"Last-Modified: {TODAY}", f"Date: {TODAY}"))
    async with source_of(site.url(), None) as source:
        assert (await source.open()).etag == '"v1"'
    assert len(site.requests) == 1


# Credentials


async def test_a_login_in_the_url_is_sent_and_not_asked_for(site: Site) -> None:
    async with source_of(site.url(login="u%40x:p%2Fw")) as source:
        await check(source)
    (request,) = site.requests
    assert request.fields["authorization"] == "Basic " + b64encode(b"u@x:p/w").decode()
    assert request.to == site.authority


async def test_a_header_goes_before_the_login_in_the_url(site: Site) -> None:
    headers = (("authorization", f"Bearer {TOKEN}"),)
    async with source_of(site.url(login=LOGIN), headers=headers) as source:
        await check(source)
    assert site.requests[0].fields["authorization"] == f"Bearer {TOKEN}"


@pytest.fixture
def _netrc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / ".netrc"
    file.write_text(
        "machine 127.0.0.1 login one password 1\nmachine 127.0.0.2 login two password 2"
    )
    file.chmod(0o600)
    monkeypatch.setenv("HOME", str(tmp_path))


@pytest.mark.usefixtures("_netrc")
async def test_netrc_has_a_login_for_each_host(site: Site) -> None:
    async with serving(CONTENT, host="127.0.0.2") as other:
        site.script = always(Reply(response(302, f"Location: {other.url()}")))
        async with source_of(site.url(), netrc=True) as source:
            await check(source)
            await check(source)
        expected = "Basic " + b64encode(b"two:2").decode()
        assert {request.fields["authorization"] for request in other.requests} == {expected}
    expected = "Basic " + b64encode(b"one:1").decode()
    assert {request.fields["authorization"] for request in site.requests} == {expected}


@pytest.mark.usefixtures("_netrc")
@pytest.mark.parametrize(("netrc", "login"), [(False, ""), (False, LOGIN), (True, LOGIN)])
async def test_netrc_is_not_used_unasked_nor_before_the_url(
    site: Site, netrc: bool, login: str
) -> None:
    async with source_of(site.url(login=login), netrc=netrc) as source:
        await check(source)
    assert site.requests[0].fields.get("authorization") == (BASIC if login else None)


async def test_netrc_that_cannot_be_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(UsageError, match=r"there is no ~/\.netrc"):
        HttpClient(ServerOptions(netrc=True))
    (tmp_path / ".netrc").write_text(f"machine host login {USER} pass {PASSWORD}")
    (tmp_path / ".netrc").chmod(0o600)
    with pytest.raises(UsageError, match=r"~/.netrc cannot be used") as caught:
        HttpClient(ServerOptions(netrc=True))
    assert PASSWORD not in str(caught.value)


# Proxies


@pytest.fixture
async def proxy() -> AsyncIterator[Proxy]:
    async with proxying() as running:
        yield running


async def test_a_proxy_forwards_requests(site: Site, proxy: Proxy) -> None:
    async with source_of(site.url(login=LOGIN), None, proxy=proxy.url()) as source:
        assert await source.open() == PINNED
        await check(source)
    assert [request.target for request in proxy.requests] == [site.url()] * 2
    assert len(site.requests) == 2
    assert all(request.fields["authorization"] == BASIC for request in site.requests)


async def test_a_proxy_opens_tunnels(
    tls_site: Site, proxy: Proxy, certificates: Certificates
) -> None:
    options = {"proxy": proxy.url(), "cacert": certificates.file}
    async with source_of(tls_site.url(login=LOGIN), **options) as source:
        await check(source)
        await check(source)
    (request,) = proxy.requests
    assert (request.method, request.target) == ("CONNECT", tls_site.authority)
    assert secrets_of(request) == {}  # what is for the server, the proxy does not see
    assert len(tls_site.requests) == 2


@pytest.mark.parametrize("name", ["http_proxy", "all_proxy", "ALL_PROXY"])
async def test_a_proxy_of_the_environment(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv(name, proxy.url())
    async with source_of(site.url()) as source:
        await check(source)
    assert len(proxy.requests) == 1


async def test_a_proxy_of_the_environment_for_https(
    tls_site: Site, proxy: Proxy, certificates: Certificates, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("https_proxy", proxy.url())
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    async with source_of(tls_site.url(), cacert=certificates.file) as source:
        await check(source)
    assert [request.method for request in proxy.requests] == ["CONNECT"]


@pytest.mark.parametrize("excepted", ["127.0.0.1", "*", "example.org, 127.0.0.1", "{authority}"])
async def test_hosts_that_need_no_proxy(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch, excepted: str
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url())
    monkeypatch.setenv("no_proxy", excepted.format(authority=site.authority))
    async with source_of(site.url()) as source:
        await check(source)
    assert proxy.requests == []


async def test_the_proxy_that_was_named_is_used_whatever_the_environment_says(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "*")
    async with source_of(site.url(), proxy=proxy.url()) as source:
        await check(source)
    assert len(proxy.requests) == 1


async def test_a_redirect_to_a_host_that_needs_no_proxy(
    site: Site, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("http_proxy", proxy.url())
    monkeypatch.setenv("no_proxy", "127.0.0.2")
    async with serving(CONTENT, host="127.0.0.2") as other:
        site.script = always(Reply(response(302, f"Location: {other.url()}")))
        async with source_of(site.url()) as source:
            await check(source)
            await check(source)
        assert len(other.requests) == 2
    assert [request.target for request in proxy.requests] == [site.url()]


async def test_a_login_at_the_proxy_is_for_the_proxy(site: Site, proxy: Proxy) -> None:
    async with source_of(site.url(), proxy=proxy.url(login=LOGIN)) as source:
        await check(source)
    assert proxy.requests[0].fields["proxy-authorization"] == BASIC
    assert secrets_of(site.requests[0]) == {}


@pytest.mark.parametrize(
    ("scheme", "kind", "says"),
    [
        ("http", AccessDenied, "status 407"),
        ("https", Unreachable, "the proxy on the way to 127.0.0.1 refuses: 407"),
    ],
)
async def test_a_proxy_that_refuses(
    proxy: Proxy, scheme: str, kind: type[LazyfsError], says: str
) -> None:
    proxy.refuse = response(407)
    url = f"{scheme}://{LOGIN}@127.0.0.1:9/image.raw?s={SIGNATURE}"
    async with source_of(url, proxy=proxy.url(login=f"x:{TOKEN}")) as source:
        said = await failure(source, kind)
    assert says in said
    assert not any(secret in said for secret in (PASSWORD, SIGNATURE, TOKEN))


async def test_a_proxy_that_is_not_there() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        proxy = f"http://{LOGIN}@127.0.0.1:{probe.getsockname()[1]}"
        async with source_of("http://host.test/image.raw", proxy=proxy) as source:
            said = await failure(source, Unreachable)
    assert "Connection refused" in said
    assert "proxy" in said  # nobody would look there
    assert PASSWORD not in said


@pytest.mark.parametrize("proxy", [f"{LOGIN}@127.0.0.1:3128", "ftp://127.0.0.1", "http://"])
async def test_what_is_no_proxy(proxy: str) -> None:
    with pytest.raises(UsageError, match="proxy") as caught:
        async with source_of("http://127.0.0.1:9/image.raw", proxy=proxy) as source:
            await source.open()
    assert PASSWORD not in str(caught.value)


# Answers that are judged


@pytest.mark.parametrize("status", [412, 416])
async def test_a_range_that_no_longer_exists(site: Site, status: int) -> None:
    site.script = first_time(Reply(response(status, "Content-Range: bytes */5")))
    async with source_of(site.url()) as source:
        await failure(source, ImageChanged)


async def test_another_version(site: Site) -> None:
    site.script = lambda request: Reply(site.right(request).raw.replace(b'"v1"', b'"v2"'))
    async with source_of(site.url()) as source:
        await failure(source, ImageChanged)


REPLIES: list[tuple[Reply, type[SourceError]]] = [
    (Reply(response(200, body=b"x" * 2000)), ImageChanged),
    (Reply(response(200, 'ETag: "v1"', body=b"x" * 2000)), NoRanges),
    (Reply(response(401)), AccessDenied),
    (Reply(response(403)), AccessDenied),
    (Reply(response(404, body=b"no such file")), NotFound),
    (Reply(response(302)), BadAnswer),
    (Reply(response(302, "Location: ftp://127.0.0.1/x")), BadAnswer),
    (Reply(response(302, f"Location: http://{LOGIN}@[bad/?s={SIGNATURE}")), BadAnswer),
    (Reply(response(412)), ImageChanged),
    (Reply(response(416)), ImageChanged),
    (Reply(response(429, "Retry-After: 7")), ServerBusy),
    (Reply(response(503)), ServerBusy),
    (Reply(response(206, body=b"x" * 1000)), BadAnswer),
    (Reply(part(CONTENT, 1, 1000)), BadAnswer),
    (Reply(part(CONTENT, 0, 999, "Content-Encoding: gzip")), BadAnswer),
    (Reply(part(CONTENT, 0, 999, "Content-Type: multipart/byteranges; boundary=x")), BadAnswer),
    (Reply(part(CONTENT, 0, 999, "no colon")), BadAnswer),
    (Reply(b"SSH-2.0-OpenSSH_9.2\r\n"), BadAnswer),
    (Reply(b"HTTP/1.1 206 " + b"x" * 100_000), BadAnswer),
    (Reply(part(CONTENT, 0, 999)[:-1], hang_up=True), Unreachable),
    (Reply(b"", hang_up=True), Unreachable),
    (Reply(chunked(CONTENT, 0, 998).replace(b"0-998", b"0-999")), Unreachable),
    (Reply(chunked(CONTENT, 0, 999)[:-20], hang_up=True), Unreachable),
]


@pytest.mark.parametrize(("reply", "kind"), REPLIES, ids=lambda value: repr(value)[:60])
async def test_every_error_names_the_image_once_and_nothing_secret(
    site: Site, reply: Reply, kind: type[SourceError]
) -> None:
    """And the next request is none the worse for it."""
    headers = (("Cookie", f"c={TOKEN}"), ("X-Token", TOKEN))
    url = site.url(f"/image.raw?signature={SIGNATURE}", login=LOGIN)
    site.script = always(reply)
    async with source_of(url, headers=headers) as source:
        said = await failure(source, kind)
        assert said.count(site.url("/image.raw?signature=...")) == 1
        assert not any(secret in said for secret in (USER, PASSWORD, TOKEN, SIGNATURE))
        assert len(said) < 300
        site.script = lambda _: None
        await check(source)


async def test_a_source_that_has_not_been_opened_has_no_identity() -> None:
    async with source_of("http://127.0.0.1:9/image.raw", None) as source:
        with pytest.raises(InternalError, match="has not been opened"):
            _ = source.identity


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """What was forgotten complains when it is collected: in its own test, not in another."""
    yield
    gc.collect()


# What is said of a server


class Deaf:
    """A stream to a server that takes nothing."""

    async def send_all(self, data: bytes) -> None:
        await trio.sleep_forever()

    async def aclose(self) -> None:
        """Nothing is open."""


async def test_a_server_that_takes_no_requests(autojump_clock: MockClock) -> None:
    origin = FastOrigin(address.origin("http://host/a.iso"), None, STALL)
    with socket.socket() as idle:
        connection = fastpath.Connection(Deaf(), idle.fileno())  # type: ignore[arg-type]
        with pytest.raises(Unreachable) as caught:
            await origin._send(connection, b"GET")
    assert str(caught.value) == "host takes no requests; check the network and the URL"


async def test_a_server_that_never_answers_proper(site: Site) -> None:
    site.script = first_time(Reply(b"HTTP/1.1 102 Processing\r\n\r\n" * 1000))
    async with source_of(site.url()) as source:
        said = await failure(source, BadAnswer)
        assert said.endswith("the server never comes to its answer; tell whoever runs the server")


def test_what_else_may_break_has_words_too() -> None:
    said = _translated(httpx.TransportError("?"), "host")
    assert str(said) == "cannot talk to host; check the network and the URL"

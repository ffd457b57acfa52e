"""Requests that are sent at once on one connection, and what becomes of them when it fails."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from fakes import noise, streams_of
from hypothesis import given, settings
from hypothesis import strategies as st
from sites import Reply, Request, Site, chunked, response, serving

from lazyfs.core.device import Identity
from lazyfs.core.errors import ImageChanged, NotFound, TransientError
from lazyfs.core.options import ServerOptions
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient

CONTENT = noise(1 << 20)
RANGES = [(0, 1000), (500_000, 4096), (7, 65_536), (len(CONTENT) - 10, 10)]


@asynccontextmanager
async def source_at(site: Site, *, first: int = 1, **options: Any) -> AsyncIterator[HttpSource]:
    client = HttpClient(ServerOptions(**options))
    try:
        yield HttpSource(client, site.url(), Identity(len(CONTENT), '"v1"'), first=first)
    finally:
        await client.aclose()


async def outcomes(source: HttpSource, ranges: list[tuple[int, int]]) -> list[object]:
    """For each range, True for the right bytes, or the class of what was raised."""
    found: list[object] = []
    with trio.fail_after(30):
        async with streams_of(source, ranges) as streams:
            for (offset, length), stream in zip(ranges, streams, strict=True):
                try:
                    async with stream as pieces:
                        got = b"".join([bytes(piece) async for piece in pieces])
                    found.append(got == CONTENT[offset : offset + length])
                except Exception as error:
                    found.append(type(error))
    return found


async def test_they_share_one_connection_and_one_round_trip() -> None:
    async with serving(CONTENT) as site, source_at(site) as source:
        assert await outcomes(source, RANGES) == [True] * 4
        assert site.accepted == 1
        assert [request.span[0] for request in site.requests] == [o for o, _ in RANGES]
        assert source.link.round_trip == 0  # a fresh connection says nothing of it
        assert await outcomes(source, RANGES) == [True] * 4
        assert site.accepted == 1
        assert source.link.round_trip > 0


async def test_an_image_that_is_too_short_for_some_servers_is_opened_by_its_first_byte() -> None:
    """They answer 416 to a range that goes on behind the end (which RFC 9110 does not say)."""
    async with serving(CONTENT) as site, source_at(site, first=4 << 20) as source:
        site.script = lambda request: (
            Reply(response(416, "Content-Range: bytes */1048576"))
            if request.span[1] >= len(CONTENT)
            else None
        )
        assert (await source.open()).size == len(CONTENT)
        assert [request.span for request in site.requests] == [(0, (4 << 20) - 1), (0, 0)]
        assert await outcomes(source, RANGES) == [True] * 4


async def test_all_are_sent_before_any_is_answered() -> None:
    answered = trio.Event()
    async with serving(CONTENT) as site, source_at(site) as source:
        site.script = lambda request: (
            Reply(b"", wait=answered, later=site.right(request).raw)
            if request.span[0] == 0
            else None
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(outcomes, source, RANGES)
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert len(site.requests) == 1  # the server takes one at a time; all have been sent
            answered.set()
        assert len(site.requests) == 4
        assert site.accepted == 1


@pytest.mark.parametrize("at", range(4))
async def test_a_connection_that_ends_in_between(at: int) -> None:
    """The answer that broke fails; those behind it are asked for by themselves."""
    broken = RANGES[at][0]

    async with serving(CONTENT) as site, source_at(site) as source:

        def script(request: Request) -> Reply | None:
            if request.span[0] != broken or len(site.requests) > at + 1:
                return None
            return Reply(site.right(request).raw[:-5], hang_up=True)

        site.script = script
        found = await outcomes(source, RANGES)
    assert issubclass(found.pop(at), TransientError)  # type: ignore[arg-type]
    assert found == [True] * 3


async def test_a_server_that_closes_after_each_answer() -> None:
    async with serving(CONTENT) as site, source_at(site) as source:
        site.script = lambda request: Reply(
            site.right(request, "Connection: close").raw, hang_up=True
        )
        assert await outcomes(source, RANGES) == [True] * 4
    assert site.accepted == 4


async def test_an_answer_that_only_the_careful_way_can_tell() -> None:
    async with serving(CONTENT) as site, source_at(site) as source:
        site.script = lambda request: Reply(chunked(CONTENT, *request.span))
        assert await outcomes(source, RANGES) == [True] * 4


async def test_failures_are_judged_one_by_one() -> None:
    async with serving(CONTENT) as site, source_at(site) as source:

        def script(request: Request) -> Reply | None:
            if request.span[0] == RANGES[1][0]:
                return Reply(response(404, body=b"gone"))
            if request.span[0] == RANGES[2][0]:
                return Reply(site.right(request).raw.replace(b'"v1"', b'"v2"'))
            return None

        site.script = script
        assert await outcomes(source, RANGES) == [True, NotFound, ImageChanged, True]


async def test_redirected_requests_go_where_they_belong() -> None:
    """The answers behind the first redirect still come from where it came from."""
    async with serving(CONTENT) as here, serving(CONTENT, host="127.0.0.2") as there:
        here.script = lambda _: Reply(response(302, f"Location: {there.url('/signed?sig=1')}"))
        async with source_at(here) as source:
            assert await outcomes(source, RANGES) == [True] * 4
            assert await outcomes(source, RANGES) == [True] * 4
        assert {request.to for request in here.requests} == {here.authority}
        assert {request.target for request in here.requests} == {"/image.raw"}
        assert {request.to for request in there.requests} == {there.authority}


async def test_one_that_is_skipped_brings_no_wrong_bytes() -> None:
    async with serving(CONTENT) as site, source_at(site) as source:
        async with streams_of(source, RANGES) as (first, _, third, _):
            async with first as pieces:
                assert b"".join([bytes(p) async for p in pieces]) == CONTENT[:1000]
            async with third as pieces:
                assert b"".join([bytes(p) async for p in pieces]) == CONTENT[7 : 7 + 65_536]
        assert await outcomes(source, RANGES) == [True] * 4


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 900_000), st.integers(1, 100_000)), min_size=1, max_size=6),
    st.sets(st.integers(0, 12)),
)
async def test_whatever_breaks_no_wrong_bytes_come(
    ranges: list[tuple[int, int]], breaking: set[int]
) -> None:
    async with serving(CONTENT) as site, source_at(site) as source:

        def script(request: Request) -> Reply | None:
            if len(site.requests) not in breaking:
                return None
            raw = site.right(request).raw
            return Reply(raw[: len(raw) // 2], hang_up=True)

        site.script = script
        for found in await outcomes(source, ranges):
            assert found is True or issubclass(found, TransientError)  # type: ignore[arg-type]
        site.script = lambda _: None
        assert await outcomes(source, ranges) == [True] * len(ranges)

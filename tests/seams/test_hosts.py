"""What images on one host share: its slots, its link, and its health."""

from collections.abc import Callable

import pytest
import trio
from fakes import FakeSource, noise, running
from sites import Reply, response, serving
from trio.testing import MockClock

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import ServerBusy, Unreachable
from lazyfs.core.options import ServerOptions
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient
from lazyfs.sources.slots import Host

Announce = Callable[..., None]

CONTENT = noise(1 << 18)
BLOCK = 4096


async def taken_after(host: Host, priority: Priority = Priority.DEMAND) -> float:
    """Seconds until a slot could be had."""
    began = trio.current_time()
    (await host.slot(priority)).release()
    return trio.current_time() - began


async def test_host_that_failed_twice_is_not_asked_for_a_while(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: .*no; .*retrying")
    host, other = Host("a", 2, 0), Host("b", 2, 0)
    host.health.failed(Unreachable("no"))
    assert await taken_after(host) == 0  # most first failures are healed by a fresh connection
    host.health.failed(Unreachable("no"))
    assert await taken_after(other) == 0
    assert 0 < await taken_after(host) <= 0.1


async def test_host_is_asked_as_soon_as_it_has_answered(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    """It has recovered for one image: the others need not wait for the time that was set."""
    expected_log("WARNING: .*busy; .*retrying")
    host = Host("a", 2, 0)
    host.health.failed(ServerBusy("busy", retry_after=200))
    waited = 0.0

    async def wait() -> None:
        nonlocal waited
        waited = await taken_after(host)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(5)
        assert host.health.trouble is not None
        host.health.succeeded()
    assert waited == pytest.approx(5)
    assert host.health.trouble is None


async def test_host_is_given_no_slot_if_it_fails_while_one_is_waited_for(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: .*busy; .*retrying")
    host = Host("a", 1, 0)
    held = await host.slot(Priority.DEMAND)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(taken_after, host)
        await trio.sleep(1)
        host.health.failed(ServerBusy("busy", retry_after=30))
        held.release()
        began = trio.current_time()
    assert trio.current_time() - began == pytest.approx(30)


async def test_host_in_trouble_holds_back_its_images_and_no_others(
    autojump_clock: MockClock, expected_log: Announce
) -> None:
    expected_log("WARNING: .*down; .*retrying")
    bad, beside, good = (FakeSource(CONTENT) for _ in range(3))
    beside.host = bad.host
    bad.fail_at(0, *[Unreachable("down") for _ in range(8)])
    caches = [
        BlockCache(name, source, MemoryStore(len(CONTENT), BLOCK, 1 << 20), 0)
        for name, source in (("bad", bad), ("beside", beside), ("good", good))
    ]
    async with running(caches[0]), running(caches[1]), running(caches[2]):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(caches[0].read, 0, 10)
            await trio.sleep(1.2)
            began = trio.current_time()
            assert await caches[2].read(0, 10) == CONTENT[:10]
            assert trio.current_time() == began
            assert caches[1].state().trouble == "down"
            assert caches[2].state().trouble == ""
            assert await caches[1].read(9000, 10) == CONTENT[9000:9010]
            assert trio.current_time() > began
        assert [cache.state().trouble for cache in caches] == [""] * 3


async def test_slot_is_exchanged_where_a_redirect_leads() -> None:
    """The request to the other host takes one of that host's slots, and none of the first."""
    async with serving(CONTENT) as here, serving(CONTENT, host="127.0.0.2") as there:
        here.script = lambda _: Reply(response(302, f"Location: {there.url('/there')}"))
        client = HttpClient(ServerOptions(connections=1))
        try:
            source = HttpSource(client, here.url(), Identity(len(CONTENT), '"v1"'))
            one, other = client.host("127.0.0.1"), client.host("127.0.0.2")
            slot = await source.slot(Priority.DEMAND)
            assert (one.limiter.free, other.limiter.free) == (0, 1)
            (stream,) = slot.streams([(0, 100)])
            with trio.fail_after(10):
                async with stream as pieces:
                    assert (one.limiter.free, other.limiter.free) == (1, 0)
                    assert slot.link is other.link
                    assert b"".join([bytes(piece) async for piece in pieces]) == CONTENT[:100]
            slot.failed(Unreachable("no"))
            assert one.health.trouble is None
            assert other.health.trouble is not None
            slot.release()
            slot.release()
            assert (one.limiter.free, other.limiter.free) == (1, 1)
        finally:
            await client.aclose()

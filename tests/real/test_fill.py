"""``--fill``: the rest of an image comes by itself, and then nobody is needed any more."""

import itertools
import json
import os
import re
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lazyfs.sources.http import FIRST_BYTES

from .images import MIB, Images
from .mounts import Lab, Mounted, adopted, read, same_content
from .servers import Answer, Nginx, Request, Scripted
from .waiting import eventually

BLOCK = 32 << 10
FILL_LIMIT = 120.0  # seconds


@pytest.fixture
def own(images: Images) -> Iterator[Nginx]:
    """A server of the test's own, which it may stop."""
    with Nginx(images.root) as server:
        yield server


def until_complete(mounted: Mounted) -> None:
    eventually(lambda: "is complete" in mounted.messages(), "it is complete", FILL_LIMIT)


def statistics(mounted: Mounted) -> dict[str, Any]:
    """What the daemon says that it has done."""
    found: dict[str, Any] = json.loads(os.getxattr(mounted.image, "user.lazyfs.statistics"))
    return found


def connections_to(port: int) -> int:
    """Open TCP connections of this machine to a port on loopback (proc(5), /proc/net/tcp)."""
    lines = Path("/proc/net/tcp").read_text().splitlines()[1:]
    established = "01"
    pairs = [line.split()[2:4] for line in lines]  # the remote address, and the state
    return sum(
        int(remote.rpartition(":")[2], 16) == port and state == established
        for remote, state in pairs
    )


def spans_after(scripted: Scripted, count: int) -> list[tuple[int, int]]:
    """First and last byte of each request from number ``count`` on, but the opening one."""
    spans = [request.span for request in scripted.requests[count:]]
    return sorted(span for span in spans if span is not None and span != (0, 0))


def bytes_of(spans: list[tuple[int, int]]) -> int:
    return sum(last - first + 1 for first, last in spans)


def test_it_completes_and_the_server_may_vanish(lab: Lab, images: Images, own: Nginx) -> None:
    image = images.random()
    with lab.mounted("--fill", own.url(image.name)) as mounted:
        until_complete(mounted)
        eventually(lambda: connections_to(own.port) == 0, "no connection is open", 5)
        assert mounted.cached() == image.stat().st_size
        own.stop()
        assert same_content(mounted.image, image)
        assert connections_to(own.port) == 0
    assert "is complete" in mounted.messages()


def test_each_byte_travels_once(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
        spans = spans_after(scripted, 0)
        assert [first for first, _ in spans] == [0, *(last + 1 for _, last in spans[:-1])]
        assert bytes_of(spans) == len(content)
        asked = len(scripted.requests)
        assert mounted.image.read_bytes() == content
        assert len(scripted.requests) == asked


def test_without_it_nothing_comes_by_itself(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        read(mounted.image, 0, 1)
        read(mounted.image, 2 * MIB, 1)
        assert mounted.cached() == FIRST_BYTES + BLOCK
    assert "is complete" not in mounted.messages()


def test_readers_while_it_fills(lab: Lab, images: Images, own: Nginx) -> None:
    image = images.random()
    own.stop()
    own.rate = 8 * MIB
    own.start()
    with lab.mounted("--fill", own.url(image.name)) as mounted:
        original = image.read_bytes()
        for offset in range(len(original) - 1, 0, -7 * MIB):
            assert read(mounted.image, offset, 5000) == original[offset : offset + 5000]
        until_complete(mounted)
        assert same_content(mounted.image, image)


def test_it_goes_on_where_a_killed_daemon_was(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """What was under way is lost, and nothing else."""
    scripted.files["/image.raw"].content = large = content * 8
    url = scripted.url("image.raw")
    with lab.mounted("--fill", "--rate", "6M/s", url, troubled=True) as mounted:
        eventually(lambda: mounted.cached() > 12 * MIB, "a part is here")
        before = mounted.cached()
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
    asked = len(scripted.requests)
    with lab.mounted("--fill", url) as mounted:
        until_complete(mounted)
        assert mounted.image.read_bytes() == large
    spans = spans_after(scripted, asked)
    under_way = 3 * MIB
    assert len(large) - before - under_way <= bytes_of(spans) <= len(large) - before + under_way
    assert spans[-1][1] == len(large) - 1
    assert are_apart(spans)


def are_apart(spans: list[tuple[int, int]]) -> bool:
    """Whether no byte was asked for twice."""
    return all(first > last for (_, last), (first, _) in itertools.pairwise(spans))


def test_a_complete_image_is_known_as_such_at_the_next_mount(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
    asked = len(scripted.requests)
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
        eventually(lambda: connections_to(scripted.port) == 0, "no connection is open", 5)
        assert mounted.image.read_bytes() == content
    assert spans_after(scripted, asked) == []


def test_a_complete_image_without_its_server(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
    scripted.stop()
    at = lab.mountpoint()
    log = lab.directory / "offline.log"
    words = ["--fill", "--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    done = lab.start(*words)
    assert done.returncode == 0
    assert "serving what is cached" in done.stderr
    with adopted(at, lab.cache, log) as mounted:
        until_complete(mounted)
        assert mounted.image.read_bytes() == content


def test_an_outage_only_delays_it(lab: Lab, scripted: Scripted, content: bytes) -> None:
    scripted.files["/image.raw"].content = large = content * 4
    url = scripted.url("image.raw")
    with lab.mounted("--fill", "--rate", "6M/s", url, troubled=True) as mounted:
        eventually(lambda: mounted.cached() > 4 * MIB, "a part is here")
        scripted.stop()
        eventually(lambda: statistics(mounted)["failures"] > 0, "the fill has failed")
        scripted.start()
        until_complete(mounted)
        assert mounted.image.read_bytes() == large


# Rate


def test_the_rate_is_kept(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """By the times of the requests: never ahead of the rate by more than one of them."""
    times: list[float] = []

    def clocked(request: Request) -> Answer | None:
        if not request.opens:
            times.append(time.monotonic())
        return None

    scripted.behaviour = clocked
    rate = MIB
    with lab.mounted("--fill", "--rate", "1M/s", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
    lengths = [
        request.span[1] - request.span[0] + 1
        for request in scripted.requests
        if request.span and not request.opens
    ]
    assert max(lengths) <= rate
    sent = 0
    for at, length in zip(times, lengths, strict=True):
        assert sent <= rate * (at - times[0]) * 1.05 + 2 * max(lengths)
        sent += length
    assert times[-1] - times[0] >= 0.7 * (sum(lengths) - lengths[-1]) / rate
    assert sent == len(content) - FIRST_BYTES


def test_the_rate_does_not_slow_a_reader(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted("--fill", "--rate", "4K/s", scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content  # in 17 minutes, at that rate


def test_a_rate_needs_a_fill(lab: Lab, scripted: Scripted) -> None:
    done = lab.start("--rate", "1M/s", scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 2
    assert "--fill" in done.stderr


def test_a_fill_needs_a_cache(lab: Lab, scripted: Scripted) -> None:
    done = lab.start("--fill", "--no-cache", scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 2
    assert "--no-cache" in done.stderr


# Damage


@pytest.mark.parametrize("options", [["--fill"], []])
def test_damage_of_an_earlier_mount_is_found_and_healed(
    lab: Lab, scripted: Scripted, content: bytes, options: list[str]
) -> None:
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
    (data,) = lab.cache.glob("*/data")
    with open(data, "r+b") as file:
        for block in (5, 77):
            file.seek(block * BLOCK + 100)
            file.write(b"rot")
    asked = len(scripted.requests)
    with lab.mounted(*options, scripted.url("image.raw"), troubled=True) as mounted:
        until_complete(mounted)
        assert statistics(mounted)["damaged"] == 2
        assert data.read_bytes() == content
        log = mounted.messages()
    assert spans_after(scripted, asked) == [
        (block * BLOCK, (block + 1) * BLOCK - 1) for block in (5, 77)
    ]
    assert re.search(r"damaged[\s\S]*is complete", log), "first damaged, then complete"


# Statistics


def test_the_statistics_add_up(lab: Lab, scripted: Scripted, content: bytes) -> None:
    scripted.files["/image.raw"].content = content[: 2 * MIB]
    with lab.mounted("--readahead", "0", scripted.url("image.raw")) as mounted:
        for block in (3, 40, 3):
            read(mounted.image, block * BLOCK, 4096)
        now = statistics(mounted)
        assert (now["size"], now["cached"]) == (2 * MIB, FIRST_BYTES + 2 * BLOCK)
        assert now["hits"] + now["misses"] >= 2
        assert now["misses"] == 2
        assert now["wanted"] >= 2 * 4096
        assert (now["fetched"], now["requests"]) == (FIRST_BYTES + 2 * BLOCK, 3)
        assert (now["prefetched"], now["unused"]) == (FIRST_BYTES, FIRST_BYTES)
        assert (now["under_way"], now["failures"]) == (0, 0)
    with lab.mounted("--fill", scripted.url("image.raw")) as mounted:
        until_complete(mounted)
        eventually(lambda: statistics(mounted)["under_way"] == 0, "all requests have ended")
        now = statistics(mounted)
        rest = 2 * MIB - 2 * BLOCK - FIRST_BYTES
        assert (now["cached"], now["fetched"]) == (2 * MIB, rest)
        assert (now["prefetched"], now["unused"], now["wanted"]) == (rest, rest, 0)
        assert (now["hits"], now["misses"]) == (0, 0)
        assert mounted.image.read_bytes() == content[: 2 * MIB]
        after = statistics(mounted)
        assert after["unused"] == 0
        assert after["wanted"] == 2 * MIB
        assert (after["hits"] > 0, after["misses"]) == (True, 0)
        assert (after["fetched"], after["requests"]) == (now["fetched"], now["requests"])

"""Servers that stall, vanish, lie, or change the image while it is mounted."""

import contextlib
import errno
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from lazyfs.sources.http import FIRST_BYTES

from .images import MIB, Images
from .mounts import (
    LAZYFS,
    Lab,
    ReadFailed,
    environment,
    is_mounted,
    read,
    run_well,
    same_content,
)
from .servers import Answer, Nginx, Request, Scripted
from .waiting import eventually

BLOCK = 64 << 10


def beyond_the_first_byte(
    answer: Callable[[Request], Answer],
) -> Callable[[Request], Answer | None]:
    """A behaviour: the opening goes well, and then ``answer`` decides."""
    return lambda request: None if request.opens else answer(request)


def fails_with_eio(lab: Lab, scripted: Scripted, *options: str) -> str:
    """Mount and read; returns the log."""
    url = scripted.url("image.raw")
    with lab.mounted("--timeout", "2", *options, url, troubled=True) as mounted:
        with pytest.raises(ReadFailed) as failure:
            read(mounted.image, MIB, 4096)
        assert failure.value.errno == errno.EIO
        assert mounted.cached() == FIRST_BYTES
        assert not mounted.has_ended(), "the mount survives"
    return mounted.messages()


# Lies: never wrong data, always EIO


@pytest.fixture(params=["range", "total", "none", "gzip", "multipart", "long", "whole"])
def lie(request: pytest.FixtureRequest, scripted: Scripted) -> str:
    """A server that lies about, or in, every answer but the first; and what the log says."""

    def right(request: Request) -> Answer:
        return scripted.right_answer(request)

    def with_fields(**fields: str) -> Callable[[Request], Answer]:
        def answer(request: Request) -> Answer:
            good = right(request)
            good.headers |= {name.replace("_", "-"): value for name, value in fields.items()}
            return good

        return answer

    def other_range(request: Request) -> Answer:
        assert request.span
        first, last = request.span
        moved = Request(request.path, {"range": f"bytes={first + 1}-{last + 1}"})
        return right(moved)

    def without_range(request: Request) -> Answer:
        good = right(request)
        del good.headers["Content-Range"]
        return good

    def too_long(request: Request) -> Answer:
        good = right(request)
        good.body += b"and more"
        return good

    def whole(request: Request) -> Answer:
        return right(Request(request.path, {}))

    lies: dict[str, tuple[Callable[[Request], Answer], str]] = {
        "range": (other_range, "asked for bytes 1048576 to"),
        "total": (with_fields(Content_Range="bytes 1048576-1114111/9999999"), "has changed"),
        "none": (without_range, "does not say which part"),
        "gzip": (with_fields(Content_Encoding="gzip"), "content coding 'gzip'"),
        "multipart": (with_fields(Content_Type="multipart/byteranges; boundary=x"), "multipart"),
        "long": (too_long, "bytes for a range of"),
        "whole": (whole, "does not support range requests"),
    }
    answer, said = lies[request.param]
    scripted.behaviour = beyond_the_first_byte(answer)
    return said


def test_lies_are_not_believed(lab: Lab, scripted: Scripted, lie: str) -> None:
    assert lie in fails_with_eio(lab, scripted)


def without_length(answer: Answer) -> Answer:
    """The same answer, with a body that ends where the connection does."""
    answer.headers["Content-Length"] = ""
    answer.hang_up = True
    return answer


def test_bodies_of_unknown_length(lab: Lab, scripted: Scripted, content: bytes) -> None:
    scripted.behaviour = lambda request: without_length(scripted.right_answer(request))
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert read(mounted.image, 0, len(content)) == content


def test_a_body_of_unknown_length_that_is_too_long(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    """What was asked for may be used; of the excess not a byte."""

    def too_much(request: Request) -> Answer:
        answer = without_length(scripted.right_answer(request))
        answer.body += b"and more" * 100
        return answer

    scripted.behaviour = beyond_the_first_byte(too_much)
    with lab.mounted("--timeout", "2", scripted.url("image.raw"), troubled=True) as mounted:
        with contextlib.suppress(ReadFailed):
            assert read(mounted.image, MIB, MIB) == content[MIB : 2 * MIB]
        assert "more than the range asked for" in mounted.messages()


def test_a_body_that_is_too_short_is_completed(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    """Each connection breaks after 100,000 bytes; with patience all of it comes."""

    def cut(request: Request) -> Answer:
        good = scripted.right_answer(request)
        if len(good.body) > 100_000:
            good.headers["Content-Length"] = str(len(good.body))
            good.body = good.body[:100_000]
            good.hang_up = True
        return good

    scripted.behaviour = beyond_the_first_byte(cut)
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert read(mounted.image, 0, len(content)) == content


def test_refusals_in_the_middle(lab: Lab, scripted: Scripted) -> None:
    scripted.behaviour = beyond_the_first_byte(lambda _: Answer(403))
    log = fails_with_eio(lab, scripted)
    assert "access is forbidden" in log


def test_retry_after_is_heeded(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """The server is asked again, but not before the time that it named."""
    refused = threading.Event()
    times: list[float] = []

    def busy_once(request: Request) -> Answer:
        times.append(time.monotonic())
        if not refused.is_set():
            refused.set()
            return Answer(429, {"Retry-After": "1"})
        return scripted.right_answer(request)

    scripted.behaviour = beyond_the_first_byte(busy_once)
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert read(mounted.image, MIB, 4096) == content[MIB : MIB + 4096]
    assert times[1] - times[0] >= 0.95


# Silence and outages


@pytest.fixture
def silent(scripted: Scripted) -> Iterator[threading.Event]:
    """After the first byte the server says nothing until this event is set."""
    release = threading.Event()

    def wait(request: Request) -> Answer | None:
        if not request.opens:
            release.wait(120)
        return None

    scripted.behaviour = wait
    yield release
    release.set()


def test_a_stalled_read_ends_in_time(lab: Lab, scripted: Scripted, silent: threading.Event) -> None:
    """Far below the default of 60 seconds."""
    with lab.mounted("--timeout", "2", scripted.url("image.raw"), troubled=True) as mounted:
        with pytest.raises(ReadFailed) as failure:
            read(mounted.image, MIB, 4096, limit=30)
        assert failure.value.errno == errno.EIO
        silent.set()
        eventually(lambda: len(read(mounted.image, MIB, 4096)) == 4096, "it reads again")


def test_a_server_that_stalls_in_a_body(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """What came before the silence is used; the rest is asked for again."""
    stalled = threading.Event()

    def stall_once(request: Request) -> Answer:
        good = scripted.right_answer(request)
        if not stalled.is_set() and len(good.body) > 2 * BLOCK:
            stalled.set()
            good.headers["Content-Length"] = str(len(good.body))
            good.body = good.body[: BLOCK + 10]  # and the connection stays open
        return good

    scripted.behaviour = beyond_the_first_byte(stall_once)
    with lab.mounted("--timeout", "4", scripted.url("image.raw"), troubled=True) as mounted:
        eventually(lambda: _can_read(mounted.image, content), "all of it is read", 60)
        assert stalled.is_set()


def _can_read(path: Path, content: bytes) -> bool:
    """Whether the image can be read to its end; what can be read must be right."""
    try:
        found = read(path, 0, len(content))
    except ReadFailed:
        return False
    assert found == content
    return True


def test_an_outage_in_the_middle_of_a_read_is_sat_out(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    """The server crashes while a reader is at work, and comes back."""
    reached, gone = threading.Event(), threading.Event()

    def wait(request: Request) -> Answer | None:
        if request.span and request.span[1] >= MIB:
            reached.set()
            gone.wait(60)
        return None

    scripted.behaviour = wait
    url = scripted.url("image.raw")
    with lab.mounted(url, troubled=True) as mounted, ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read, mounted.image, 0, len(content))
        assert reached.wait(30)
        scripted.stop()
        gone.set()
        eventually(lambda: "retrying" in mounted.messages(), "the daemon notices")
        assert not reading.done()
        scripted.start()
        assert reading.result(60) == content
        assert "data are coming in again" in mounted.messages()


def test_with_no_timeout_a_server_that_is_not_there_yet_is_waited_for(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    at, said = lab.mountpoint(), lab.directory / "said"
    url = scripted.url("image.raw")
    scripted.stop()
    with said.open("w") as stderr:
        command = [*LAZYFS, "-f", "--timeout", "0", "--cache-dir", lab.cache, url, at]
        daemon = subprocess.Popen(command, env=environment(lab.home), stderr=stderr)
    try:
        eventually(lambda: "asking again until it answers" in said.read_text(), "it says so")
        assert daemon.poll() is None
        assert not is_mounted(at)
        scripted.start()
        eventually(lambda: is_mounted(at) and any(at.iterdir()), "it is mounted")
        assert read(at / "image.raw", 0, len(content)) == content
        run_well(["fusermount3", "-u", at])
        assert daemon.wait(20) == 0
        assert said.read_text().count("asking again") == 1
        assert "the server answers" in said.read_text()
    finally:
        daemon.kill()
        daemon.wait(20)


def test_a_restart_of_nginx_in_the_middle_of_a_read(lab: Lab, images: Images) -> None:
    image = images.random()
    server = Nginx(images.root)
    server.rate = 900_000
    with (
        server,
        lab.mounted(server.url(image.name), troubled=True) as mounted,
        ThreadPoolExecutor(1) as pool,
    ):
        equal = pool.submit(same_content, mounted.image, image)
        eventually(lambda: mounted.cached() > 8 * MIB, "8 MiB are cached")
        server.stop()
        eventually(lambda: "retrying" in mounted.messages(), "the daemon notices")
        server.rate = 0
        server.start()
        assert equal.result(120)


# Changes of the image


def test_a_change_while_mounted(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """What is cached stays readable, the rest is EIO: two versions never mix."""
    served = scripted.files["/image.raw"]
    url = scripted.url("image.raw")
    with lab.mounted("--block-size", "64K", url, troubled=True) as mounted:
        assert read(mounted.image, 0, BLOCK) == content[:BLOCK]
        served.content, served.etag = content[::-1], '"v2"'
        for offset in (MIB, 2 * MIB, 3 * MIB):
            with pytest.raises(ReadFailed) as failure:
                read(mounted.image, offset, 4096)
            assert failure.value.errno == errno.EIO
        assert read(mounted.image, 0, BLOCK) == content[:BLOCK]
        assert mounted.cached() == BLOCK
        said = [line for line in mounted.complaints() if "has changed on the server" in line]
        assert len(said) == 1
    with lab.mounted(url, troubled=True) as mounted:
        assert mounted.cached() == 0
        assert read(mounted.image, 0, len(content)) == content[::-1]


CHANGES = {
    "entity tag": lambda served: setattr(served, "etag", '"v2"'),
    "date, with no entity tag": lambda served: setattr(
        served, "last_modified", "Tue, 07 Jan 2025 10:00:00 GMT"
    ),
    "size": lambda served: setattr(served, "content", served.content + b"more"),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_kind_of_change_is_seen(
    lab: Lab, scripted: Scripted, content: bytes, what: str
) -> None:
    served = scripted.files["/image.raw"]
    if what != "entity tag":
        served.etag = None
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        read(mounted.image, 0, 4096)
        CHANGES[what](served)
        with pytest.raises(ReadFailed):
            read(mounted.image, MIB, 4096)
        assert "has changed on the server" in mounted.messages()


def test_a_change_between_two_mounts(lab: Lab, scripted: Scripted, content: bytes) -> None:
    served = scripted.files["/image.raw"]
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    served.content, served.etag = content[::-1], '"v2"'
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.cached() == 0
        assert mounted.image.read_bytes() == content[::-1]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_validators_nothing_is_kept(
    lab: Lab, scripted: Scripted, content: bytes, etag: str | None
) -> None:
    served = scripted.files["/image.raw"]
    served.etag = etag
    served.last_modified = None
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content
    served.content = content[::-1]
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content[::-1]


# Redirects


@pytest.mark.parametrize("status", [403, 404, 410])
def test_a_redirect_that_expires_is_resolved_again(
    lab: Lab, scripted: Scripted, content: bytes, status: int
) -> None:
    """As signed links do: each is good for five requests."""
    served = scripted.files["/image.raw"]
    issued = [0]
    used = [0]
    lock = threading.Lock()

    def behaviour(request: Request) -> Answer | None:
        with lock:
            if request.path == "/image.raw":
                issued[0] += 1
                used[0] = 0
                return Answer(302, {"Location": f"/signed?ticket={issued[0]}"})
            used[0] += 1
            if request.path != f"/signed?ticket={issued[0]}" or used[0] > 5:
                return Answer(status)
        scripted.files[request.path] = served
        return None

    scripted.behaviour = behaviour
    with lab.mounted("--connections", "1", scripted.url("image.raw")) as mounted:
        for offset in range(0, len(content), 4 * BLOCK):
            assert read(mounted.image, offset, 4096) == content[offset : offset + 4096]
    assert 1 < issued[0] < len(scripted.requests) / 3


def test_a_redirect_whose_new_target_is_another_image(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    """Also behind a redirect, two versions never mix."""
    scripted.files["/one"] = scripted.files["/image.raw"]
    where = ["/one"]
    scripted.behaviour = lambda request: (
        Answer(302, {"Location": where[0]}) if request.path == "/image.raw" else None
    )
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert read(mounted.image, 0, 4096) == content[:4096]
        del scripted.files["/image.raw"], scripted.files["/one"]
        where[0] = "/two"
        scripted.files["/two"] = Scripted(two=content[::-1]).files["/two"]
        scripted.files["/two"].etag = '"other"'
        with pytest.raises(ReadFailed):
            read(mounted.image, MIB, 4096)
        assert "has changed on the server" in mounted.messages()

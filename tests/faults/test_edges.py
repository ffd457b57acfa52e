"""Questions at the edge: the cache is deleted, the clock set back, the format an old one."""

import ast
import json
import mmap
import os
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.images import MIB
from real.mounts import IS_ROOT, Lab, environment, loop_device, need_loop, read, run_well
from real.waiting import eventually

import lazyfs

from .server import FaultServer, Stall, Status

MARGIN = 1.5  # seconds by which a busy machine may be late
CONTENT = random.Random(9).randbytes(4 * MIB)


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with FaultServer(**{"image.raw": CONTENT}) as server:
        yield server


# Deadlines


@pytest.mark.parametrize(("flags", "times"), [(os.O_DIRECT, 1), (0, 2)])
def test_a_stalled_read_ends_by_its_deadline_also_where_the_kernel_asks_twice(
    lab: Lab, server: FaultServer, flags: int, times: int
) -> None:
    """When reading into its page cache has failed, it asks once more for the page itself."""
    with lab.mounted("--timeout", "2", server.url("image.raw"), troubled=True) as mounted:
        server.script = lambda _: Stall()
        fd = os.open(mounted.image, os.O_RDONLY | flags)
        try:
            began = time.monotonic()
            with pytest.raises(OSError, match="Input/output error"):
                os.preadv(fd, [mmap.mmap(-1, 4096)], 2 * MIB)
            assert time.monotonic() - began < 2 * times + MARGIN
        finally:
            os.close(fd)


# The cache is deleted under a mount


def test_reads_go_on_when_the_cache_is_deleted_and_another_daemon_may_take_its_place(
    lab: Lab, server: FaultServer
) -> None:
    url = server.url("image.raw")
    with lab.mounted(url, troubled=True) as second_to_end:
        assert read(second_to_end.image, 0, MIB) == CONTENT[:MIB]
        shutil.rmtree(lab.cache)
        assert read(second_to_end.image, 0, len(CONTENT)) == CONTENT
        with lab.mounted(url, troubled=True) as first_to_end:
            assert read(first_to_end.image, 0, len(CONTENT)) == CONTENT
        assert read(second_to_end.image, 0, len(CONTENT)) == CONTENT
    server.stop()
    with lab.mounted(url, troubled=True) as offline:
        assert read(offline.image, 0, len(CONTENT)) == CONTENT


def test_a_hand_over_does_not_take_a_file_that_came_in_the_place_of_the_cache(
    lab: Lab, server: FaultServer
) -> None:
    need_loop()
    options = ["--fill", "--rate", "2M/s", server.url("image.raw")]
    with (
        lab.mounted(*options, troubled=True) as mounted,
        loop_device(mounted.image) as device,
    ):
        (data,) = lab.cache.glob("*/data")
        shutil.rmtree(lab.cache)
        data.parent.mkdir(parents=True)
        data.write_bytes(bytes(len(CONTENT)))
        eventually(lambda: "is complete" in mounted.messages(), "it is complete")
        eventually(lambda: "now stands on" in mounted.messages(), "the loop device is handed over")
        assert without_the_kernels_memory(device) == CONTENT
    assert data.read_bytes() == bytes(len(CONTENT))


def without_the_kernels_memory(device: Path) -> bytes:
    """What a block device reads from its backing file now."""
    fd = os.open(device, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        return b"".join(os.pread(fd, MIB, offset) for offset in range(0, len(CONTENT), MIB))
    finally:
        os.close(fd)


# The disk is full


@pytest.fixture
def small_disk(lab: Lab) -> Iterator[Path]:
    """A filesystem of 6 MiB in the place of the cache directory."""
    if not IS_ROOT:
        pytest.skip("only root can mount a tmpfs")
    lab.cache.mkdir()
    run_well(["mount", "-t", "tmpfs", "-o", "size=6M,mode=700", "lazyfs-test", lab.cache])
    try:
        yield lab.cache
    finally:
        run_well(["umount", lab.cache])


def test_a_full_disk_fails_no_read_and_a_kill_on_it_costs_no_byte(
    lab: Lab, server: FaultServer, small_disk: Path
) -> None:
    large = random.Random(10).randbytes(14 * MIB)
    server.replace("image.raw", large)
    url = server.url("image.raw")
    for _ in range(2):
        with lab.mounted("--fill", url, troubled=True) as mounted:
            assert read(mounted.image, 0, len(large)) == large
            assert read(mounted.image, 0, len(large)) == large
            assert "the cache takes no more (No space left on device)" in mounted.messages()
            mounted.signal(signal.SIGKILL)
            mounted.wait_until_ended()
    run_well(["mount", "-o", "remount,size=64M", small_disk])
    with lab.mounted(url, troubled=True) as mounted:
        assert MIB < mounted.cached() <= 6 * MIB
        assert read(mounted.image, 0, len(large)) == large
    server.stop()
    with lab.mounted(url, troubled=True) as mounted:
        assert read(mounted.image, 0, len(large)) == large


# The clock

BACKWARDS = """
import time
now, running = time.time(), time.monotonic
time.time = lambda: now - 3600 * running()
time.time_ns = lambda: int(time.time() * 1e9)
"""

MAY_LOOK_AT_THE_CLOCK = {
    "cache/layout.py",  # notes when a cache was last in use
    "cli/cache.py",  # shows and judges that
}


def test_a_clock_that_runs_backwards_changes_nothing(lab: Lab, server: FaultServer) -> None:
    """An hour back each second; meanwhile the server fails, and is retried."""
    (lab.directory / "sitecustomize.py").write_text(BACKWARDS)
    env = environment(lab.home, PYTHONPATH=str(lab.directory))
    failures = iter([Status(503), Status(503), Status(429, (("Retry-After", "1"),))])
    url = server.url("image.raw")
    with lab.mounted("--fill", "--timeout", "20", url, troubled=True, env=env) as mounted:
        server.script = lambda _: next(failures, None)
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT
        eventually(lambda: "is complete" in mounted.messages(), "it is complete")
    lines = [line for line in mounted.messages().splitlines() if line.startswith("20")]
    assert lines[0] > lines[-1], "the clock did run backwards"
    server.stop()
    with lab.mounted(url, troubled=True, env=env) as mounted:
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT


def test_only_those_modules_look_at_the_wall_clock_that_show_it() -> None:
    root = Path(lazyfs.__file__).parent
    found = {
        path.relative_to(root).as_posix()
        for path in root.rglob("*.py")
        if looks_at_the_clock(ast.parse(path.read_text()))
    }
    assert found <= MAY_LOOK_AT_THE_CLOCK


def looks_at_the_clock(tree: ast.AST) -> bool:
    """Whether it calls ``time.time()``, ``datetime.now()`` or the like."""
    return any(isinstance(node, ast.Call) and asks_the_time(node) for node in ast.walk(tree))


def asks_the_time(call: ast.Call) -> bool:
    """Whether a call depends on what time it is; one that is told a time does not."""
    words = len(call.args) + len(call.keywords)
    match call.func:
        case ast.Attribute(ast.Name("time"), "time" | "time_ns"):
            return True
        case ast.Attribute(ast.Name("datetime" | "date"), "now" | "utcnow" | "today"):
            return True
        case ast.Attribute(ast.Name("time"), "localtime" | "gmtime" | "ctime"):
            return words == 0
        case ast.Attribute(ast.Name("os"), "utime"):
            return words == 1
    return False


@pytest.mark.parametrize("code", ["time.time()", "f(datetime.now(UTC))", "os.utime(fd)"])
def test_the_search_for_clocks_finds_them(code: str) -> None:
    assert looks_at_the_clock(ast.parse(f"def f():\n    x = {code}\n"))


@pytest.mark.parametrize("code", ["time.monotonic()", "time.localtime(5)", "os.utime(fd, (1, 2))"])
def test_the_search_for_clocks_finds_nothing_else(code: str) -> None:
    assert not looks_at_the_clock(ast.parse(code))


# Old formats, and two daemons


@pytest.mark.parametrize("number", [0, 2, 99])
def test_a_cache_of_another_format_is_set_aside_with_one_line(
    lab: Lab, server: FaultServer, number: int
) -> None:
    url = server.url("image.raw")
    with lab.mounted(url) as mounted:
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT
    (meta,) = lab.cache.glob("*/meta.json")
    meta.write_text(json.dumps(json.loads(meta.read_text()) | {"format": number}))
    with lab.mounted(url, troubled=True) as mounted:
        said = mounted.said.splitlines() + mounted.complaints()
        assert len(said) == 1
        assert "another format" in said[0]
        assert mounted.cached() == 0
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT


def test_a_second_daemon_is_refused_also_where_the_first_is_stuck(
    lab: Lab, server: FaultServer
) -> None:
    """It says who has the cache, and does not wait for what may never end."""
    url = server.url("image.raw")
    with lab.mounted(url) as mounted:
        mounted.signal(signal.SIGSTOP)
        try:
            done = lab.start("--cache-dir", lab.cache, url, lab.mountpoint())
        finally:
            mounted.signal(signal.SIGCONT)
        assert done.returncode == 1
        assert f"in use by another lazyfs (process {mounted.pid})" in done.stderr
        assert read(mounted.image, 0, len(CONTENT)) == CONTENT

"""The workloads. Each runs in its own process, so that one that takes too long can be killed.

A target is the path of a file that a tool shows, or a URL. For a URL, curl and plain keep-alive
connections do the same work, as the limit that the tools are compared with.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import random
import re
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from bench import iso, system

BLOCK = 4096
PIECE = 1 << 20
CONNECTIONS = 8
"""Connections with several concurrent readers: of all configurable tools, and of the limit."""
COPY_CONNECTIONS = 4
SEED = 16

WAITING = "waiting"

PROGRAMS = {
    "python": "python3 -c 'import numpy; print(numpy.ones(9).sum())'",
    "gcc": "echo 'int main(void) { return 0; }' | gcc -O1 -x c -o /tmp/hello - && /tmp/hello",
    "perl": "perl -MPOSIX -MData::Dumper -e 'print Dumper([floor(1.5)])'",
    "git": "git init -q /tmp/tree && git -C /tmp/tree status",
    "node": "node -e 'console.log(require(\"os\").arch())'",
    "vim": "vim -es -u NONE -c q </dev/null || vim --version",
}
"""The programs that `hello` starts."""

Read = Callable[[int, int], bytes]
Result = dict[str, float]


def sequential(target: str, original: str, length: int) -> Result:
    """Read the first `length` bytes sequentially."""
    if is_url(target):
        return {"MB/s": length / curl(target, length) / 1e6}
    with open(target, "rb", buffering=0) as file:
        begin = time.perf_counter()
        last = b""
        for _ in range(length // PIECE):
            last = read_fully(file, PIECE)
        taken = time.perf_counter() - begin
    check(original, [(length - PIECE, last)])
    return {"MB/s": length / taken / 1e6}


def curl(url: str, length: int) -> float:
    """The seconds that curl takes for the first `length` bytes."""
    command = ["curl", "--silent", "--fail", "--range", f"0-{length - 1}", "--output", os.devnull]
    return float(system.run([*command, "--write-out", "%{time_total}", url], 3600))


def read_fully(file: Any, length: int) -> bytes:
    """Read `length` bytes, although read(2) may return fewer."""
    pieces = []
    while length:
        piece = file.read(length)
        if not piece:
            raise system.Failed("the file ended early")
        pieces.append(piece)
        length -= len(piece)
    return b"".join(pieces)


def random_reads(target: str, original: str, readers: int, count: int, limit: float) -> Result:
    """Read blocks at random places: `count` per reader, or for `limit` seconds."""
    run = RandomReads(Path(original).stat().st_size // BLOCK, count, limit)
    with opened(target, readers) as read:
        threads = [threading.Thread(target=run.reader, args=(read, n)) for n in range(readers)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if run.errors:
        failed, total = len(run.errors), len(run.errors) + len(run.latencies)
        raise system.Failed(f"{failed} of {total} reads failed: {run.errors[0]}")
    check(original, run.contents)
    latencies = sorted(run.latencies)
    return {
        "ms": latencies[len(latencies) // 2] * 1e3,
        "p95 ms": latencies[len(latencies) * 95 // 100] * 1e3,
        "IOPS": len(latencies) / (run.ended - run.begun),
    }


def beside(target: str, original: str, length: int) -> Result:
    """Read blocks at random places while another reader streams the first `length` bytes.

    A pause of a fiftieth of a second between two reads leaves the stream most of the link.
    """
    size, ended = Path(original).stat().st_size, threading.Event()
    streamed: Result = {}

    def stream() -> None:
        try:
            streamed.update(sequential(target, original, length))
        finally:
            ended.set()

    dice, latencies, contents = random.Random(SEED), [], []
    with opened(target, 2) as read:
        thread = threading.Thread(target=stream)
        thread.start()
        time.sleep(1)  # the stream has its speed
        while not ended.wait(0.02):
            offset = dice.randrange(length // BLOCK, size // BLOCK) * BLOCK
            begin = time.perf_counter()
            content = read(offset, BLOCK)
            latencies.append(time.perf_counter() - begin)
            contents.append((offset, content))
        thread.join()
    if not streamed:
        raise system.Failed("the stream failed")
    check(original, contents)
    latencies.sort()
    return {
        "ms": latencies[len(latencies) // 2] * 1e3,
        "p95 ms": latencies[len(latencies) * 95 // 100] * 1e3,
        "stream MB/s": streamed["MB/s"],
    }


class RandomReads:
    """The state shared by the readers: the task and the results."""

    def __init__(self, blocks: int, count: int, limit: float) -> None:
        self._blocks, self._count = blocks, count
        self.begun = self.ended = time.perf_counter()
        self._deadline = self.begun + limit
        self.latencies: list[float] = []
        self.contents: list[tuple[int, bytes]] = []
        self.errors: list[str] = []

    def reader(self, read: Read, number: int) -> None:
        """Read this reader's places; after an error, which is counted, the next place is read."""
        dice = random.Random(SEED + number)
        for _ in range(self._count):
            offset = dice.randrange(self._blocks) * BLOCK
            begin = time.perf_counter()
            if begin > self._deadline:
                break
            try:
                content = read(offset, BLOCK)
            except (OSError, http.client.HTTPException) as error:
                self.errors.append(str(error))
                continue
            self.ended = time.perf_counter()
            self.latencies.append(self.ended - begin)
            self.contents.append((offset, content))


@contextlib.contextmanager
def opened(target: str, readers: int) -> Iterator[Read]:
    """A function that reads at an offset, usable by several threads at once."""
    if is_url(target):
        yield keep_alive(target, min(readers, CONNECTIONS))
        return
    file = os.open(target, os.O_RDONLY)
    try:
        yield lambda offset, length: os.pread(file, length, offset)
    finally:
        os.close(file)


def keep_alive(url: str, number: int) -> Read:
    """Reads with range requests on `number` connections; a reader waits for a free one."""
    parts = urlsplit(url)
    free: queue.Queue[http.client.HTTPConnection] = queue.Queue()
    for _ in range(number):
        free.put(http.client.HTTPConnection(parts.netloc))

    def read(offset: int, length: int) -> bytes:
        connection = free.get()
        try:
            span = f"bytes={offset}-{offset + length - 1}"
            connection.request("GET", parts.path, headers={"Range": span})
            return connection.getresponse().read()
        finally:
            free.put(connection)

    return read


def check(original: str, contents: list[tuple[int, bytes]]) -> None:
    """Compare the bytes read with the original. Raises Failed."""
    with open(original, "rb") as file:
        for offset, content in contents:
            file.seek(offset)
            if file.read(len(content)) != content:
                raise system.Failed(f"wrong data at offset {offset}")


def job(
    target: str, device: str, mountpoint: str, fstype: str, start: int, files: list[str]
) -> Result:
    """Loop-mount, list the whole tree with sizes, and read some files."""
    begin = time.perf_counter()
    system.mount(target, Path(device), mountpoint, fstype, start)
    mounted = time.perf_counter() - begin
    result = walk(mountpoint, files)
    return {"s": mounted + result.pop("s"), "mount s": mounted, "at": time.monotonic()} | result


def hello(target: str, device: str, mountpoint: str, fstype: str) -> Result:
    """Loop-mount a root filesystem, and start programs in it, one after another."""
    begin = time.perf_counter()
    system.mount(target, Path(device), mountpoint, fstype)
    try:
        for kind, place in (("tmpfs", "tmp"), ("devtmpfs", "dev"), ("proc", "proc")):
            system.run(["mount", "-t", kind, kind, f"{mountpoint}/{place}"])
        result = {"mount s": time.perf_counter() - begin}
        for name, program in PROGRAMS.items():
            started = time.perf_counter()
            system.run(["chroot", mountpoint, "sh", "-c", program], 300)
            result[f"{name} s"] = time.perf_counter() - started
    finally:
        for place in ("tmp", "dev", "proc"):
            system.unmount(Path(mountpoint, place))
    return {"s": time.perf_counter() - begin, "at": time.monotonic()} | result


def walk(mountpoint: str, files: list[str]) -> Result:
    """The job on a mounted tree. `-size` makes find look at every inode."""
    begin = time.perf_counter()
    system.run(["find", mountpoint, "-size", "+1G"], system.MOUNT)
    found = time.perf_counter()
    for name in files:
        Path(mountpoint, name).read_bytes()
    ended = time.perf_counter()
    return {"s": ended - begin, "find s": found - begin, "read s": ended - found}


def look(command: list[str], output: str, wanted: str) -> Result:
    """Run a program that prints the file `wanted` of the ISO, or, if empty, lists all files."""
    begin = time.perf_counter()
    with open(output, "wb") as file:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.PIPE, check=False
        )
    taken = time.perf_counter() - begin
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip() or f"status {done.returncode}"
        raise system.Failed(said.splitlines()[-1])
    check_look(Path(output).read_bytes(), wanted)
    return {"s": taken, "memory": resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss << 10}


def check_look(printed: bytes, wanted: str) -> None:
    """Compare the output of a program with the content of the ISO. Raises Failed."""
    if wanted:
        if printed != iso.content(wanted):
            raise system.Failed("wrong data")
        return
    names = {Path(path).name for path in iso.names()}
    if missing := names - set(re.findall(r"[\w.-]+", printed.decode(errors="replace"))):
        raise system.Failed(f"{len(missing)} of {len(names)} files were not listed")


def nbdcopy(uri: str, size: int) -> Result:
    """Copy an export to the null device."""
    begin = time.perf_counter()
    system.run(["nbdcopy", f"--connections={COPY_CONNECTIONS}", uri, "null:"], 3600)
    return {"MB/s": size / (time.perf_counter() - begin) / 1e6}


def nbd_reads(uri: str) -> Result:
    """Read blocks of an export at random places, one at a time, for some seconds."""
    options = ["--name=r", "--ioengine=nbd", f"--uri={uri}", "--rw=randread", f"--bs={BLOCK}"]
    often = ["--iodepth=1", "--time_based", "--runtime=3", "--output-format=json"]
    said = system.run(["fio", *options, *often], 60)
    found = json.loads(said[said.index("{") :])  # a line of text comes first
    return {"ms": found["jobs"][0]["read"]["clat_ns"]["percentile"]["50.000000"] / 1e6}


def ready(target: str, size: int, length: int) -> Result:
    """Wait until the file exists with its size, and `length` bytes in its middle are readable."""
    print(WAITING, flush=True)
    while not has_size(target, size):
        time.sleep(0.002)
    if length:
        with opened(target, 1) as read:
            read(size // 2, length)
    return {"at": time.monotonic()}


def has_size(target: str, size: int) -> bool:
    """Whether the target exists with that size. Always true for a URL."""
    try:
        return is_url(target) or os.stat(target).st_size == size
    except OSError:
        return False


def is_url(target: str) -> bool:
    """Whether a target is a URL."""
    return "://" in target


WORK = {
    work.__name__: work
    for work in (
        sequential,
        random_reads,
        beside,
        job,
        hello,
        walk,
        look,
        nbdcopy,
        nbd_reads,
        ready,
    )
}


def start(name: str, **what: Any) -> subprocess.Popen[str]:
    """Start a workload in its own process; `finish` returns its result."""
    command = [sys.executable, "-m", "bench.work", name, json.dumps(what)]
    return subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        cwd=Path(__file__).parent.parent, start_new_session=True,
    )  # fmt: skip


def is_waiting(process: subprocess.Popen[str]) -> None:
    """Wait until a `ready` workload has begun to wait, so that its start is not measured."""
    assert process.stdout is not None
    line = bytearray()
    while byte := os.read(process.stdout.fileno(), 1):  # no buffering: the rest is for `finish`
        if byte == b"\n":
            break
        line += byte
    if line.decode() != WAITING:
        raise system.Failed("the bench's own helper does not start")


def kill(process: subprocess.Popen[str]) -> None:
    """Kill a workload that still runs, with its child processes."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)  # it is a process group leader
        system.end(process)


def finish(process: subprocess.Popen[str], limit: float, on_timeout: Callable[[], None]) -> Result:
    """Wait for a workload's result. Raises Failed.

    If it takes too long, `on_timeout` is called to unblock it, and it is killed.
    """
    try:
        output, _ = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired as error:
        on_timeout()
        raise system.Failed(f"not done in {limit:.0f} s") from error
    finally:
        kill(process)
    if not output:
        raise system.Failed(f"the workload ended with status {process.returncode}")
    answer = json.loads(output)
    if "error" in answer:
        raise system.Failed(answer["error"])
    return {name: float(value) for name, value in answer.items()}


def main() -> None:
    """Do the work named on the command line; print its result or its error."""
    name, what = sys.argv[1:]
    try:
        result = WORK[name](**json.loads(what))
    except Exception as error:  # any error must be recorded by the benchmark
        print(json.dumps({"error": f"{type(error).__name__}: {error}"}))
    else:
        print(json.dumps(result))


if __name__ == "__main__":
    main()

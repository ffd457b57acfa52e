"""One measurement: a tool, a work and a link give a Run."""

from __future__ import annotations

import contextlib
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path

from bench import system, work
from bench.image import KINDS, MAIN, Image, Images
from bench.server import LINKS, Server, Way
from bench.tools import Tool

START_LIMIT = 30.0


@dataclass(frozen=True)
class Amount:
    """How much work is done on a link: enough to measure, not so much that it takes all day."""

    sequential: int
    reads: dict[int, int]
    """Number of readers -> reads of each."""
    read_limit: float
    """Seconds after which random readers stop."""
    limit: float
    """Seconds after which a work counts as failed."""


AMOUNTS = {
    "lan": Amount(256 << 20, {1: 1000, 16: 250}, 10, 120),
    "wan": Amount(256 << 20, {1: 200, 16: 100}, 10, 400),
    "far": Amount(64 << 20, {1: 60, 16: 40}, 15, 300),
    "lossy": Amount(64 << 20, {1: 30, 16: 20}, 30, 600),
}
QUICK = Amount(128 << 20, {1: 100, 16: 40}, 6, 60)


@dataclass(frozen=True)
class Work:
    """A kind of work, and what of its result is compared."""

    name: str
    title: str
    metric: str
    limit: str
    """The name of the tool that shows what is possible at best; empty where there is none."""
    kind: str = MAIN
    """Of the image."""
    needs_file: bool = False
    """Whether the image must be a local file, for the kernel to mount."""

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is a speed, and not a time."""
        return self.metric in ("MB/s", "IOPS")


SEQUENTIAL = Work("seq", "sequential read, cold", "MB/s", "curl")
ONE = Work("r1", "4 KiB random reads, one reader", "ms", "curl")
MANY = Work("r16", "4 KiB random reads, 16 readers", "IOPS", "curl")
START = Work("start", "start to first byte", "s", "", needs_file=True)
JOB = Work("job", "loop-mount, find, read 200 files; cold", "s", "local", needs_file=True)
AGAIN = Work("again", "the same job again, from the tool's cache", "s", "local")
JOBS = tuple(
    Work(f"job-{kind}", f"the job on {kind}, cold", "s", "local", kind, needs_file=True)
    for kind in KINDS
    if kind != MAIN
)
COMPLETE = Work(
    "complete", "find, read 200 files on the complete image", "s", "local", needs_file=True
)
WORKS = {w.name: w for w in (SEQUENTIAL, ONE, MANY, START, JOB, AGAIN, COMPLETE, *JOBS)}


def fits(tool: type[Tool], wanted: Work) -> bool:
    """Whether a tool can do this work; a limit is only measured where it is one."""
    if tool.limit:
        return tool.name == wanted.limit
    if wanted is COMPLETE:
        return tool.completes
    if tool.mounts_tree:
        return wanted.needs_file and wanted is not START
    return tool.mounts or not wanted.needs_file


@dataclass
class Run:
    """What one run of one work gave; `values` are empty where there is an `error`."""

    tool: str
    link: str
    work: str
    number: int
    values: dict[str, float] = field(default_factory=dict)
    traffic: dict[str, int] = field(default_factory=dict)
    peak_memory: int = 0
    error: str = ""


@dataclass
class Bench:
    """What all measurements share."""

    server: Server
    images: Images
    loop: Path
    room: Path
    quick: bool = False

    def amount(self, link: str) -> Amount:
        """How much is done on this link."""
        return QUICK if self.quick else AMOUNTS[link]

    def measure(self, kind: type[Tool], link: str, wanted: Work, number: int) -> list[Run]:
        """Run one work. A job gives two runs: the second is the same job from the cache."""
        run = Run(kind.name, link, wanted.name, number)
        image = self.images.get(wanted.kind)
        self.server.show(image)
        with (
            tempfile.TemporaryDirectory(dir=self.room) as room,
            self.server.behind(LINKS[link], seed=number) as way,
        ):
            connections = work.CONNECTIONS if wanted is MANY else None
            tool = kind(way, image, Path(room), connections)
            return Cell(self, tool, image, wanted, run).measure(way)


class Cell:
    """One tool at one work."""

    def __init__(self, bench: Bench, tool: Tool, image: Image, wanted: Work, run: Run) -> None:
        self._bench, self._tool, self._image = bench, tool, image
        self._work, self._run, self._runs = wanted, run, [run]
        self._amount = bench.amount(run.link)

    def measure(self, way: Way) -> list[Run]:
        """Start the tool, do the work, stop the tool. Failures are recorded in the runs."""
        system.drop_caches()
        try:
            self._start_and_do(way)
        except system.Failed as failed:
            self._runs[-1].error = str(failed)
        finally:
            self._tool.stop()
        way.settle()
        if len(self._runs) == 1:
            self._run.traffic = asdict(way.traffic())
        return self._runs

    def _start_and_do(self, way: Way) -> None:
        started = 0.0 if self._tool.mounts_tree else self._started()
        if self._work is START:
            self._run.values = {"s": started}
        elif self._work is COMPLETE:
            self._run.values = self._complete()
        elif self._work.needs_file:
            self._jobs(way)
        else:
            self._run.values = self._finish(self._reading())
        self._runs[-1].peak_memory = self._tool.peak_memory()

    def _started(self) -> float:
        """Start the tool; returns the seconds until the image was there."""
        length = work.BLOCK if self._work is START else 0
        waiting = work.start(
            "ready", target=self._tool.target, size=self._image.size, length=length
        )  # fmt: skip
        try:
            work.is_waiting(waiting)
            begin = time.monotonic()
            self._tool.start()
            return work.finish(waiting, START_LIMIT, self._tool.release)["at"] - begin
        except system.Failed as failed:
            raise system.Failed(f"start: {failed}; {self._tool.last_message()}") from failed
        finally:
            work.kill(waiting)

    def _jobs(self, way: Way) -> None:
        """The job, and once more with nothing in memory but in what the tool kept."""
        self._run.values = self._job()
        first = way.traffic()
        self._run.traffic = asdict(first)
        self._run.peak_memory = self._tool.peak_memory()
        if self._work is JOB:
            again = Run(self._run.tool, self._run.link, AGAIN.name, self._run.number)
            self._runs.append(again)
            system.drop_caches()
            again.values = self._job()
            again.traffic = asdict(way.traffic().since(first))

    def _job(self) -> work.Result:
        return self._job_in_tree() if self._tool.mounts_tree else self._job_on_file()

    def _job_on_file(self) -> work.Result:
        with self._tree() as mountpoint:
            job = work.start(
                "job", target=self._tool.target, device=str(self._bench.loop),
                mountpoint=str(mountpoint), fstype=self._image.fstype, files=self._image.files,
            )  # fmt: skip
            return self._finish(job)

    @contextlib.contextmanager
    def _tree(self) -> Iterator[Path]:
        """A directory for a mount of our loop device; both are freed at the end."""
        mountpoint = self._tool.room / "tree"
        mountpoint.mkdir(exist_ok=True)
        try:
            yield mountpoint
        finally:
            system.unmount(mountpoint)
            system.detach(self._bench.loop)

    def _job_in_tree(self) -> work.Result:
        """Here the start of the tool is the mount, and in the time; the second job starts anew."""
        self._tool.stop()
        mounted = self._mounted()
        result = self._walk(self._tool.mountpoint)
        return {"s": mounted + result.pop("s"), "mount s": mounted} | result

    def _mounted(self) -> float:
        """Start a tool that mounts the tree; returns the seconds until it was mounted."""
        begin = time.monotonic()
        self._tool.start()
        if not system.wait_until(lambda: system.is_mounted(self._tool.mountpoint), START_LIMIT):
            raise system.Failed(f"start: {self._tool.last_message()}")
        return time.monotonic() - begin

    def _walk(self, mountpoint: Path) -> work.Result:
        files = self._image.files
        return self._finish(work.start("walk", mountpoint=str(mountpoint), files=files))

    def _complete(self) -> work.Result:
        """The job without the mount, on what needs no server any more."""
        if not self._tool.mounts_tree:
            with self._tree() as mountpoint:
                system.mount(self._tool.target, self._bench.loop, mountpoint, self._image.fstype)
                system.drop_caches()
                return self._walk(mountpoint)
        self._mounted()
        if not system.wait_until(self._tool.ended, self._amount.limit):
            raise system.Failed(f"not complete in {self._amount.limit:.0f} s")
        system.drop_caches()
        return self._walk(self._tool.mountpoint)

    def _reading(self) -> subprocess.Popen[str]:
        target, original = self._tool.target, str(self._image.path)
        if self._work is SEQUENTIAL:
            length = self._amount.sequential
            return work.start("sequential", target=target, original=original, length=length)
        readers = 16 if self._work is MANY else 1
        return work.start(
            "random_reads", target=target, original=original, readers=readers,
            count=self._amount.reads[readers], limit=self._amount.read_limit,
        )  # fmt: skip

    def _finish(self, process: subprocess.Popen[str]) -> work.Result:
        return work.finish(process, self._amount.limit, self._tool.release)

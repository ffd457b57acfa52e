"""A measurement: from a tool, a work and a link to a Run."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from bench import iso, system, work
from bench.image import ISO, KINDS, MAIN, ROOT, Image, Images
from bench.server import LINKS, Server, Way, timeline
from bench.tools import Command, Lazyfs, Task, Tool

START_LIMIT = 30.0
STATISTICS = "user.lazyfs.statistics"


@dataclass(frozen=True)
class Amount:
    """The amount of work on a link: enough to measure, without taking all day."""

    sequential: int
    reads: dict[int, int]
    """Number of readers -> reads per reader."""
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
    """A kind of work, and the metric to compare."""

    name: str
    title: str
    metric: str
    limit: str
    """The name of the tool with the best possible value; empty if there is none."""
    task: Task
    kind: str = MAIN
    """The image's kind."""
    links: tuple[str, ...] = tuple(LINKS)
    """The links on which it is measured by default."""
    transfer: bool = False
    """Whether the limit includes the link's time to transfer the fetched bytes."""

    @property
    def higher_is_better(self) -> bool:
        """Whether the metric is a speed, not a time."""
        return self.metric in ("MB/s", "IOPS")


SEQUENTIAL = Work("seq", "sequential read, cold", "MB/s", "curl", Task.READ)
ONE = Work("r1", "4 KiB random reads, one reader", "ms", "curl", Task.READ)
MANY = Work("r16", "4 KiB random reads, 16 readers", "IOPS", "curl", Task.READ)
BESIDE = Work(
    "beside", "4 KiB random reads beside a stream", "ms", "curl", Task.READ, links=("wan",)
)
START = Work("start", "start to first byte", "s", "", Task.START)
JOB = Work("job", "loop-mount, find, read 200 files; cold", "s", "local", Task.JOB)
AGAIN = Work("again", "the same job again, from the tool's cache", "s", "local", Task.JOB)
HELLO = Work(
    "hello", "start python, gcc, perl, git, node, vim from a root filesystem, cold", "s", "local",
    Task.HELLO, ROOT, ("wan",),
)  # fmt: skip
JOBS = tuple(
    Work(f"job-{kind}", f"the job on {kind}, cold", "s", "local", Task.JOB, kind, ("wan",))
    for kind in KINDS
    if kind != MAIN
)
COMPLETE = Work(
    "complete", "find, read 200 files on the complete image", "s", "local", Task.COMPLETE,
    links=("lan",),
)  # fmt: skip
PROFILE = Work(
    "job-profile", "the job with a profile of an earlier one, cold", "s", "local", Task.TOLD,
    MAIN, ("wan",), transfer=True,
)  # fmt: skip
PRELOAD = Work(
    "job-preload", "the job on a squashfs in an ISO, its tables preloaded, cold", "s", "local",
    Task.TOLD, ISO, ("wan",), transfer=True,
)  # fmt: skip
LIST = Work(
    "ls", "list an ISO of 10,000 files, cold", "s", "local", Task.LOOK, ISO, ("lan", "wan")
)  # fmt: skip
EXTRACT = Work(
    "cat", "take a file of 1 MB out of an ISO, cold", "s", "local", Task.LOOK, ISO, ("lan", "wan")
)  # fmt: skip
COPY = Work(
    "nbdcopy", "nbdcopy of the ISO with 4 connections, cold", "MB/s", "nbdkit-file", Task.SERVE,
    ISO, ("lan", "wan"),
)  # fmt: skip
COPY_AGAIN = replace(COPY, name="nbdcopy-again", title="the same once more, from the tool's cache")
BLOCKS = replace(
    COPY, name="nbd-r1", title="4 KiB random reads after that, one at a time", metric="ms"
)
WORKS = {
    w.name: w
    for w in (
        SEQUENTIAL, ONE, MANY, BESIDE, START, JOB, AGAIN, HELLO, COMPLETE, PROFILE, PRELOAD, LIST,
        EXTRACT, COPY, COPY_AGAIN, BLOCKS, *JOBS,
    )
}  # fmt: skip
FIRST = {AGAIN: JOB, COPY_AGAIN: COPY, BLOCKS: COPY}
"""A work that only follows another one -> that other work."""


def fits(tool: type[Tool], wanted: Work) -> bool:
    """Whether a tool can do this work; a limit is measured only at its own works."""
    return tool.name == wanted.limit if tool.limit else wanted.task in tool.tasks


@dataclass
class Run:
    """The result of one run of one work; `values` is empty if there is an `error`."""

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
    """The state shared by all measurements."""

    server: Server
    images: Images
    loop: Path
    room: Path
    quick: bool = False
    timelines: Path | None = None
    """The directory for lists of each run's requests."""
    profiles: dict[str, Path] = field(default_factory=dict)
    """Link -> the profile of a job on the main image, recorded on that link."""

    def amount(self, link: str) -> Amount:
        """The amount of work on this link."""
        return QUICK if self.quick else AMOUNTS[link]

    def measure(self, kind: type[Tool], link: str, wanted: Work, number: int) -> list[Run]:
        """Run one work. A job makes two runs: the second is the same job from the cache."""
        run = Run(kind.name, link, wanted.name, number)
        try:
            image = self.images.get(wanted.kind)
            self.server.show(image)
            told = self._preloaded(wanted, link, image)
        except system.Failed as failed:
            run.error = str(failed)
            return [run]
        return self._run(kind, image, wanted, run, told)

    def _run(
        self, kind: type[Tool], image: Image, wanted: Work, run: Run, told: Command
    ) -> list[Run]:
        with (
            tempfile.TemporaryDirectory(dir=self.room) as room,
            self.server.behind(LINKS[run.link], seed=run.number) as way,
        ):
            connections = work.CONNECTIONS if wanted is MANY else None
            tool = kind(way, image, Path(room), connections)
            tool.told = told
            runs = Cell(self, tool, image, wanted, run).measure(way)
            if self.timelines is not None:
                name = f"{run.link}-{run.work}-{run.tool}-{run.number}.txt"
                (self.timelines / name).write_text(timeline(way.requests()))
            return runs

    def _preloaded(self, wanted: Work, link: str, image: Image) -> Command:
        """The options that announce the reads to lazyfs. Raises Failed."""
        if wanted is PROFILE:
            if link not in self.profiles:
                self.profiles[link] = self._recorded(image, link)
            return ["--profile", self.profiles[link]]
        if wanted is PRELOAD:
            return ["--preload", f"squashfs:{iso.SQUASHFS}"]
        return ()

    def _recorded(self, image: Image, link: str) -> Path:
        """A profile of the job, recorded in an additional run. Raises Failed."""
        profile = self.room / f"{link}.profile"
        run = Run(Lazyfs.name, link, "record", 0)
        self._run(Lazyfs, image, PROFILE, run, ["--record", profile])
        if run.error or not profile.exists():
            raise system.Failed(f"recording: {run.error or 'no profile was written'}")
        return profile


class Cell:
    """One tool at one work."""

    def __init__(self, bench: Bench, tool: Tool, image: Image, wanted: Work, run: Run) -> None:
        self._bench, self._tool, self._image = bench, tool, image
        self._work, self._run, self._runs = wanted, run, [run]
        self._amount = bench.amount(run.link)
        self._there = 0.0  # when the image became readable, by the monotonic clock

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
        if self._work.task is Task.LOOK:
            self._look()
            return
        started = 0.0 if self._tool.mounts_tree else self._started()
        if self._work.task is Task.START:
            self._run.values = {"s": started}
        elif self._work.task is Task.COMPLETE:
            self._run.values = self._complete()
        elif self._work.task is Task.TOLD:
            self._run.values = self._told_job()
        elif self._work.task is Task.JOB:
            self._jobs(way)
        elif self._work.task is Task.HELLO:
            self._run.values = self._hello(started)
        elif self._work.task is Task.SERVE:
            self._copies(way)
        else:
            self._run.values = self._finish(self._reading())
        self._runs[-1].peak_memory = self._tool.peak_memory()

    def _look(self) -> None:
        """Look into the ISO; if the tool must be mounted for that, its start is in the time."""
        if self._tool.looks_by_itself:
            started = 0.0
        else:
            started = self._mounted() if self._tool.mounts_tree else self._started()
        name = "" if self._work is LIST else iso.large_file()
        command = self._tool.extraction(name) if name else self._tool.listing()
        looking = work.start(
            "look", command=[str(part) for part in command], wanted=name,
            output=str(self._tool.room / "output"),
        )  # fmt: skip
        result = self._finish(looking)
        self._run.peak_memory = self._tool.peak_memory() + int(result.pop("memory"))
        self._run.values = {"s": started + result.pop("s"), "start s": started}

    def _started(self) -> float:
        """Start the tool; returns the seconds until the image appeared."""
        length = work.BLOCK if self._work is START else 0
        waiting = work.start(
            "ready", target=self._tool.target, size=self._image.size, length=length
        )  # fmt: skip
        try:
            work.is_waiting(waiting)
            begin = time.monotonic()
            self._tool.start()
            self._there = work.finish(waiting, self._start_limit, self._tool.release)["at"]
            return max(0.0, self._there - begin)
        except system.Failed as failed:
            raise system.Failed(f"start: {failed}; {self._tool.last_message()}") from failed
        finally:
            work.kill(waiting)

    @property
    def _start_limit(self) -> float:
        """Seconds; for LOOK, a tool may do most of the work at its start."""
        return self._amount.limit if self._work.task is Task.LOOK else START_LIMIT

    def _told_job(self) -> work.Result:
        """The job, timed from the image's appearance, when fetching of announced reads begins."""
        result = self._job_on_file()
        result["s"] = result.pop("at") - self._there
        if isinstance(self._tool, Lazyfs):
            if (complaint := self._tool.not_followed()) is not None:
                raise system.Failed(complaint)
            said = json.loads(os.getxattr(self._tool.target, STATISTICS))
            result["fetched/read"] = said["fetched"] / said["wanted"]
        return result

    def _jobs(self, way: Way) -> None:
        """The job, and once more from the tool's cache, with an empty page cache."""
        self._run.values = self._job()
        first = way.traffic()
        self._run.traffic = asdict(first)
        self._run.peak_memory = self._tool.peak_memory()
        if self._work is JOB:
            again = self._following(AGAIN)
            system.drop_caches()
            again.values = self._job()
            again.traffic = asdict(way.traffic().since(first))

    def _following(self, wanted: Work) -> Run:
        """Add a run that follows the requested one."""
        run = Run(self._run.tool, self._run.link, wanted.name, self._run.number)
        self._runs.append(run)
        return run

    def _hello(self, started: float) -> work.Result:
        """Program starts; the start of the tool is in the time, and so is a download."""
        with self._tree() as mountpoint:
            hello = work.start(
                "hello", target=self._tool.target, device=str(self._bench.loop),
                mountpoint=str(mountpoint), fstype=self._image.fstype,
            )  # fmt: skip
            result = self._finish(hello)
        result.pop("at")
        return {"s": started + result.pop("s"), "start s": started} | result

    def _copies(self, way: Way) -> None:
        """Copy everything, copy it again, and do random reads from the warm cache."""
        target, size = self._tool.target, self._image.size
        self._run.values = self._finish(work.start("nbdcopy", uri=target, size=size))
        first = way.traffic()
        self._run.traffic = asdict(first)
        self._run.peak_memory = self._tool.peak_memory()
        again = self._following(COPY_AGAIN)
        again.values = self._finish(work.start("nbdcopy", uri=target, size=size))
        again.traffic = asdict(way.traffic().since(first))
        again.peak_memory = self._tool.peak_memory()
        reads = self._following(BLOCKS)
        reads.values = self._finish(work.start("nbd_reads", uri=target))

    def _job(self) -> work.Result:
        result = self._job_in_tree() if self._tool.mounts_tree else self._job_on_file()
        result.pop("at", None)
        return result

    def _job_on_file(self) -> work.Result:
        with self._tree() as mountpoint:
            job = work.start(
                "job", target=self._tool.target, device=str(self._bench.loop),
                mountpoint=str(mountpoint), fstype=self._image.fstype, start=self._image.start,
                files=self._image.files,
            )  # fmt: skip
            return self._finish(job)

    @contextlib.contextmanager
    def _tree(self) -> Iterator[Path]:
        """A directory to mount our loop device on; both are freed at the end."""
        mountpoint = self._tool.room / "tree"
        mountpoint.mkdir(exist_ok=True)
        try:
            yield mountpoint
        finally:
            system.unmount(mountpoint)
            system.detach(self._bench.loop)

    def _job_in_tree(self) -> work.Result:
        """The job, including the tool's start, which is the mount; a second job starts it anew."""
        self._tool.stop()
        mounted = self._mounted()
        result = self._walk(self._tool.mountpoint)
        return {"s": mounted + result.pop("s"), "mount s": mounted} | result

    def _mounted(self) -> float:
        """Start a tool that mounts the tree; returns the seconds until it was mounted."""
        begin = time.monotonic()
        self._tool.start()
        mountpoint = self._tool.mountpoint
        if not system.wait_until(lambda: system.is_mounted(mountpoint), self._start_limit):
            raise system.Failed(f"start: {self._tool.last_message()}")
        return time.monotonic() - begin

    def _walk(self, mountpoint: Path) -> work.Result:
        files = self._image.files
        return self._finish(work.start("walk", mountpoint=str(mountpoint), files=files))

    def _complete(self) -> work.Result:
        """The job without the mount, on a complete image, which needs no server."""
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
        if self._work is BESIDE:
            length = self._amount.sequential
            return work.start("beside", target=target, original=original, length=length)
        readers = 16 if self._work is MANY else 1
        return work.start(
            "random_reads", target=target, original=original, readers=readers,
            count=self._amount.reads[readers], limit=self._amount.read_limit,
        )  # fmt: skip

    def _finish(self, process: subprocess.Popen[str]) -> work.Result:
        return work.finish(process, self._amount.limit, self._tool.release)

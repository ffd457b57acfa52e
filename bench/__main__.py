"""``python -m bench``: measure lazyfs and its peers side by side. See README.rst here."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from bench import chart, image, report, system
from bench.measure import FIRST, WORKS, Bench, Run, Work, fits
from bench.server import LINKS, serving
from bench.tools import TOOLS, Tool, variant

QUICK_TOOLS = ("lazyfs", "nbdkit", "nbdkit-cow", "curl", "local")
QUICK_WORKS = ("seq", "r1", "r16", "job")
RUNS = 3


def main() -> int:
    """Measure as requested on the command line.

    Returns the exit status: 1 if lazyfs failed in any run, 2 for wrong usage, 130 after Ctrl-C.
    """
    options = arguments()
    if os.geteuid():
        print("python -m bench: mounting needs root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGINT, signal.default_int_handler)  # "&" in a script disables it
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that everything is cleaned up
    tools = wanted_tools(options)
    versions = installed(tools)
    tools = {name: tool for name, tool in tools.items() if name in versions}
    runs: list[Run] = []
    interrupted = False
    with bench(options) as ready:
        try:
            for run in measure(ready, plan(options, tools)):
                runs.append(run)  # noqa: PERF402 (completed runs are reported after ^C too)
        except KeyboardInterrupt:
            interrupted = True
            say("stopped; here is what was measured until now")
    write(options, runs, versions)
    if interrupted:
        return 130
    return int(any(run.error for run in runs if run.tool.startswith(report.OURS)))


def arguments() -> argparse.Namespace:
    """The options on the command line."""
    parser = argparse.ArgumentParser("bench", description="measure lazyfs beside other tools")
    add = parser.add_argument
    add("--quick", action="store_true", help="the important cells, once, in under 5 minutes")
    add("--only", type=names(WORKS), metavar="WORK,...", help=f"of: {', '.join(WORKS)}")
    add("--tools", type=names(TOOLS), metavar="TOOL,...", help=f"of: {', '.join(TOOLS)}")
    add("--link", type=names(LINKS), metavar="LINK,...", help=f"of: {', '.join(LINKS)}")
    add("--variant", type=variant, action="append", default=[], metavar="NAME=OPTION...",
        help="lazyfs once more, with these options (may be repeated)")  # fmt: skip
    add("--runs", type=int, metavar="N", help=f"of each (default: {RUNS}; 1 with --quick)")
    add("--json", type=Path, metavar="FILE", help="write all runs there")
    add("--requests", type=Path, metavar="DIR",
        help="write the requests of each run there: begin, end, bytes, range")  # fmt: skip
    add("--svg", type=Path, metavar="FILE", help="write the picture there (of the link wan)")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "lazyfs-bench")
    add("--images", type=Path, default=cache, metavar="DIR", help=f"(default: {cache})")
    add("--scratch", type=Path, default=Path("/var/tmp"), metavar="DIR",
        help="where the tools' caches are made; not a tmpfs (default: /var/tmp)")  # fmt: skip
    return parser.parse_args()


def names(known: Collection[str]) -> Callable[[str], list[str]]:
    """An argparse type: a comma-separated list of known names."""

    def split(text: str) -> list[str]:
        given = text.split(",")
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return given

    return split


def wanted_tools(options: argparse.Namespace) -> dict[str, type[Tool]]:
    """The tools to measure, variants of lazyfs first."""
    chosen = options.tools or (QUICK_TOOLS if options.quick else TOOLS)
    extra = {tool.name: tool for tool in options.variant}
    return extra | {name: TOOLS[name] for name in chosen}


def installed(tools: dict[str, type[Tool]]) -> dict[str, str]:
    """The versions of the installed tools; the others are named and left out."""
    versions = {}
    for name, tool in tools.items():
        try:
            versions[name] = tool.version()
            say(f"{name}: {versions[name]}")
        except system.Failed as failed:
            say(f"{name}: left out, {failed}")
    return versions


@contextlib.contextmanager
def bench(options: argparse.Namespace) -> Iterator[Bench]:
    """Server, images and loop device, in a temporary directory."""
    images = image.Images(options.images, say)
    if options.requests:
        options.requests.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        room = Path(
            stack.enter_context(
                tempfile.TemporaryDirectory(prefix="lazyfs-bench-", dir=options.scratch)
            )
        )
        loop = stack.enter_context(system.loop_device())
        server = stack.enter_context(serving(room, 2 * image.SIZE))
        yield Bench(server, images, loop, room, options.quick, options.requests)


def plan(
    options: argparse.Namespace, tools: dict[str, type[Tool]]
) -> list[tuple[type[Tool], str, Work, int]]:
    """The measurements, in order: each work with all tools, so that conditions are comparable."""
    links = options.link or (["wan"] if options.quick else list(LINKS))
    count = options.runs or (1 if options.quick else RUNS)
    return [
        (tool, link, work, number)
        for link in links
        for work in wanted_works(options, link)
        for number in range(1, count + 1)
        for tool in tools.values()
        if fits(tool, work)
    ]


def wanted_works(options: argparse.Namespace, link: str) -> list[Work]:
    """The works on a link. Works that only follow another one are part of that."""
    chosen = options.only or (QUICK_WORKS if options.quick else default_works(link))
    works = [WORKS[name] for name in chosen]
    return list(dict.fromkeys(FIRST.get(work, work) for work in works))


def default_works(link: str) -> list[str]:
    """All works, but some only on links where they are informative and do not take all day."""
    return [name for name, work in WORKS.items() if link in work.links]


def measure(ready: Bench, cells: Sequence[tuple[type[Tool], str, Work, int]]) -> Iterator[Run]:
    """Measure one cell after the other, and print the outcomes."""
    begin = time.monotonic()
    for done, (tool, link, work, number) in enumerate(cells, 1):
        for run in ready.measure(tool, link, work, number):
            minutes = (time.monotonic() - begin) / 60
            say(f"[{done}/{len(cells)}, {minutes:.1f} min] {outcome(run)}")
            yield run


def outcome(run: Run) -> str:
    """A run in one line."""
    values = ", ".join(f"{report.number(value)} {name}" for name, value in run.values.items())
    traffic = ", ".join(f"{report.number(value)} {name}" for name, value in run.traffic.items())
    what = f"FAILED: {run.error}" if run.error else f"{values} ({traffic})"
    return f"{run.link} {run.work} {run.tool}: {what}"


def write(options: argparse.Namespace, runs: Sequence[Run], versions: dict[str, str]) -> None:
    """Print the tables, and write the requested files."""
    tables = report.tables(runs)
    for table in tables:
        print(f"\n{report.text(table)}")
    if options.json:
        report.write_json(options.json, runs, versions, options.quick)
    if options.svg:
        options.svg.write_text(chart.svg(tables, "wan"))


def say(line: str) -> None:
    """Print progress, separately from the results."""
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())

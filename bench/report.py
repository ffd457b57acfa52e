"""The report on the runs: medians, ratios, tables and JSON."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from bench.measure import WORKS, Run, Work
from bench.server import LINKS, describe
from bench.tools import TOOLS

OURS = "lazyfs"
"""The prefix of the names of our own tools, which are not peers."""

HEADINGS = ("tool", "median", "lowest", "highest", "/best peer", "/limit", "MB", "requests",
            "memory MB", "runs", "failed")  # fmt: skip


@dataclass(frozen=True)
class Row:
    """All runs of one tool at one work over one link; None is unknown."""

    tool: str
    median: float | None
    lowest: float | None
    highest: float | None
    to_best_peer: float | None
    to_limit: float | None
    megabytes: float | None
    requests: float | None
    memory: float | None
    runs: int
    errors: list[str]


@dataclass(frozen=True)
class Table:
    """All tools at one work over one link."""

    link: str
    work: Work
    rows: list[Row]


def tables(runs: Iterable[Run]) -> list[Table]:
    """The runs by link and work, in the order of LINKS and WORKS."""
    cells: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        cells.setdefault((run.link, run.work), []).append(run)
    return [
        Table(link, work, rows(work, cells[link, name]))
        for link in LINKS
        for name, work in WORKS.items()
        if (link, name) in cells
    ]


def rows(work: Work, runs: Sequence[Run]) -> list[Row]:
    """One row per tool, with its ratios to the best peer and to the limit."""
    by_tool: dict[str, list[Run]] = {}
    for run in runs:
        by_tool.setdefault(run.tool, []).append(run)
    medians = {tool: median(values(work, its)) for tool, its in by_tool.items()}
    known = {tool: value for tool, value in medians.items() if value is not None}
    peers = [value for tool, value in known.items() if is_peer(tool)]
    best = (max if work.higher_is_better else min)(peers, default=None)
    limit = known.get(work.limit)
    return [row(work, tool, its, medians[tool], best, limit) for tool, its in by_tool.items()]


def with_transfer(limit: float | None, link: str, megabytes: float | None) -> float | None:
    """A limit in seconds, plus the time for this transfer at the link's full rate."""
    rate = LINKS[link].rate
    if limit is None or megabytes is None or not rate:
        return limit
    return limit + megabytes * 8e6 / rate


def row(
    work: Work, tool: str, runs: list[Run], middle: float | None, best: float | None,
    limit: float | None,
) -> Row:  # fmt: skip
    """The row of one tool."""
    measured = values(work, runs)
    good = [run for run in runs if not run.error]
    traffic = [run for run in good if run.traffic.get("requests")]
    megabytes = median([run.traffic["bytes"] / 1e6 for run in traffic])
    if work.transfer:
        limit = with_transfer(limit, runs[0].link, megabytes)
    return Row(
        tool, middle, min(measured, default=None), max(measured, default=None),
        ratio(middle, best), ratio(middle, limit),
        megabytes,
        median([run.traffic["requests"] for run in traffic]),
        median([run.peak_memory / 1e6 for run in good if run.peak_memory]),
        len(runs), [run.error for run in runs if run.error],
    )  # fmt: skip


def values(work: Work, runs: Iterable[Run]) -> list[float]:
    """The values measured by the successful runs."""
    return [run.values[work.metric] for run in runs if not run.error]


def median(numbers: Sequence[float]) -> float | None:
    """The median; None without numbers."""
    return statistics.median(numbers) if numbers else None


def ratio(value: float | None, reference: float | None) -> float | None:
    """`value` divided by `reference`; None if either is unknown."""
    return value / reference if value is not None and reference else None


def is_peer(tool: str) -> bool:
    """Whether a tool is a peer: neither lazyfs nor a limit."""
    return tool in TOOLS and not tool.startswith(OURS) and not TOOLS[tool].limit


def text(table: Table) -> str:
    """A table as text."""
    better = "higher" if table.work.higher_is_better else "lower"
    title = f"{table.link} ({describe(LINKS[table.link])}) · {table.work.title}"
    lines = [HEADINGS, *map(cells, table.rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])])
        for line in lines
    ]
    why = [f"  {row.tool}: {error}" for row in table.rows for error in sorted(set(row.errors))]
    return "\n".join([f"{title}: {table.work.metric}, {better} is better", *aligned, *why])


def cells(row: Row) -> tuple[str, ...]:
    """A row's cells as text."""
    return (
        row.tool, number(row.median), number(row.lowest), number(row.highest),
        number(row.to_best_peer), number(row.to_limit), number(row.megabytes),
        number(row.requests), number(row.memory), str(row.runs), str(len(row.errors) or ""),
    )  # fmt: skip


def number(value: float | None) -> str:
    """A number with three significant digits."""
    if value is None:
        return "-"
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def write_json(path: Path, runs: Sequence[Run], versions: dict[str, str], quick: bool) -> None:
    """Write all runs, the tables, and the machine that they were measured on."""
    content = {
        "when": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "machine": {
            "cpus": os.cpu_count(),
            "kernel": platform.release(),
            "cpu": platform.machine(),
        },
        "python": platform.python_version(),
        "quick": quick,
        "versions": versions,
        "links": {name: asdict(link) for name, link in LINKS.items()},
        "tables": [asdict(table) for table in tables(runs)],
        "runs": [asdict(run) for run in runs],
    }
    path.write_text(json.dumps(content, indent=1) + "\n")

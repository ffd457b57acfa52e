"""The chart for the README: bars, written directly as SVG, for light and dark backgrounds."""

from __future__ import annotations

from collections.abc import Sequence
from xml.sax.saxutils import escape

from bench.report import OURS, Row, Table, number
from bench.server import LINKS, describe
from bench.tools import TOOLS

PANELS = ("seq", "r1", "r16", "job")
LABELS = {
    "nbdkit": "nbdkit curl",
    "nbdkit-cow": "nbdkit curl, cow-on-read",
    "nbdkit-cache": "nbdkit curl, cache 256k",
    "qemu": "qemu-storage-daemon",
    "rclone": "rclone mount, full cache",
    "httpdirfs": "httpdirfs, cache",
    "curl": "limit: curl",
    "local": "limit: local file",
}
COLUMNS = 2
PANEL = 430
"""All in SVG's units, which are pixels at the chart's nominal size."""
NAMES = 160
LINE = 22
BAR = 14
HEAD = 48
GAP = 24

STYLE = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #24292f; }
.head { font-size: 14px; font-weight: 600; }
.note { fill: #57606a; }
.ours { fill: #0969da; } .peer { fill: #afb8c1; } .limit { fill: none; stroke: #8c959f; }
text.ours { font-weight: 600; fill: #0969da; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; } .note { fill: #9198a1; }
  .ours, text.ours { fill: #4493f8; } .peer { fill: #565e68; } .limit { stroke: #7d8590; }
}
"""


def svg(tables: Sequence[Table], link: str) -> str:
    """The chart of one link; works that were not measured are left out."""
    shown = [t for name in PANELS for t in tables if (t.link, t.work.name) == (link, name)]
    most = max((len(table.rows) for table in shown), default=0)
    height = HEAD + most * LINE + GAP
    lines = -(-len(shown) // COLUMNS)
    width, total = COLUMNS * (PANEL + GAP) + GAP, 40 + lines * height
    parts = [f'<text class="note" x="{GAP}" y="24">{escape(subtitle(link))}</text>']
    for place, table in enumerate(shown):
        x = GAP + place % COLUMNS * (PANEL + GAP)
        y = 40 + place // COLUMNS * height
        parts += [f'<g transform="translate({x} {y})">', *panel(table), "</g>"]
    size = f'viewBox="0 0 {width} {total}" width="{width}" height="{total}"'
    label = f'role="img" aria-label="{escape(subtitle(link))}"'
    begin = f'<svg xmlns="http://www.w3.org/2000/svg" {size} {label}>'
    return "\n".join([begin, f"<style>{STYLE}</style>", *parts, "</svg>\n"])


def subtitle(link: str) -> str:
    """The subtitle of the chart of a link."""
    return f"One 1 GiB image over HTTP, {describe(LINKS[link])}; medians"


def panel(table: Table) -> list[str]:
    """One work: a title, and a bar per tool."""
    better = "more" if table.work.higher_is_better else "less"
    widest = max((row.median or 0 for row in table.rows), default=0) or 1
    title = escape(f"{table.work.title[0].upper()}{table.work.title[1:]}")
    lines = [
        f'<text class="head" x="0" y="16">{title}</text>',
        f'<text class="note" x="0" y="33">{table.work.metric}, {better} is better</text>',
    ]
    for place, row in enumerate(table.rows):
        lines += bar(row, HEAD + place * LINE, widest)
    return lines


def bar(row: Row, y: int, widest: float) -> list[str]:
    """One tool: its name, a bar, and the number behind it."""
    kind = "ours" if row.tool.startswith(OURS) else "limit" if is_limit(row.tool) else "peer"
    emphasis = ' class="ours"' if kind == "ours" else ""
    baseline = y + BAR - 3
    name = escape(LABELS.get(row.tool, row.tool))
    label = f'<text{emphasis} x="{NAMES - 8}" y="{baseline}" text-anchor="end">{name}</text>'
    if row.median is None:
        return [label, f'<text class="note" x="{NAMES}" y="{baseline}">failed</text>']
    length = max(1.0, row.median / widest * (PANEL - NAMES - 90))
    failed = f" ({len(row.errors)} of {row.runs} failed)" if row.errors else ""
    value = f"{number(row.median)}{failed}"
    return [
        label,
        f'<rect class="{kind}" x="{NAMES}" y="{y}" width="{length:.1f}" height="{BAR}" rx="2"/>',
        f'<text{emphasis} x="{NAMES + length + 6:.1f}" y="{baseline}">{value}</text>',
    ]


def is_limit(tool: str) -> bool:
    """Whether the tool shows the best possible value."""
    return tool in TOOLS and TOOLS[tool].limit

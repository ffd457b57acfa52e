"""``lazyfs top WHERE``: a live screen of one daemon."""

import shutil
import time
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.text import Text

from lazyfs.cli import heatmap
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.status import summary
from lazyfs.cli.steer import parser
from lazyfs.cli.terminal import is_utf8
from lazyfs.cli.words import as_type
from lazyfs.core.options import format_size, parse_duration
from lazyfs.core.texts import printable
from lazyfs.daemon.client import Daemon, daemon_at

_EVERY = 1.0  # seconds
_SHORTEST = 0.1  # seconds
_BARS, _ASCII_BARS = " ▁▂▃▄▅▆▇█", " ._-=+*#@"
_MAP_ROWS = 6


def main(arguments: Sequence[str]) -> int:
    """Show the screen until Ctrl-C or the daemon's end, or once if stdout is no terminal."""
    given = _parser().parse_args(arguments)
    daemon, history = daemon_at(given.where), deque[float](maxlen=600)
    console = Console()
    if not console.is_terminal:
        with printing():
            console.print(_screen(daemon, history))
        return 0
    # Nothing else prints, and rich's replacement of stdout would hide its encoding.
    plain = Live(
        console=console, screen=True, auto_refresh=False,
        redirect_stdout=False, redirect_stderr=False,
    )  # fmt: skip
    with plain as live:
        while True:
            live.update(_screen(daemon, history), refresh=True)
            time.sleep(max(given.every, _SHORTEST))


def _parser() -> Parser:
    made = parser("top", "Watch a daemon at work, until Ctrl-C.", "/mnt/img")
    made.add_argument("--every", metavar="TIME", type=as_type(parse_duration), default=_EVERY,
                      help="how often to look (default: 1s)")  # fmt: skip
    return made


def _screen(daemon: Daemon, history: deque[float]) -> RenderableType:
    """The screen, as much as fits on the terminal. Raises ControlError if the daemon has ended."""
    width, height = shutil.get_terminal_size()
    images = daemon.ask("status")["images"]
    cells = _MAP_ROWS * (width - 2)
    maps = {image["name"]: daemon.cells(image["name"], cells) for image in images}
    history.append(sum(image["flow"] for image in images))
    parts = [Text(printable(f"{daemon.where}  (process {daemon.status['pid']})"), "bold")]
    for image in images:
        parts += _image(image, maps[image["name"]], width)
    parts += _throughput(history, width)
    parts += _slow_reads(images)
    left = height - 1 - len(parts)
    parts += [Text(printable(line)) for line in _log(daemon, left)]
    for line in parts:
        line.truncate(width)
    return Group(*parts[: height - 1])


def _image(image: dict[str, Any], cells: list[list[float]], width: int) -> Iterator[Text]:
    yield Text(printable(image["url"]))
    for name, value in summary(image).items():
        colour = "red" if image["trouble"] and name == "server" else ""
        yield Text(printable(f"  {name:<8}{value}"), colour)
    for row in heatmap.rows(cells, max(1, width - 2), ascii_only=not is_utf8()):
        yield Text.assemble("|", row, "|")


def _throughput(history: deque[float], width: int) -> list[Text]:
    """A chart of the last minutes, the newest on the right."""
    bars = _BARS if is_utf8() else _ASCII_BARS
    most = max(*history, 1.0)
    recent = list(history)[-max(1, width - 1) :]
    line = "".join(bars[round(rate / most * (len(bars) - 1))] for rate in recent)
    return [Text(f"throughput, at most {format_size(int(most))}/s"), Text(line, "green")]


def _slow_reads(images: list[dict[str, Any]]) -> list[Text]:
    reads = [read for image in images for read in image["slowest"]]
    if not reads:
        return []
    reads.sort(key=lambda read: -float(read["seconds"]))
    told = ", ".join(f"{1000 * read['seconds']:.0f} ms" for read in reads[:5])
    return [Text(f"slowest reads of the last minute: {told}")]


def _log(daemon: Daemon, most: int) -> list[str]:
    lines: list[str] = daemon.ask("log")["lines"]
    return lines[-most:] if most > 0 else []

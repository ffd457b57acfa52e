"""``lazyfs map WHERE``: show which parts of an image are local."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lazyfs.cli import heatmap
from lazyfs.cli.heatmap import Cell
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser
from lazyfs.cli.terminal import is_utf8
from lazyfs.core.errors import OutputError
from lazyfs.core.options import format_size
from lazyfs.core.texts import printable
from lazyfs.daemon.client import daemon_at
from lazyfs.system.atomicfile import write_whole

_ROWS = 12  # on a terminal; all full, since blanks in the last would look like missing parts
_DRAWN = 1024  # cells in a drawing


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    daemon = daemon_at(given.where)
    cells = _ROWS * _width() if given.svg is None else _DRAWN
    images = [
        (
            printable(f"{image['name']}  {format_size(image['size'])}"),
            daemon.cells(image["name"], cells),
        )
        for image in daemon.status["images"]
    ]
    if given.svg is None:
        _print(images)
    else:
        _draw(given.svg, images)
    return 0


def _parser() -> Parser:
    made = parser("map", "Show which parts of an image are here.", "/mnt/img")
    made.add_argument("--svg", metavar="FILE", type=Path, help="draw it into a file")
    return made


def _print(images: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    width = _width()
    console = Console(highlight=False, width=width + 2)
    with printing():
        for title, cells in images:
            print(title)
            for row in heatmap.rows(cells, width, ascii_only=not is_utf8()):
                console.print(Text.assemble("|", row, "|"))
        print(heatmap.legend(ascii_only=not is_utf8()))


def _width() -> int:
    """The width of a row, between its bars."""
    return max(8, shutil.get_terminal_size().columns - 2)


def _draw(path: Path, images: Sequence[tuple[str, Sequence[Cell]]]) -> None:
    """Write the SVG file. Raises OutputError."""
    try:
        write_whole(path, heatmap.svg(images).encode(), 0o666)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error

"""``lazyfs map WHERE``: which parts of an image are here."""

import shutil
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from lazyfs.cli import heatmap
from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import cells_of, parser
from lazyfs.cli.terminal import for_stdout, is_utf8, printing
from lazyfs.control import daemon_at
from lazyfs.errors import OutputError
from lazyfs.options import format_size
from lazyfs.texts import printable

_ROWS = 16
_MOST_CELLS = 4096  # that a daemon gives
_SIDE = 8  # pixels of a cell


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    width = max(8, shutil.get_terminal_size().columns - 2) if given.svg is None else 64
    daemon, cells = daemon_at(given.where), min(_MOST_CELLS, _ROWS * width)
    images = [
        {"name": image["name"], "size": image["size"],
         "cells": cells_of(daemon, image["name"], cells)}
        for image in daemon.status["images"]
    ]  # fmt: skip
    if given.svg is not None:
        _draw(given.svg, images)
        return 0
    console = Console(highlight=False, width=width + 2)
    with printing():
        for image in images:
            print(for_stdout(f"{image['name']}  {format_size(image['size'])}"))
            for row in heatmap.rows(image["cells"], width, ascii_only=not is_utf8()):
                console.print(Text.assemble("|", row, "|"))
        print(for_stdout(heatmap.legend(ascii_only=not is_utf8())))
    return 0


def _parser() -> Parser:
    made = parser("map", "Show which parts of an image are here.", "/mnt/img")
    made.add_argument("--svg", metavar="FILE", type=Path, help="draw it into a file")
    return made


def _draw(path: Path, images: list[dict[str, Any]]) -> None:
    """Raises OutputError."""
    width, line = 64, 2 * _SIDE
    parts, top = [], 0
    for image in images:
        title = f"{image['name']}  {format_size(image['size'])}"
        parts.append(f'<text x="0" y="{top + line - 4}">{escape(printable(title))}</text>')
        top += line
        for start in range(0, len(image["cells"]), width):
            for x, (local, ahead, coming) in enumerate(image["cells"][start : start + width]):
                colour = "#d97706" if coming else "#0ea5e9" if 2 * ahead > local else "#15803d"
                if local or coming:
                    parts.append(
                        f'<rect x="{x * _SIDE}" y="{top}" width="{_SIDE}" height="{_SIDE}" '
                        f'fill="{colour}" fill-opacity="{max(local, coming)}"/>'
                    )
            top += _SIDE
        top += _SIDE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * _SIDE} {top}"'
    style = 'font-family="monospace" font-size="12"'
    text = "\n".join([f"{head} {style}>", *parts, "</svg>", ""])
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error

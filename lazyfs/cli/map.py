"""``lazyfs map WHERE``: which parts of an image are here."""

import shutil
import sys
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser
from lazyfs.cli.terminal import for_stdout, printing
from lazyfs.control import daemon_at
from lazyfs.errors import OutputError
from lazyfs.options import format_size

_SHADES, _ASCII = " ░▒▓█", " .:+#"
_ROWS = 16
_SIDE = 8  # pixels of a cell


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    width = max(8, shutil.get_terminal_size().columns - 2) if given.svg is None else 64
    images = daemon_at(given.where).ask("map", cells=min(4096, _ROWS * width))["images"]
    if given.svg is not None:
        _draw(given.svg, images)
        return 0
    encoding = (sys.stdout.encoding or "").lower()
    shades = _SHADES if encoding.startswith("utf") else _ASCII
    with printing():
        for image in images:
            print(for_stdout(f"{image['name']}  {format_size(image['size'])}"))
            for row in _rows(image["local"], width):
                print("|" + "".join(_shade(share, shades) for share in row).ljust(width) + "|")
    return 0


def _parser() -> Parser:
    made = parser("map", "Show which parts of an image are here.", "/mnt/img")
    made.add_argument("--svg", metavar="FILE", type=Path, help="draw it into a file")
    return made


def _rows(cells: list[float], width: int) -> list[list[float]]:
    return [cells[start : start + width] for start in range(0, len(cells), width)]


def _shade(share: float, shades: str) -> str:
    """Of five, the one for this share; the first and the last only for none and all."""
    if share in (0, 1):
        return shades[0 if share == 0 else -1]
    return shades[1 + int(share * (len(shades) - 2))]


def _draw(path: Path, images: list[dict[str, Any]]) -> None:
    """Raises OutputError."""
    width, line = 64, 2 * _SIDE
    parts, top = [], 0
    for image in images:
        title = f"{image['name']}  {format_size(image['size'])}"
        parts.append(f'<text x="0" y="{top + line - 4}">{escape(title)}</text>')
        top += line
        for row in _rows(image["local"], width):
            parts += [
                f'<rect x="{x * _SIDE}" y="{top}" width="{_SIDE}" height="{_SIDE}" '
                f'fill="#2563eb" fill-opacity="{share}"/>'
                for x, share in enumerate(row)
                if share
            ]
            top += _SIDE
        top += _SIDE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width * _SIDE} {top}"'
    style = 'font-family="monospace" font-size="12"'
    text = "\n".join([f"{head} {style}>", *parts, "</svg>", ""])
    try:
        path.write_text(text)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror}") from error

"""A terminal's lines as SVG, light and small: text as text, and block characters as rectangles.

Fonts disagree about the width of block characters, and leave gaps between them; rectangles do not.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby
from xml.sax.saxutils import escape

from pyte.screens import Char
from terminal import COLUMNS

_WIDTH, _HEIGHT = 8, 17  # of a character; in SVG's units, which are pixels at its own size
_BASELINE = 13
_MARGIN = 16
_HEAD = 36

_BACKGROUND, _HEADING, _RULE = "#0d1117", "#9198a1", "#30363d"
_COLOURS = {
    "default": "#d1d7e0",
    "red": "#ff7b72",
    "green": "#3fb950",
    "brown": "#d29922",  # pyte's word for yellow
    "blue": "#58a6ff",
    "magenta": "#bc8cff",
    "cyan": "#39c5cf",
}
_SHADES = {"\N{LIGHT SHADE}": 0.25, "\N{MEDIUM SHADE}": 0.5, "\N{DARK SHADE}": 0.75}
_BARS = {chr(0x2580 + eighths): eighths / 8 for eighths in range(1, 9)}  # the last is full
_FONT = "'DejaVu Sans Mono', ui-monospace, Menlo, Consolas, monospace"


def svg(title: str, lines: Sequence[Sequence[Char]]) -> str:
    """The picture of a terminal, with the command as its title."""
    width = COLUMNS * _WIDTH + 2 * _MARGIN
    height = _HEAD + len(lines) * _HEIGHT + 2 * _MARGIN
    style = f'font-family="{_FONT}" font-size="13.3" xml:space="preserve"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}"'
    parts = [
        f'{head} width="{width}" height="{height}" {style}>',
        f'<rect width="{width}" height="{height}" rx="8" fill="{_BACKGROUND}"/>',
        f'<path d="M0 {_HEAD}H{width}" stroke="{_RULE}"/>',
        f'<text x="{_MARGIN}" y="23" fill="{_HEADING}">$ {escape(title)}</text>',
    ]
    for number, line in enumerate(lines):
        y = _HEAD + _MARGIN + number * _HEIGHT
        parts += [f'<g transform="translate({_MARGIN} {y})">', *_line(line), "</g>"]
    return "\n".join([*parts, "</svg>", ""])


def _line(line: Sequence[Char]) -> Iterator[str]:
    """The runs of characters that look alike."""
    column = 0
    for (block, colour, bold), run in groupby(line, _look):
        characters = "".join(character.data for character in run)
        if block:
            yield _rectangle(block, column, len(characters), colour)
        else:
            yield from _words(characters, column, colour, bold)
        column += len(characters)


def _look(character: Char) -> tuple[str, str, bool]:
    """What two characters must have in common: the block that they are, if any, and the style."""
    block = character.data if character.data in _SHADES or character.data in _BARS else ""
    return block, _COLOURS[character.fg], character.bold


def _rectangle(block: str, column: int, length: int, colour: str) -> str:
    """A run of one block character."""
    height = round(_HEIGHT * _BARS.get(block, 1.0), 1)
    shade = f' fill-opacity="{_SHADES[block]}"' if block in _SHADES else ""
    place = f'x="{column * _WIDTH}" y="{_HEIGHT - height:g}"'
    return f'<rect {place} width="{length * _WIDTH}" height="{height:g}" fill="{colour}"{shade}/>'


def _words(characters: str, column: int, colour: str, bold: bool) -> Iterator[str]:
    """A run of text. Its length is set, so that it fits whatever font there is."""
    text = characters.strip(" ")
    if not text:
        return
    column += len(characters) - len(characters.lstrip(" "))
    weight = ' font-weight="bold"' if bold else ""
    place = f'x="{column * _WIDTH}" y="{_BASELINE}" textLength="{len(text) * _WIDTH}"'
    yield f'<text {place} fill="{colour}"{weight}>{escape(text)}</text>'

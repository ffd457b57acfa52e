"""An image as rows of cells: local data, prefetched data, and data in flight.

Colours are used on a terminal, but no information is in colours alone.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from html import escape

from rich.text import Text

Cell = Sequence[float]  # [local, ahead, coming], as in the control protocol

_SHADES, _ASCII = " ░▒▓█", " .:*#"
_SIDE = 8  # pixels, of a cell
_WIDTH = 64  # cells per row of a drawing


class _Kind(Enum):
    """A cell's most important state: its colours on a terminal and in a drawing, and its sign."""

    COMING = "yellow", "#d97706", ">"
    AHEAD = "cyan", "#0ea5e9", "+"
    HERE = "green", "#15803d", ""  # shaded by the local share

    def __init__(self, colour: str, drawn: str, sign: str) -> None:
        self.colour, self.drawn, self.sign = colour, drawn, sign


def rows(cells: Sequence[Cell], width: int, *, ascii_only: bool = False) -> Iterator[Text]:
    """The lines for a terminal, ``width`` characters each."""
    shades = _ASCII if ascii_only else _SHADES
    for start in range(0, len(cells), width):
        row = Text()
        for cell in cells[start : start + width]:
            kind = _kind(cell)
            row.append(kind.sign or _shade(cell[0], shades), kind.colour)
        row.pad_right(width - len(row))
        yield row


def legend(*, ascii_only: bool = False) -> str:
    """The meaning of the signs."""
    shades = _ASCII if ascii_only else _SHADES
    here = f"{shades[1]} to {shades[-1]} here"
    return f"{here}   {_Kind.AHEAD.sign} here, not read yet   {_Kind.COMING.sign} coming"


def svg(images: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """A drawing of images, given their titles and cells."""
    parts, top = [], 0
    for title, cells in images:
        top += 2 * _SIDE
        parts.append(f'<text x="0" y="{top - 4}">{escape(title)}</text>')
        for number, cell in enumerate(cells):
            x, y = number % _WIDTH * _SIDE, top + number // _WIDTH * _SIDE
            share = max(cell[0], cell[2])
            parts.append(
                f'<rect x="{x}" y="{y}" width="{_SIDE}" height="{_SIDE}" '
                f'fill="{_kind(cell).drawn}" fill-opacity="{share}"/>'
            )
        top += (-(-len(cells) // _WIDTH) + 1) * _SIDE
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH * _SIDE} {top}"'
    return "\n".join([f'{head} font-family="monospace" font-size="12">', *parts, "</svg>", ""])


def _kind(cell: Cell) -> _Kind:
    local, ahead, coming = cell
    if coming:
        return _Kind.COMING
    return _Kind.AHEAD if 2 * ahead > local else _Kind.HERE


def _shade(share: float, shades: str) -> str:
    """The shade for a share; full and empty are for exactly 1 and 0 only."""
    if share in (0, 1):
        return shades[0 if share == 0 else -1]
    return shades[1 + int(share * (len(shades) - 2))]

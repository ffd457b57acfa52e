"""An image as rows of cells: what is here, what came ahead of its readers, and what is coming.

On a terminal colours say more, but nothing is said by colours alone.
"""

from collections.abc import Iterator, Sequence
from enum import Enum
from html import escape

from rich.text import Text

Cell = Sequence[float]  # [local, ahead, coming], as the control socket has them

_SHADES, _ASCII = " ░▒▓█", " .:*#"
_SIDE = 8  # pixels of a cell
_WIDTH = 64  # cells in a row of a drawing


class _Kind(Enum):
    """What is most worth knowing of a cell: its colours, on a terminal and drawn, and its sign."""

    COMING = "yellow", "#d97706", ">"
    AHEAD = "cyan", "#0ea5e9", "+"
    HERE = "green", "#15803d", ""  # as dark as there is of it

    def __init__(self, colour: str, drawn: str, sign: str) -> None:
        self.colour, self.drawn, self.sign = colour, drawn, sign


def rows(cells: Sequence[Cell], width: int, *, ascii_only: bool = False) -> Iterator[Text]:
    """For a terminal: lines of ``width`` characters."""
    shades = _ASCII if ascii_only else _SHADES
    for start in range(0, len(cells), width):
        row = Text()
        for cell in cells[start : start + width]:
            kind = _kind(cell)
            row.append(kind.sign or _shade(cell[0], shades), kind.colour)
        row.pad_right(width - len(row))
        yield row


def legend(*, ascii_only: bool = False) -> str:
    """What the signs mean."""
    shades = _ASCII if ascii_only else _SHADES
    here = f"{shades[1]} to {shades[-1]} here"
    return f"{here}   {_Kind.AHEAD.sign} here, not read yet   {_Kind.COMING.sign} coming"


def svg(images: Sequence[tuple[str, Sequence[Cell]]]) -> str:
    """A drawing of images: their titles and their cells."""
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
    """The full and the empty one are only for all and nothing."""
    if share in (0, 1):
        return shades[0 if share == 0 else -1]
    return shades[1 + int(share * (len(shades) - 2))]

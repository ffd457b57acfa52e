"""An image as rows of cells: what is here, what came ahead of its readers, and what is coming.

Colours say more, but nothing is said by colours alone.
"""

from collections.abc import Iterator, Sequence

from rich.text import Text

_SHADES, _ASCII = " ░▒▓█", " .:*#"
_COMING, _AHEAD = ">", "+"
_COLOURS = {_COMING: "yellow", _AHEAD: "cyan"}


def rows(
    cells: Sequence[Sequence[float]], width: int, *, ascii_only: bool = False
) -> Iterator[Text]:
    """``cells``: [local, ahead, coming] of each part, as the control socket has them."""
    for start in range(0, len(cells), width):
        row = Text()
        for cell in cells[start : start + width]:
            sign = _sign(cell, _ASCII if ascii_only else _SHADES)
            row.append(sign, _COLOURS.get(sign, "green"))
        row.pad_right(width - len(row))
        yield row


def legend(*, ascii_only: bool = False) -> str:
    """What the signs mean."""
    shades = _ASCII if ascii_only else _SHADES
    return f"{shades[1]} to {shades[-1]} here   {_AHEAD} here, not read yet   {_COMING} coming"


def _sign(cell: Sequence[float], shades: str) -> str:
    """Full and empty shades are only for all and nothing."""
    local, ahead, coming = cell
    if coming:
        return _COMING
    if 2 * ahead > local:
        return _AHEAD
    if local in (0, 1):
        return shades[0 if local == 0 else -1]
    return shades[1 + int(local * (len(shades) - 2))]

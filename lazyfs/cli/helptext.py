"""The layout of a command's help: short, for one screen, or in full, by groups."""

import argparse
from collections.abc import Sequence
from typing import Protocol

_WIDEST = 80  # columns: longer lines are hard to read
_NARROWEST = 50
_LONGEST_NAME = 26  # characters: the help of longer names is on the next line

Row = tuple[str, str]  # an option or argument, and its help


class Rare(str):
    """The help of an option that is shown by ``--help-all`` only."""

    __slots__ = ()


class Described(Protocol):
    """The parts of a ``Parser`` that its help shows."""

    prog: str
    description: str | None
    epilog: str | None
    more: tuple[str, str]

    def groups(self) -> list[tuple[str, list[argparse.Action]]]: ...
    def positionals(self) -> list[argparse.Action]: ...
    def format_usage(self) -> str: ...


def in_short(parser: Described) -> str:
    """The common options only, which fit on one screen."""
    options = [option for _, group in parser.groups() for option in group]
    shown = [o for o in options if not isinstance(o.help, Rare) and not _is_help(o)]
    if any(isinstance(o.help, Rare) for o in options if not _is_help(o)):
        shown += [o for o in options if "--help-all" in o.option_strings]
    rows = [row for option in shown for row in _rows(option)]
    return _page(parser, [_table(rows, _column(rows)), parser.more[0]])


def in_full(parser: Described) -> str:
    """Everything, under the titles of its groups."""
    groups = [(title, [row for o in group for row in _rows(o)]) for title, group in parser.groups()]
    column = _column([row for _, rows in groups for row in rows])
    tables = [f"{title}:\n{_table(rows, column)}" for title, rows in groups if rows]
    return _page(parser, [*tables, parser.more[1]])


def usage(parser: Described) -> str:
    """The usage of a command: ``lazyfs map [OPTION]... WHERE``."""
    words = [parser.prog]
    if any(a.option_strings for _, rows in parser.groups() for a in rows if not _is_help(a)):
        words.append("[OPTION]...")
    return " ".join([*words, *map(_counted, parser.positionals())])


def names(action: argparse.Action) -> list[str]:
    """The spellings of an option, or the placeholder of an argument."""
    return list(action.option_strings) or [value(action)]


def value(action: argparse.Action) -> str:
    """The placeholder for the value of an option or argument; empty if it has none."""
    if action.nargs == 0:
        return ""
    if isinstance(action.metavar, str):
        return action.metavar
    if action.choices is not None:
        return "|".join(map(str, action.choices))
    return action.dest.upper()


def _is_help(action: argparse.Action) -> bool:
    return "--help" in action.option_strings or "--help-all" in action.option_strings


def _counted(action: argparse.Action) -> str:
    name = value(action)
    forms = {
        "?": f"[{name}]",
        "*": f"[{name}]...",
        "+": f"{name}...",
        "A...": f"{name} [ARGUMENT]...",
    }
    return forms.get(str(action.nargs), name)


def _rows(action: argparse.Action) -> list[Row]:
    if isinstance(action, argparse._SubParsersAction):
        return [(choice.dest, choice.help or "") for choice in action._choices_actions]
    spelt = ", ".join(names(action))
    name = f"{spelt} {value(action)}".rstrip() if action.option_strings else spelt
    return [(name, action.help or "")]


def _column(rows: Sequence[Row]) -> int:
    """The column at which the help of these rows begins."""
    fitting = [len(name) for name, _ in rows if len(name) <= _LONGEST_NAME]
    return 2 + max(fitting, default=0) + 2


def _table(rows: Sequence[Row], column: int) -> str:
    return "\n".join(line for row in rows for line in _lines(*row, column))


def _lines(name: str, what: str, column: int) -> list[str]:
    import shutil  # imported here, because most commands show no help
    import textwrap

    width = max(_NARROWEST, min(_WIDEST, shutil.get_terminal_size().columns))
    lines = textwrap.wrap(what, width - column) or [""]
    lead = f"  {name}".ljust(column)
    if len(lead) > column:
        return [lead, *(" " * column + line for line in lines)]
    return [f"{lead}{lines[0]}".rstrip(), *(" " * column + line for line in lines[1:])]


def _page(parser: Described, tables: Sequence[str]) -> str:
    parts = [parser.format_usage(), parser.description, *tables, parser.epilog]
    return "\n\n".join(part.strip("\n") for part in parts if part) + "\n"

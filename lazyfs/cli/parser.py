"""argparse, with help that fits on a screen, and errors in one line with exit code 2.

``--help`` shows the common options; ``--help-all`` also shows those whose help is ``Rare``.
"""

import argparse
import importlib
import re
import sys
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from lazyfs.cli import helptext
from lazyfs.cli.helptext import Rare
from lazyfs.cli.output import printing
from lazyfs.core import address
from lazyfs.core.errors import UsageError


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UsageErrors and accepts no abbreviations."""

    def __init__(
        self,
        prog: str,
        description: str,
        epilog: str = "",
        usage: str = "",
        more: tuple[str, str] = ("", ""),
        **for_argparse: Any,
    ) -> None:
        """``more``: text before the epilog, in ``--help`` and in ``--help-all``.

        ``for_argparse``: keyword arguments that argparse passes to the parsers of subcommands.
        """
        super().__init__(
            prog=prog,
            usage=usage or None,
            description=description,
            epilog=epilog,
            allow_abbrev=False,
            add_help=False,
            **for_argparse,
        )
        self._positionals.title = "arguments"
        self.more = more
        self.in_full = False
        self.add_argument("-h", "--help", action="help", help=Rare("show the common options"))
        self.add_argument("--help-all", action=_HelpAll, nargs=0, help="show all options")

    def takes_value(self, option: str) -> bool | None:
        """Whether ``--option`` needs a value; None if there is no such option."""
        action = self.option(option)
        return None if action is None else action.nargs != 0

    def option(self, name: str) -> argparse.Action | None:
        """The action of an option like ``--name``; None if there is no such option."""
        return self._option_string_actions.get(name)

    def options(self) -> list[str]:
        """All options, in every spelling."""
        return list(self._option_string_actions)

    def groups(self) -> list[tuple[str, list[argparse.Action]]]:
        """The groups of arguments and options: titles, and actions that are not hidden."""
        return [
            (group.title or "", [a for a in group._group_actions if a.help != argparse.SUPPRESS])
            for group in self._action_groups
        ]

    def named(self) -> list[argparse.Action]:
        """The options that take part in parsing: all but help and version."""
        shown = ("help", "help_all", "version")
        return [a for a in self._actions if a.option_strings and a.dest not in shown]

    def positionals(self) -> list[argparse.Action]:
        """The positional arguments, hidden ones too, in order."""
        return self._get_positional_actions()

    def commands(self) -> dict[str, "Parser"]:
        """The subcommands, by name."""
        found: dict[str, Parser] = {}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                found |= action.choices
        return found

    def format_usage(self) -> str:
        return f"usage: {self.usage or helptext.usage(self)}\n"

    def format_help(self) -> str:
        return helptext.in_full(self) if self.in_full else helptext.in_short(self)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help, or the version. Unlike argparse's method, it does not hide a failed write."""
        with printing():
            (file or sys.stdout).write(message)

    def error(self, message: str) -> NoReturn:
        # The value of a misspelt option may be a secret.
        unknown = re.match(r"unrecognized arguments: ([^ =]*)", message)
        if unknown is None:
            said, _, cure = message.partition("; ")  # an option's type may supply its own cure
            raise UsageError(said, cure or f"see {self.prog} --help")
        if not unknown[1].startswith("-"):
            shown = f"unrecognized arguments: {address.shown(unknown[1])}"
            raise UsageError(shown, f"see {self.prog} --help")
        raise self._unknown(unknown[1])

    def _unknown(self, option: str) -> UsageError:
        within = (name for parser in self.commands().values() for name in parser.options())
        meant = suggestion(option, [*self.options(), *within])
        shown = option if meant or option.startswith("--") else option[:2]
        return UsageError(f"{shown} is unknown", meant or f"see {self.prog} --help")

    def _parse_optional(self, arg_string: str) -> Any:
        # argparse takes a word with a space for an argument, unless it begins with a known option.
        # But it may be a misspelt option, with a secret. (Subcommands know their own options.)
        named = re.fullmatch(r"(--?[a-zA-Z][\w-]*)=.* .*", arg_string, re.DOTALL)
        if named and self.option(named[1]) is None and not self.commands():
            raise self._unknown(named[1])
        return super()._parse_optional(arg_string)

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(choice) for choice in action.choices]
            of = action.option_strings[-1] if action.option_strings else self.prog
            raise UsageError(
                f"{of} knows no {address.shown(value)!r}",
                suggestion(value, known) or f"it knows {listed(known)}",
            )


def parser_of(command: str) -> Parser:
    """The parser of a command."""
    parser: Parser = importlib.import_module(f"lazyfs.cli.{command}")._parser()
    return parser


class _HelpAll(argparse.Action):
    """``--help-all``: like ``--help``, with all options."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any, **__: Any) -> NoReturn:
        if isinstance(parser, Parser):
            parser.in_full = True
        parser.print_help()
        parser.exit()


def suggestion(word: str, known: Iterable[str]) -> str:
    """A question like "did you mean ...?"; empty if no known word is similar."""
    import difflib  # imported here, because few command lines are wrong

    def bare(name: str) -> str:
        return name.lstrip("-").replace("_", "-").lower()

    longer = {bare(name): name for name in known if len(bare(name)) > 1}
    found = difflib.get_close_matches(bare(word), longer, n=1)
    return f"did you mean {longer[found[0]]}?" if found else ""


def listed(names: Sequence[str]) -> str:
    """The names, like ``a, b or c``."""
    return " or ".join(filter(None, [", ".join(names[:-1]), *names[-1:]]))

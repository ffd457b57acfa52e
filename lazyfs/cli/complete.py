"""``lazyfs __complete WORD...``: completions of the last word, for the shells.

Each line of output is a word, a tab and its meaning; or ``:file`` or ``:directory``, which the
shell completes itself. The shells' scripts are in contrib/completion.
"""

import argparse
from collections.abc import Iterable, Iterator, Sequence

from lazyfs.cli import helptext, mount
from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.parser import Parser, parser_of
from lazyfs.core.texts import printable

Row = tuple[str, str]  # a word and its meaning

FILE, DIRECTORY = (":file", ""), (":directory", "")
# A value's placeholder tells its kind.
_PATHS = {
    **dict.fromkeys(("FILE", "PATH", "PROFILE", "IMAGE", "DEST", "DEVICE"), FILE),
    **dict.fromkeys(("DIR", "MOUNTPOINT"), DIRECTORY),
}
_ENDING = ("lazyfs umount", "lazyfs detach")  # their argument is the place of a daemon


def main(arguments: Sequence[str]) -> int:
    for word, what in rows(arguments):
        print(printable(word), printable(what), sep="\t")
    return 0


def rows(words: Sequence[str]) -> list[Row]:
    """The completions of the last word."""
    *before, word = words or [""]
    if not before and not word.startswith("-"):
        return _fitting(word, COMMANDS.items())
    parser = parser_of("mount")
    if before and before[0] in COMMANDS:
        parser = parser_of(before.pop(0))
    return _fitting(word, _Line(parser, before).next(word))


def _fitting(word: str, found: Iterable[Row]) -> list[Row]:
    return [row for row in found if row in (FILE, DIRECTORY) or row[0].startswith(word)]


class _Line:
    """The words before the one to complete, parsed to determine what may come next."""

    def __init__(self, parser: Parser, before: Sequence[str]) -> None:
        self._parser = parser
        self._waiting: argparse.Action | None = None  # for its value
        self._arguments = 0
        self._only_arguments = False
        for word in before:
            self._pass(word)

    def _pass(self, word: str) -> None:
        if self._waiting is not None:
            self._waiting = None
        elif word == "--":
            self._only_arguments = True
        elif word.startswith("-") and not self._only_arguments:
            option = self._parser.option(word)
            self._waiting = option if option is not None and option.nargs != 0 else None
        elif word in self._parser.commands():
            self._parser = self._parser.commands()[word]
        else:
            self._arguments += 1

    def next(self, word: str) -> Iterator[Row]:
        """The candidates for the next word, of which ``word`` has been typed."""
        if self._waiting is not None:
            yield from self._values(self._waiting, word)
        elif word.startswith("-") and not self._only_arguments:
            yield from self._options(word)
        elif self._parser.commands():
            yield from (
                (name, sub.description or "") for name, sub in self._parser.commands().items()
            )
        elif self._parser.positionals():
            known = self._parser.positionals()
            yield from self._values(known[min(self._arguments, len(known) - 1)], word)

    def _options(self, word: str) -> Iterator[Row]:
        name, equals, value = word.partition("=")
        option = self._parser.option(name)
        if equals and option is not None:
            for row in self._values(option, value):
                yield row if row in (FILE, DIRECTORY) else (f"{name}={row[0]}", row[1])
            return
        for _, group in self._parser.groups():
            for option in group:
                yield from ((spelling, option.help or "") for spelling in option.option_strings)

    def _values(self, action: argparse.Action, word: str) -> Iterator[Row]:
        kind = helptext.value(action).rpartition(" ")[2].strip("[].")
        if action.choices is not None:
            yield from ((str(choice), "") for choice in action.choices)
        elif kind == "WHERE" or self._parser.prog in _ENDING:
            yield from _daemons()
        elif kind == "CACHE":
            yield from _caches()
        elif kind == "OPTS" and self._parser.prog == "lazyfs":
            yield from _mount_options(self._parser, word)
        elif kind in _PATHS:
            yield _PATHS[kind]


def _daemons() -> Iterator[Row]:
    from lazyfs.daemon.client import running

    return ((daemon.where, ", ".join(daemon.images)) for daemon in running())


def _caches() -> Iterator[Row]:
    from lazyfs.cache.maintenance import all_caches
    from lazyfs.cli.common import cache_directory

    return ((cache.name, cache.url) for cache in all_caches(cache_directory(None)))


def _mount_options(parser: Parser, word: str) -> Iterator[Row]:
    """The candidates for the last of the comma-separated mount options."""
    done = word[: word.rfind(",") + 1]
    for name in mount.names_in_o(parser):
        option = parser.option(f"--{name.replace('_', '-')}")
        takes_value = option is not None and option.nargs != 0
        yield f"{done}{name}{'=' if takes_value else ''}", (option and option.help) or ""

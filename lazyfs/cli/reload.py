"""``lazyfs reload WHERE``: have a daemon reload its credentials."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser, tell


def main(arguments: Sequence[str]) -> int:
    return tell("reload", _parser(), arguments)


def _parser() -> Parser:
    what = "Read --header @FILE and --netrc again, and run --header-command again."
    return parser("reload", what, "/mnt/img")

"""``lazyfs resume WHERE``: resume background fetches after ``lazyfs pause``."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser, tell


def main(arguments: Sequence[str]) -> int:
    return tell("resume", _parser(), arguments)


def _parser() -> Parser:
    return parser("resume", "Go on with what lazyfs pause has stopped.", "/mnt/img")

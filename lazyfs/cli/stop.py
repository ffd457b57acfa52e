"""``lazyfs stop WHERE``: end a daemon, unless it is in use."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser, tell


def main(arguments: Sequence[str]) -> int:
    return tell("stop", _parser(), arguments)


def _parser() -> Parser:
    return parser("stop", "End a daemon, unless its mount or device is in use.", "/mnt/img")

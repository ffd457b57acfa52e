"""``lazyfs pause WHERE``: stop background fetches."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser, tell


def main(arguments: Sequence[str]) -> int:
    return tell("pause", _parser(), arguments)


def _parser() -> Parser:
    return parser("pause", "Fetch nothing that nobody waits for, until lazyfs resume.", "/mnt/img")

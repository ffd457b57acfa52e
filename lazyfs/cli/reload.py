"""``lazyfs reload WHERE``: have a daemon reload credentials, and open its log anew."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser, tell


def main(arguments: Sequence[str]) -> int:
    return tell("reload", _parser(), arguments)


def _parser() -> Parser:
    what = "Read logins again (--header @FILE, --netrc), and open --log-file anew."
    return parser("reload", what, "/mnt/img")

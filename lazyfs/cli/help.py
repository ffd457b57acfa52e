"""``lazyfs help COMMAND``: the same as ``lazyfs COMMAND --help``."""

from collections.abc import Sequence

from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.main import run
from lazyfs.cli.parser import Parser


def main(arguments: Sequence[str]) -> int:
    return run([*arguments, "--help"])


def _parser() -> Parser:
    parser = Parser("lazyfs help", "Show the help of a command.", "example:\n  lazyfs help serve\n")
    parser.add_argument(
        "command",
        nargs="*",
        choices=list(COMMANDS),
        metavar="COMMAND",
        help="which (default: lazyfs itself)",
    )
    return parser

"""``lazyfs rate WHERE RATE``: limit how fast the rest of an image is fetched."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser
from lazyfs.cli.words import as_type
from lazyfs.core.options import parse_rate
from lazyfs.daemon.client import daemon_at


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    daemon_at(given.where).ask("rate", rate=given.rate)
    return 0


def _parser() -> Parser:
    made = parser("rate", "Limit how fast the rest of an image is fetched.", "/mnt/img 10M/s")
    made.add_argument("rate", metavar="RATE", type=as_type(_parse), help="10M/s; none for no limit")
    return made


def _parse(text: str) -> str | None:
    """The rate, as sent to the daemon. Raises UsageError."""
    if text == "none":
        return None
    parse_rate(text)
    return text

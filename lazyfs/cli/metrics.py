"""``lazyfs metrics``: metrics of running daemons, for Prometheus."""

import sys
import time
from collections.abc import Sequence
from pathlib import Path

from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.words import as_type
from lazyfs.core.errors import OutputError, UsageError
from lazyfs.core.options import parse_duration
from lazyfs.daemon.client import daemon_at, running
from lazyfs.system.atomicfile import write_whole

_EXAMPLE = """\
example:
  lazyfs metrics --every 15s --output /var/lib/node-exporter/lazyfs.prom
"""


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    if given.every is not None and given.output is None:
        raise UsageError("--every is for a file", "give --output FILE")
    while True:
        _write(_text(given.where), given.output)
        if given.every is None:
            return 0
        time.sleep(given.every)


def _parser() -> Parser:
    parser = Parser("lazyfs metrics", "Print metrics of what runs, for Prometheus.", _EXAMPLE)
    parser.add_argument(
        "where", nargs="?", metavar="WHERE", help="a mount point, a device, or a URL (default: all)"
    )
    parser.add_argument(
        "--output",
        metavar="FILE",
        help="write them there, as a whole: for node_exporter's textfile collector",
    )
    parser.add_argument(
        "--every", metavar="TIME", type=as_type(parse_duration), help="again and again"
    )
    return parser


def _text(where: str | None) -> str:
    from lazyfs.daemon.metrics import as_text

    return as_text([daemon_at(where)] if where else running())


def _write(text: str, file: str | None) -> None:
    """Write to a file, or else to stdout. Raises OutputError."""
    if file is None:
        with printing():
            sys.stdout.write(text)
        return
    try:
        write_whole(Path(file), text.encode(), 0o644)
    except OSError as error:
        raise OutputError(f"{file} cannot be written: {error.strerror}") from error

"""``lazyfs detach /dev/nbdN``: detach an image from its block device."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.daemon.detach import detach

_EXAMPLE = """\
example:
  lazyfs detach /dev/nbd0
"""


def main(arguments: Sequence[str]) -> int:
    detach(_parser().parse_args(arguments).device)
    return 0


def _parser() -> Parser:
    parser = Parser("lazyfs detach", "Detach an image from its block device.", _EXAMPLE)
    parser.add_argument("device", metavar="DEVICE", help="the device, like /dev/nbd0")
    return parser

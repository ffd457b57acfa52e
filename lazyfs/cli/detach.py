"""``lazyfs detach /dev/nbdN``."""

from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.detach import detach

_EXAMPLE = """\
example:
  lazyfs detach /dev/nbd0
"""


def main(arguments: Sequence[str]) -> int:
    parser = Parser("lazyfs detach", "Detach an image from its block device.", _EXAMPLE)
    parser.add_argument("device", metavar="DEVICE")
    detach(parser.parse_args(arguments).device)
    return 0

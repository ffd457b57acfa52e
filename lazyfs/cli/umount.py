"""``lazyfs umount MOUNTPOINT``."""

import os
from collections.abc import Sequence
from pathlib import Path

from lazyfs.cli.parser import Parser
from lazyfs.unmount import unmount

_EXAMPLE = """\
example:
  lazyfs umount /mnt/img
"""


def main(arguments: Sequence[str]) -> int:
    unmount(Path(os.path.realpath(_parser().parse_args(arguments).mountpoint)))
    return 0


def _parser() -> Parser:
    parser = Parser("lazyfs umount", "Unmount a mount of lazyfs.", _EXAMPLE)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    return parser

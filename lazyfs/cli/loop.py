"""``lazyfs loop URL MOUNTPOINT``: mount the filesystem in an image."""

import argparse
from collections.abc import Sequence
from dataclasses import replace

from lazyfs.cli.common import hide_secrets, mount_options, named_images
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_options
from lazyfs.cli.helptext import Rare
from lazyfs.cli.output import report
from lazyfs.cli.parser import Parser
from lazyfs.core.errors import UsageError

_USAGE = "lazyfs loop [OPTION]... URL MOUNTPOINT"
_EXAMPLE = """\
example:
  lazyfs loop https://host/filesystem.squashfs /media
  lazyfs loop --fill https://host/debian.iso /media     (ends when all is here)
  lazyfs umount /media
"""


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    if len(given.where) != 2:
        raise UsageError("one URL and a mount point are needed", "lazyfs loop URL MOUNTPOINT")
    if given.repair and given.no_cache:
        raise UsageError("--repair must know what was mounted", "leave out --no-cache")
    images = named_images(given.where, [])
    chosen = tuple(replace(image, choose_partition=True) for image in images)
    options = mount_options(given, chosen, ())
    hide_secrets([*(image.url for image in options.images), str(options.mountpoint)])
    from lazyfs.daemon.loopmount import LoopOptions, loop_mount

    filesystem_options = tuple(word for words in given.o for word in words.split(",") if word)
    loop = LoopOptions(filesystem_options, given.type, given.repair)
    return loop_mount(options, loop, report)


def _parser() -> Parser:
    parser = Parser(
        "lazyfs loop",
        "Mount the filesystem in a remote image, through a loop device.",
        _EXAMPLE,
        _USAGE,
    )
    add = parser.add_argument
    add("where", nargs="+", metavar="URL MOUNTPOINT", help=argparse.SUPPRESS)
    add("-o", metavar="OPTS", action="append", default=[], help="the filesystem's mount options")
    add("-t", "--type", metavar="TYPE",
        help=Rare("the filesystem's type (default: mount finds out)"))  # fmt: skip
    add(
        "--repair",
        action="store_true",
        help="revive the loop device of a lazyfs that was killed",
    )
    add_options(parser)
    return parser

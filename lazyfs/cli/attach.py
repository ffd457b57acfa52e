"""``lazyfs attach URL [/dev/nbdN]``: an image as a block device."""

import argparse
import math
from collections.abc import Sequence

from lazyfs.cli.common import daemon_options, hide_secrets, images_at
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_options
from lazyfs.cli.helptext import Rare
from lazyfs.cli.output import report
from lazyfs.cli.parser import Parser
from lazyfs.cli.words import as_type
from lazyfs.core.errors import UsageError
from lazyfs.core.options import parse_duration

_USAGE = "lazyfs attach [OPTION]... URL [DEVICE]"
_EXAMPLE = """\
example:
  lazyfs attach https://host/disk.raw            (prints the device: /dev/nbd0)
  mount -o ro /dev/nbd0p1 /media
  lazyfs attach --repair /dev/nbd0 https://host/disk.raw     (if it was killed)
  umount /media; lazyfs detach /dev/nbd0
"""
_LONGEST = 7 * 24 * 3600  # seconds


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    devices = [word for word in given.where if word.startswith("/dev/")]
    addresses = [word for word in given.where if word not in devices]
    if len(addresses) != 1 or len(devices) > 1:
        raise UsageError("one URL is needed, and at most one device", "lazyfs attach URL [DEVICE]")
    if given.repair and not devices:
        raise UsageError("--repair must know which device", "name it, like /dev/nbd0")
    options = daemon_options(given, images_at(addresses, []))
    hide_secrets(["attach", *addresses, *devices])
    from lazyfs.daemon.attach import AttachOptions, attach

    return attach(
        AttachOptions(
            **vars(options),
            device=devices[0] if devices else None,
            repair=given.repair,
            dead_timeout=math.ceil(given.dead_timeout),
        ),
        report,
    )


def _parser() -> Parser:
    parser = Parser(
        "lazyfs attach",
        "Show a remote image as a read-only block device, partitions included.",
        _EXAMPLE,
        _USAGE,
    )
    add = parser.add_argument
    add("where", nargs="+", metavar="URL [DEVICE]", help=argparse.SUPPRESS)
    add(
        "--repair",
        action="store_true",
        help="take DEVICE over from a lazyfs that was killed",
    )
    add(
        "--dead-timeout",
        metavar="SECONDS",
        type=as_type(_parse_dead_timeout),
        default=300.0,
        help=Rare("how long readers wait for a --repair (default: 300)"),
    )
    add_options(parser)
    return parser


def _parse_dead_timeout(text: str) -> float:
    seconds = parse_duration(text)
    if not 1 <= seconds <= _LONGEST:
        raise UsageError(f"{text!r} cannot be waited for", "give 1 second to 7 days")
    return seconds

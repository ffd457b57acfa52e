"""``lazyfs umount MOUNTPOINT``: unmount.

With --handover, loop devices on the mount continue to work: the image is completed, and they move
to its copy in the cache before the mount is unmounted.
"""

import os
from collections.abc import Sequence
from pathlib import Path

from lazyfs.cli.fill import wait_complete
from lazyfs.cli.parser import Parser
from lazyfs.core.errors import ControlError
from lazyfs.daemon.client import daemon_at
from lazyfs.daemon.unmount import unmount

_EXAMPLE = """\
example:
  lazyfs umount /mnt/img
"""


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    if given.handover:
        code = _hand_over(given.mountpoint)
        if code:
            return code
    unmount(Path(os.path.realpath(given.mountpoint)))
    return 0


def _hand_over(mountpoint: str) -> int:
    """Complete and hand over; returns the exit code. Raises ControlError if a device must stay."""
    daemon = daemon_at(mountpoint)
    daemon.ask("fill")
    code = wait_complete(daemon)
    if code == 0:
        for device in daemon.ask("handover")["devices"]:
            if device["stays"]:
                raise ControlError(
                    f"{device['device']} cannot be handed over: {device['stays']}",
                    "unmount what stands on it",
                )
    return code


def _parser() -> Parser:
    parser = Parser("lazyfs umount", "Unmount a mount of lazyfs.", _EXAMPLE)
    parser.add_argument("mountpoint", metavar="MOUNTPOINT", help="where it is mounted")
    parser.add_argument(
        "--handover",
        action="store_true",
        help="first fetch the rest, and move loop devices to the copy in the cache",
    )
    return parser

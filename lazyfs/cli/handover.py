"""``lazyfs handover WHERE``: move loop devices from a complete image to its copy in the cache."""

from collections.abc import Sequence

from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser
from lazyfs.core.texts import printable
from lazyfs.daemon.client import daemon_at


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: 1 if a device has to stay."""
    given = _parser().parse_args(arguments)
    devices = daemon_at(given.where).ask("handover")["devices"]
    with printing():
        for found in devices:
            fate = f"stays: {found['stays']}" if found["stays"] else "stands on the copy now"
            print(printable(f"{found['device']} {fate}"))
        if not devices:
            print("no loop device stands on it: on a complete image they move by themselves")
    return 1 if any(found["stays"] for found in devices) else 0


def _parser() -> Parser:
    what = "Move loop devices from a complete image to its copy in the cache."
    return parser("handover", what, "/mnt/img")

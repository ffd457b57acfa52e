"""``lazyfs fill WHERE``: fetch the rest of a mounted image."""

import sys
import time
from collections.abc import Sequence

from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import images_of, parser
from lazyfs.cli.terminal import progress
from lazyfs.core.errors import ControlError
from lazyfs.core.texts import printable
from lazyfs.daemon.client import Daemon, daemon_at

_LOOK = 0.5  # seconds between two polls


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: with --wait, 1 if it did not become complete."""
    given = _parser().parse_args(arguments)
    daemon = daemon_at(given.where)
    daemon.ask("fill")
    return wait_complete(daemon) if given.wait else 0


def _parser() -> Parser:
    made = parser("fill", "Fetch all the rest of an image, when nobody waits.", "--wait /mnt/img")
    made.add_argument("--wait", action="store_true", help="until all of it is here, and right")
    return made


def wait_complete(daemon: Daemon) -> int:
    """Wait until all images are complete; returns the exit code, 1 if the fill has stopped.

    A daemon that ends with all data cached has handed over, which is success. Raises ControlError
    if it ends before.
    """
    images, told = images_of(daemon), ""
    with progress() as bar:
        bar.expect(sum(image["size"] for image in images))
        while not all(image["complete"] for image in images):
            stopped = [i for i in images if not i["filling"] and i["cached"] < i["size"]]
            if stopped:
                url = printable(stopped[0]["url"])
                print(f"lazyfs: {url}: the fill has stopped", file=sys.stderr)
                return 1
            trouble = next((image["trouble"] for image in images if image["trouble"]), "")
            if trouble and trouble != told:
                print(f"lazyfs: {printable(trouble)}", file=sys.stderr)
            told = trouble
            bar.at(sum(image["cached"] for image in images))
            time.sleep(_LOOK)
            try:
                images = images_of(daemon)
            except ControlError:
                if all(image["cached"] == image["size"] for image in images):
                    return 0
                raise
    return 0

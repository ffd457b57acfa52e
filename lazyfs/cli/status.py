"""``lazyfs status``: the running daemons, and the state of their images."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from typing import Any

from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.core.options import format_size
from lazyfs.core.texts import printable
from lazyfs.daemon.client import Daemon, daemon_at, running

_EXAMPLE = """\
example:
  lazyfs status --watch
"""
_CLEAR = "\x1b[H\x1b[2J"


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns the exit code: 1 if nothing runs."""
    given = _parser().parse_args(arguments)
    with printing():
        while True:
            daemons = [daemon_at(given.where)] if given.where else running()
            _print(daemons, as_json=given.json, clear=given.watch and sys.stdout.isatty())
            if not given.watch:
                return 0 if daemons else 1
            time.sleep(1)


def _parser() -> Parser:
    parser = Parser("lazyfs status", "Show what runs, and how it is doing.", _EXAMPLE)
    parser.add_argument(
        "where", nargs="?", metavar="WHERE", help="a mount point, a device, or a URL (default: all)"
    )
    parser.add_argument(
        "--json", action="store_true", help="print JSON, as docs/control.rst has it"
    )
    parser.add_argument("--watch", action="store_true", help="again every second")
    return parser


def _print(daemons: list[Daemon], *, as_json: bool, clear: bool) -> None:
    if as_json:
        print(json.dumps([daemon.status for daemon in daemons]), flush=True)
        return
    lines = [line for daemon in daemons for line in _lines_of(daemon.status)]
    start = _CLEAR if clear else ""
    print(start + "\n".join(lines or ["nothing runs"]), flush=True)


def _lines_of(status: dict[str, Any]) -> Iterator[str]:
    """The lines for a daemon: its place, and some lines per image."""
    yield printable(f"{status['where']}  ({status['front_end']}, process {status['pid']})")
    for image in status["images"]:
        yield printable(f"  {image['url']}")
        for name, value in summary(image).items():
            yield printable(f"    {name:<10}{value}")


def summary(image: dict[str, Any]) -> dict[str, str]:
    """The state of an image for the user: lines, by name."""
    view = {"view": _view(image["view"])} if image["view"] else {}
    return {
        **view,
        "here": _here(image),
        "server": _server(image),
        "reads": _reads(image),
        "fetched": _fetched(image),
    }


def _view(view: dict[str, Any]) -> str:
    cached, size = view["cached"], view["size"]
    return f"{view['chain']}: {format_size(cached)} of {format_size(size)} here"


def _here(image: dict[str, Any]) -> str:
    cached, size = image["cached"], image["size"]
    text = f"{format_size(cached)} of {format_size(size)} ({100 * cached // max(1, size)} %)"
    if image["complete"]:
        return f"{text}, complete: the server is not needed"
    if image["paused"]:
        return f"{text}, paused"
    if image["filling"]:
        left = image["seconds_left"]
        text += ", filling" + (f": {duration(left)} to go" if left is not None else "")
    return text


def _server(image: dict[str, Any]) -> str:
    rate = f"{format_size(int(image['flow']))}/s now, {image['under_way']} requests under way"
    if image["trouble"]:
        return f"trouble for {duration(image['trouble_for'])}: {image['trouble']}"
    return f"ok, {rate}"


def _reads(image: dict[str, Any]) -> str:
    reads = image["hits"] + image["misses"]
    if not reads:
        return "none yet"
    hits = 100 * image["hits"] // reads
    return f"{hits} % without waiting; {format_size(image['wanted'])} in all"


def _fetched(image: dict[str, Any]) -> str:
    fetched, unused = format_size(image["fetched"]), format_size(image["unused"])
    return f"{fetched}; {unused} of it ahead and not used yet"


def duration(seconds: float) -> str:
    """A duration, like 90 s, 12 min, 3 h."""
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"

"""Shared code of the commands that control a running daemon."""

from collections.abc import Sequence
from typing import Any

from lazyfs.cli.parser import Parser
from lazyfs.daemon.client import Daemon, daemon_at


def parser(name: str, what: str, example: str) -> Parser:
    """A parser for a command with the argument WHERE, which names a daemon."""
    made = Parser(f"lazyfs {name}", what, f"example:\n  lazyfs {name} {example}\n")
    made.add_argument("where", metavar="WHERE", help="a mount point, a device, or a URL")
    return made


def tell(name: str, made: Parser, arguments: Sequence[str], **fields: Any) -> int:
    """Run a command whose only argument is WHERE; returns the exit code."""
    given = made.parse_args(arguments)
    daemon_at(given.where).ask(name, **fields)
    return 0


def images_of(daemon: Daemon) -> list[dict[str, Any]]:
    """The current status of a daemon's images. Raises ControlError."""
    found: list[dict[str, Any]] = daemon.ask("status")["images"]
    return found

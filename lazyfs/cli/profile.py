"""``lazyfs profile``: show, merge and record profiles."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.words import absolute
from lazyfs.core.errors import OutputError
from lazyfs.core.options import format_size
from lazyfs.core.texts import printable
from lazyfs.daemon.client import daemon_at
from lazyfs.prefetch import profile
from lazyfs.prefetch.files import load
from lazyfs.prefetch.profile import Profile
from lazyfs.system.atomicfile import write_whole

_Command = Callable[[argparse.Namespace], None]
_EXAMPLE = """\
example:
  lazyfs --record first.profile https://host/live.iso /mnt/img
  lazyfs profile merge first.profile second.profile >live.iso.lazyprofile
  lazyfs --profile live.iso.lazyprofile https://host/live.iso /mnt/img
"""


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_args(arguments)
    command: _Command = given.command
    with printing():
        command(given)
    return 0


def _parser() -> Parser:
    parser = Parser("lazyfs profile", "Look at profiles, and make them.", _EXAMPLE)
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=Parser, prog=parser.prog
    )

    def add(name: str, command: _Command, what: str, example: str) -> Parser:
        made: Parser = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}.",
            epilog=f"example:\n  lazyfs profile {name} {example}\n",
        )
        made.set_defaults(command=command)
        return made

    show = add("show", _show, "say what a profile holds", "live.iso.lazyprofile")
    show.add_argument("file", metavar="PROFILE", help="a file that --record has written")
    what = "write the profile of several runs together to stdout"
    merge = add("merge", _merge, what, "first.profile second.profile >both.profile")
    merge.add_argument("files", nargs="+", metavar="PROFILE", help="what --record has written")
    merge.add_argument("-o", "--output", metavar="FILE", help="write it there, not to stdout")
    what = "write down what is used of a mounted image, from now on"
    record = add("record", _record, what, "/mnt/img live.iso.lazyprofile")
    record.add_argument("where", metavar="WHERE", help="a mount point, a device, or a URL")
    record.add_argument("file", metavar="PROFILE", help="the file to write, now and then")
    what = "stop writing down what is used"
    stop = add("stop", _stop, what, "/mnt/img")
    stop.add_argument("where", metavar="WHERE", help="a mount point, a device, or a URL")
    return parser


def _show(given: argparse.Namespace) -> None:
    found = _read(given.file)
    identity, uses = found.identity, found.uses
    share = 100 * found.length / identity.size if identity.size else 0
    rows = [
        ("image", found.url),
        ("size", f"{format_size(identity.size)} ({identity.size} bytes)"),
        ("etag", identity.etag or ""),
        ("last modified", identity.last_modified or ""),
        ("ranges", str(len(uses))),
        ("bytes", f"{format_size(found.length)} ({share:.1f}% of the image)"),
        ("time", f"{uses[-1].time:.1f} s" if uses else ""),
    ]
    for name, value in rows:
        if value:
            print(f"{name:<14} {printable(value)}")
    for second, length in _by_second(found):
        print(f"{second:>6} s  {format_size(length):>10}")


def _by_second(found: Profile) -> list[tuple[int, int]]:
    """The bytes first used in each second; seconds without any are left out."""
    lengths: dict[int, int] = {}
    for use in found.uses:
        lengths[int(use.time)] = lengths.get(int(use.time), 0) + use.span.length
    return sorted(lengths.items())


def _merge(given: argparse.Namespace) -> None:
    text = profile.as_text(profile.merge([_read(name) for name in given.files]))
    if given.output is None:
        sys.stdout.write(text)
        return
    try:
        write_whole(Path(given.output), text.encode(), 0o666)
    except OSError as error:
        raise OutputError(f"{given.output} cannot be written: {error.strerror}") from error


def _record(given: argparse.Namespace) -> None:
    daemon_at(given.where).ask("profile", file=str(absolute(given.file)))


def _stop(given: argparse.Namespace) -> None:
    daemon_at(given.where).ask("profile", file=None)


def _read(name: str) -> Profile:
    return load(Path(name))

"""``lazyfs cache``: list, verify and remove caches."""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from lazyfs.cache import maintenance
from lazyfs.cache.maintenance import Cache, Verdict
from lazyfs.cli import configured
from lazyfs.cli.common import cache_directory
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.terminal import progress
from lazyfs.cli.words import as_type
from lazyfs.core.errors import UsageError
from lazyfs.core.options import format_size, parse_duration, parse_size

_HELP = ("-h", "--help", "--help-all")
_EPILOG = """\
CACHE is a URL, or a name as list shows it, or the beginning of one.
Without a command: list.

example:
  lazyfs cache list
  lazyfs cache prune --unused 30d --to 10G
"""


def main(arguments: Sequence[str]) -> int:
    """Run ``lazyfs cache``; returns the exit code: 1 if ``verify`` found damage."""
    if not arguments or (arguments[0].startswith("-") and arguments[0] not in _HELP):
        arguments = ["list", *arguments]
    given = _parser().parse_args(arguments)
    found = maintenance.all_caches(cache_directory(given.cache_dir or configured.cache_dir()))
    command: Callable[[argparse.Namespace, list[Cache]], int] = given.command
    with printing():
        return command(given, found)


def _parser() -> Parser:
    parser = Parser(
        "lazyfs cache",
        "Look at caches, verify them, and clean up.",
        _EPILOG,
        "lazyfs cache [COMMAND] [OPTION]... [CACHE]...",
    )
    commands = parser.add_subparsers(
        metavar="COMMAND", required=True, parser_class=Parser, prog=parser.prog
    )
    for name, command, example, what in (
        ("list", _list, "--json", "say what is cached, how much of it, and who uses it"),
        ("verify", _verify, "debian.iso", "compare every cached block with its checksum"),
        ("prune", _prune, "--unused 30d", "remove what no mount can use any more, and more"),
        ("rm", _rm, "debian.iso", "remove these caches"),
    ):
        sub = commands.add_parser(
            name,
            help=what,
            description=f"{what.capitalize()}.",
            epilog=f"example:\n  lazyfs cache {name} {example}\n",
        )
        sub.set_defaults(command=command)
        if command is _verify:
            sub.add_argument("caches", nargs="*", metavar="CACHE", help="which (default: all)")
        if command is _rm:
            sub.add_argument("caches", nargs="*", metavar="CACHE", help="which")
            sub.add_argument("--all", action="store_true", help="all that no mount uses")
        if command is _prune:
            sub.add_argument("--unused", metavar="TIME", type=as_type(parse_duration),
                help="also what no mount has used for so long: 12h, 30d")  # fmt: skip
            sub.add_argument("--to", metavar="SIZE", type=as_type(parse_size),
                help="also the longest unused, until the rest takes no more")  # fmt: skip
        sub.add_argument("--cache-dir", metavar="DIR", help="where caches are kept")
        sub.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _list(given: argparse.Namespace, found: list[Cache]) -> int:
    if given.json:
        _print_json([_described(cache) for cache in found])
        return 0
    rows = [("CACHED", "OF", "", "LAST USED", "CACHE"), *map(_row, found)]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    for cached, size, percent, used, name in rows if found else ():
        numbers = cached.rjust(widths[0]), size.rjust(widths[1]), percent.rjust(widths[2])
        print(*numbers, used.ljust(widths[3]), name, sep="  ")
    if not found:
        print("nothing is cached")
    return 0


def _row(cache: Cache) -> tuple[str, str, str, str, str]:
    used = _local(cache.entry.used_at)
    if cache.entry.holder is not None:
        used = f"now, by {cache.entry.holder}"
    if cache.meta is None:
        return "?", "?", "", used, f"{cache.name}\n    {cache.problem}".rstrip()
    size = cache.meta.identity.size
    percent = f"{100 * cache.cached // size}%"
    name = f"{cache.name}\n    {cache.url}"
    return format_size(cache.cached), format_size(size), percent, used, name


def _verify(given: argparse.Namespace, found: list[Cache]) -> int:
    picked = maintenance.chosen(found, given.caches) if given.caches else found
    verdicts = []
    for cache in picked:
        with progress() as bar:
            bar.expect(cache.cached)
            verdicts.append(maintenance.verify(cache, bar.advance))
        if not given.json:
            print(_line_of(verdicts[-1]), flush=True)
    if given.json:
        _print_json([_judged(verdict) for verdict in verdicts])
    return int(any(verdict.damaged for verdict in verdicts))


def _line_of(verdict: Verdict) -> str:
    name, blocks = verdict.cache.name, verdict.blocks
    if not verdict.damaged:
        return f"{name}: all {blocks} cached blocks are right"
    many = len(verdict.damaged)
    return (
        f"{name}: {many} of {blocks} cached blocks were damaged, the first at byte "
        f"{verdict.first_damage}; they are dropped, and fetched again when they are read"
    )


def _prune(given: argparse.Namespace, found: list[Cache]) -> int:
    going = maintenance.to_prune(found, given.unused, given.to, time.time())
    return _remove(given, going)


def _rm(given: argparse.Namespace, found: list[Cache]) -> int:
    if given.all == bool(given.caches):
        raise UsageError("which caches?", "name them, or give --all")
    if given.all:
        return _remove(given, [cache for cache in found if cache.entry.holder is None])
    return _remove(given, maintenance.chosen(found, given.caches))


def _remove(given: argparse.Namespace, going: list[Cache]) -> int:
    for cache in going:
        maintenance.remove(cache)
        if not given.json:
            print(f"removed {cache.name} ({format_size(cache.entry.allocated)})")
    if given.json:
        _print_json([_described(cache) for cache in going])
    return 0


def _described(cache: Cache) -> dict[str, Any]:
    meta, entry = cache.meta, cache.entry
    return {
        "name": cache.name,
        "directory": str(entry.directory),
        "url": meta.url if meta else None,
        "size": meta.identity.size if meta else None,
        "etag": meta.identity.etag if meta else None,
        "last_modified": meta.identity.last_modified if meta else None,
        "block_size": meta.block_size if meta else None,
        "cached": cache.cached,
        "allocated": entry.allocated,
        "used_at": datetime.fromtimestamp(entry.used_at, UTC).isoformat(timespec="seconds"),
        "used_by": entry.holder,
        "usable": cache.usable,
        "problem": cache.problem or None,
    }


def _judged(verdict: Verdict) -> dict[str, Any]:
    return {
        "name": verdict.cache.name,
        "url": verdict.cache.url,
        "blocks": verdict.blocks,
        "damaged": list(verdict.damaged),
    }


def _print_json(content: list[dict[str, Any]]) -> None:
    print(json.dumps(content, indent=2))


def _local(timestamp: float) -> str:
    return datetime.fromtimestamp(timestamp).astimezone().strftime("%Y-%m-%d %H:%M")

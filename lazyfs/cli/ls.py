"""``lazyfs ls IMAGE [PATH]``: list files of an ISO image."""

import argparse
import json
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

from lazyfs.cli.common import hide_secrets, log_to_terminal, stack_options, tree_in
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_image, add_source_options
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.terminal import accept_any_name, for_stdout, long_row
from lazyfs.formats.tree import Kind, Node, Tree

_EXAMPLE = """\
example:
  lazyfs ls -l https://host/debian.iso /live
"""


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    hide_secrets(["ls", given.image])
    log_to_terminal()
    tree = tree_in(given.image, stack_options(given, given.image, choose_partition=True))
    accept_any_name()
    with printing():
        _print(tree, given)
    return 0


def _print(tree: Tree, given: argparse.Namespace) -> None:
    if given.json:
        rows = tree.walk(given.path) if given.recursive else _content(tree, given.path)
        print(json.dumps([_described(path, node) for path, node in rows], indent=1))
    elif given.recursive:
        _print_recursively(tree, given.path, given.long)
    else:
        _print_rows(_content(tree, given.path), given.long)


def _parser() -> Parser:
    parser = Parser(
        "lazyfs ls",
        "Show what is in an ISO image.",
        _EXAMPLE,
    )
    add_image(parser)
    add = parser.add_argument
    add("path", nargs="?", default="/", metavar="PATH", help="in the image (default: all of it)")
    add("-l", "--long", action="store_true", help="with mode, owner, size and time")
    add("-R", "--recursive", action="store_true", help="with all that is below")
    add("--json", action="store_true", help="print JSON")
    add_source_options(parser)
    return parser


def _content(tree: Tree, path: str) -> list[tuple[str, Node]]:
    """The rows for this path: a directory's entries, or the node itself."""
    node = tree.node(path)
    if node.kind is not Kind.DIRECTORY:
        return [(path, node)]
    return sorted(node.children.items())


def _print_recursively(tree: Tree, path: str, long: bool) -> None:
    first = True
    for where, node in tree.walk(path):
        if node.kind is Kind.DIRECTORY:
            print(f"{'' if first else chr(10)}/{for_stdout(where)}:")
            _print_rows(sorted(node.children.items()), long)
            first = False
    if first:
        _print_rows(_content(tree, path), long)


def _print_rows(rows: Iterable[tuple[str, Node]], long: bool) -> None:
    rows = list(rows)
    if not long:
        for name, _ in rows:
            print(for_stdout(name))
        return
    columns = [long_row(node) for _, node in rows]
    widths = [max((len(row[number]) for row in columns), default=0) for number in range(6)]
    for (name, node), row in zip(rows, columns, strict=True):
        cells = (cell.rjust(width) for cell, width in zip(row, widths, strict=True))
        arrow = f" -> {for_stdout(node.target)}" if node.kind is Kind.SYMLINK else ""
        print(*cells, f"{for_stdout(name)}{arrow}")


def _described(path: str, node: Node) -> dict[str, Any]:
    content: dict[str, Any] = {
        "path": path.strip("/"),
        "type": node.kind.name.lower().replace("_", " "),
        "mode": f"{node.mode:04o}",
        "uid": node.uid,
        "gid": node.gid,
        "links": node.nlink,
        "size": node.size,
        "mtime": datetime.fromtimestamp(node.mtime, UTC).isoformat(),
    }
    if node.kind is Kind.SYMLINK:
        content["target"] = node.target
    if node.kind is Kind.FILE:
        content["extents"] = [list(extent) for extent in node.extents]
    for name in ("compressed", "problem"):
        if getattr(node, name):
            content[name] = getattr(node, name)
    return content

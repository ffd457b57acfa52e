#!/usr/bin/env python3
"""Write the manual pages: ``docs/man/build.py DIRECTORY``.

``docs/lazyfs.1.rst`` has the text, and the parsers of lazyfs have the options. A section that has
the title of a group of options, or is about a command, is given all of those: how they are spelt,
their help, and what the section says more of them.
"""

import os
import re
import sys
import time
from argparse import Action
from collections.abc import Iterator, Sequence
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree, publish_from_doctree
from docutils.writers import manpage

from lazyfs import __version__
from lazyfs.cli import helptext
from lazyfs.cli.parser import Parser, parser_of

DOCS = Path(__file__).resolve().parents[1]
PAGES = {
    "lazyfs.1": DOCS / "lazyfs.1.rst",
    "lazyfs-cache.5": DOCS / "man/lazyfs-cache.5.rst.in",
}
_STRICT = {"report_level": 2, "halt_level": 2, "traceback": True}
_COMMAND = re.compile(r"lazyfs ([a-z]+(?: [a-z]+)?)")
_OPTION = re.compile(r"(?<![\w-])(--?[a-z][\w-]*)")


class Mismatch(Exception):
    """The text speaks of what lazyfs does not have."""


def main(arguments: Sequence[str]) -> None:
    directory = Path(arguments[0])
    directory.mkdir(parents=True, exist_ok=True)
    for name, source in PAGES.items():
        (directory / name).write_text(page(source), encoding="utf-8")


def page(source: Path) -> str:
    """A manual page, for man(1). Raises Mismatch."""
    tree = publish_doctree(source.read_text(), str(source), settings_overrides=_STRICT)
    (docinfo,) = tree.findall(nodes.docinfo)
    docinfo += [nodes.version("", f"lazyfs {__version__}"), nodes.date("", _today())]
    if source == PAGES["lazyfs.1"]:
        complete(tree)
    _suit_man(tree)
    settings = {**_STRICT, "output_encoding": "unicode"}
    text: str = publish_from_doctree(tree, writer=manpage.Writer(), settings_overrides=settings)
    text = text.replace("\n.SH Name\n", "\n.SH NAME\n")
    return re.sub(r"(\n\.S[HS] .*)\n\.sp\n", r"\1\n", text)  # which has no effect there


def complete(tree: nodes.document) -> None:
    """Make lazyfs(1) of its source: give its sections their options. Raises Mismatch."""
    for node in [n for n in tree.findall(nodes.Element) if "source" in n["classes"]]:
        node.parent.remove(node)
    mount = parser_of("mount")
    groups = {title.replace("options", "general"): actions for title, actions in mount.groups()}
    for section in list(tree.findall(nodes.section)):
        title = section[0].astext()
        commands = _COMMAND.findall(title)
        if title.lower() in groups:
            _tell(section, groups[title.lower()])
        elif commands:
            parsers = [_parser(words.split()) for words in commands]
            _tell(section, [a for parser in parsers for a in _own(parser, mount)])
            section[0].replace_self(nodes.title("", ", ".join(map(_usage, parsers))))


def _suit_man(tree: nodes.document) -> None:
    """Leave out, or make something else of, what does not look well on a manual page."""
    for link in list(tree.findall(nodes.reference)):
        link.replace_self(nodes.emphasis("", link.astext()))
    for table in list(tree.findall(nodes.table)):
        table.replace_self(_as_definitions(table))
    for section in [node for node in tree if isinstance(node, nodes.section)]:
        section[0].replace_self(nodes.title("", section[0].astext().upper()))


def _as_definitions(table: nodes.table) -> nodes.definition_list:
    """A table of two columns: what, and what of it."""
    rows = [list(row) for row in table.findall(nodes.row)]
    items = [
        nodes.definition_list_item(
            "", nodes.term("", "", *name[0].children), nodes.definition("", *text.children)
        )
        for name, text in rows
    ]
    return nodes.definition_list("", *items)


def _today() -> str:
    """The day of the build, or the one that a reproducible build is told."""
    now = int(os.environ.get("SOURCE_DATE_EPOCH", time.time()))
    return time.strftime("%Y-%m-%d", time.gmtime(now))


def _parser(words: Sequence[str]) -> Parser:
    """Of a command, like ``serve``, or of a command within one, like ``cache list``."""
    parser = parser_of(words[0])
    return parser.commands()[words[1]] if words[1:] else parser


def _own(parser: Parser, mount: Parser) -> list[Action]:
    """The options of a command, but for those that it shares with mounts."""

    def key(action: Action) -> tuple[tuple[str, ...], str | None]:
        return tuple(action.option_strings), action.help

    shared = {key(action) for _, group in mount.groups() for action in group}
    own = [action for _, group in parser.groups() for action in group]
    return [action for action in own if action.option_strings and key(action) not in shared]


def _tell(section: nodes.section, actions: Sequence[Action]) -> None:
    """Put the options where the section has its own list of them, or at its end."""
    lists = [node for node in section if _is_of_options(node)]
    more = {item[0].astext(): item[-1] for options in lists for item in options}
    if sum(map(len, lists)) != len(more):
        raise Mismatch(f"{section[0].astext()}: an option is there twice")
    told = nodes.definition_list()
    for action in actions:
        spellings = [name for name in action.option_strings if name in more]
        told += _item(action, [node for name in spellings for node in more.pop(name)])
    if more:
        raise Mismatch(f"{section[0].astext()}: there is no {', '.join(more)}")
    for options in lists[1:]:
        section.remove(options)
    if lists:
        lists[0].replace_self(told)
    elif actions:
        section += told


def _is_of_options(node: nodes.Node) -> bool:
    return isinstance(node, nodes.definition_list) and node[0][0].astext().startswith("-")


def _item(action: Action, more: Sequence[nodes.Node]) -> nodes.definition_list_item:
    term = nodes.term()
    for name in action.option_strings:
        term += [nodes.Text(", ")] if len(term) else []
        term += nodes.strong("", name)
    if helptext.value(action):
        term += [nodes.Text(" "), nodes.emphasis("", helptext.value(action))]
    what = action.help or ""
    first = nodes.paragraph("", "", *_marked(f"{what[:1].upper()}{what[1:]}."))
    if more and isinstance(more[0], nodes.paragraph):
        first += [nodes.Text(" "), *more[0].children]
        more = more[1:]
    return nodes.definition_list_item("", term, nodes.definition("", first, *more))


def _usage(parser: Parser) -> str:
    return parser.format_usage().removeprefix("usage: ").strip()


def _marked(text: str) -> Iterator[nodes.Node]:
    """A line of help, with its options bold."""
    for number, part in enumerate(_OPTION.split(text)):
        yield nodes.strong("", part) if number % 2 else nodes.Text(part)


if __name__ == "__main__":
    main(sys.argv[1:])

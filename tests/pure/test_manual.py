"""The manual pages: built from the parsers, and complete."""

import importlib.util
import re
import subprocess
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from real.mounts import need_tool

from lazyfs.cli import helptext, mount
from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.parser import Parser, parser_of

ROOT = Path(__file__).parents[2]
MANUAL = ROOT / "docs/lazyfs.1.rst"
SHARED = [o.option_strings for _, group in mount._parser().groups() for o in group]


def builder() -> ModuleType:
    """docs/man/build.py, which is no part of a package."""
    spec = importlib.util.spec_from_file_location("build_manual", ROOT / "docs/man/build.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


build: Any = builder()


def completed(text: str) -> nodes.document:
    """A manual page with its options."""
    tree = publish_doctree(text, settings_overrides={"report_level": 2, "halt_level": 2})
    build.complete(tree)
    return tree


PAGE = completed(MANUAL.read_text())


def section(title: str) -> nodes.section:
    (found,) = [s for s in PAGE.findall(nodes.section) if s[0].astext().startswith(title)]
    return found


def entries(tree: nodes.Element) -> list[str]:
    """The terms of options: spellings and what stands for the value, as they are read."""
    terms = [term.astext() for term in tree.findall(nodes.term)]
    return [term for term in terms if term.startswith("-")]


def entry_of(option: Any) -> str:
    return f"{', '.join(option.option_strings)} {helptext.value(option)}".rstrip()


def all_parsers() -> dict[str, Parser]:
    found = {}
    for name in COMMANDS:
        found[f"lazyfs {name}"] = parser_of(name)
        for within, parser in parser_of(name).commands().items():
            found[f"lazyfs {name} {within}"] = parser
    return found


PARSERS = all_parsers()


def test_options_of_a_mount_have_one_entry_each_as_they_are_spelt() -> None:
    wanted = [entry_of(option) for _, group in mount._parser().groups() for option in group]
    assert sorted(entries(section("OPTIONS"))) == sorted(wanted)
    assert len(set(wanted)) == len(wanted)


@pytest.mark.parametrize("name", [n for n in PARSERS if n != "lazyfs mount"])
def test_a_command_has_a_section_with_all_of_its_own_options(name: str) -> None:
    parser = PARSERS[name]
    if parser.commands():
        return  # these have sections
    (found,) = [
        s for s in PAGE.findall(nodes.section)
        if re.search(rf"{name}(?= [^a-z]|,|$)", s[0].astext())
    ]  # fmt: skip
    told = entries(found)
    assert len(told) == len(set(told))
    options = [o for _, group in parser.groups() for o in group if o.option_strings]
    for option in options:
        assert entry_of(option) in told or option.option_strings in SHARED
    spelt = {entry_of(option) for option in options}
    assert set(told) <= spelt


def test_every_command_is_in_the_synopsis() -> None:
    synopsis = section("SYNOPSIS").astext()
    for name, parser in PARSERS.items():
        word = name.split()[-1]
        assert re.search(rf"\b{word}\b", synopsis) or name == "lazyfs mount", parser.prog


def test_an_entry_says_what_the_help_says_and_then_what_the_text_says() -> None:
    (item,) = [
        item for item in section("OPTIONS").findall(nodes.definition_list_item)
        if item[0].astext().startswith("--min-free")
    ]  # fmt: skip
    assert item[0].astext() == "--min-free SIZE"
    assert [type(node) for node in item[0]] == [nodes.strong, nodes.Text, nodes.emphasis]
    told = item[1].astext()
    assert told.startswith(
        "Leave so much of the cache's disk free (default: 0). When it is reached"
    )


HEADLINE = "Server\n======\n\n"


@pytest.mark.parametrize(
    ("entries_of_it", "says"),
    [
        ("``--netrc``\n    So.\n``--conections``\n    Many.\n", "there is no --conections"),
        ("``--netrc``\n    So.\n``--netrc``\n    So.\n", "an option is there twice"),
        ("``--fill``\n    So.\n", "there is no --fill"),  # it belongs to another group
    ],
)
def test_an_entry_too_many_is_an_error(entries_of_it: str, says: str) -> None:
    with pytest.raises(build.Mismatch, match=f"Server: {says}"):
        completed(
            f"Title\n*****\n\n.. comment\n\n{HEADLINE}{entries_of_it}\nOther\n=====\n\nText.\n"
        )


def test_both_pages_are_written_and_man_has_nothing_to_say_against_them(tmp_path: Path) -> None:
    man = need_tool("man", "man-db")
    build.main([str(tmp_path / "new")])
    pages = sorted((tmp_path / "new").iterdir())
    assert [page.name for page in pages] == ["lazyfs-cache.5", "lazyfs.1"]
    for page in pages:
        done = subprocess.run(
            [man, "--warnings", "--encoding=UTF-8", "--local-file", "-Tutf8", "-Z", str(page)],
            capture_output=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, b"")


def test_the_page_of_the_cache_has_what_the_document_has() -> None:
    page = build.page(build.PAGES["lazyfs-cache.5"])
    assert re.search(r'^\.TH "?lazyfs-cache"? "?5"? ', page, re.MULTILINE | re.IGNORECASE)
    assert "\n.SH THE CRASH RULE\n" in page
    assert "\\fBmeta.json\\fP" in page


def test_a_page_can_be_built_again_to_the_byte(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    page = build.page(build.PAGES["lazyfs.1"])
    assert " 1970-01-02 " in page.replace('"', " ")
    assert build.page(build.PAGES["lazyfs.1"]) == page

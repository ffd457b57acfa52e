"""What the documents say is so: commands run as they are written, and options exist."""

import argparse
import importlib
import io
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree, publish_string
from docutils.writers import html5_polyglot

from lazyfs.cli import mount
from lazyfs.cli.commandtable import COMMANDS

from .blocks import ROOT, STRICT, Block, Machine, blocks_of, plant_host, tree_of
from .mounts import COMMAND_LIMIT, IS_ROOT, LAZYFS, environment, need_loop, need_tool, run
from .servers import Nginx

README = ROOT / "README.rst"
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for pattern in ("*.rst", "*/*.rst", "docs/*/*.rst", "contrib/*/*.rst")
    for path in ROOT.glob(pattern)
    if not path.relative_to(ROOT).parts[0].startswith(".")
)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_strictly_right(name: str) -> None:
    settings = {**STRICT, "warning_stream": io.StringIO()}
    text = (ROOT / name).read_text()
    html = publish_string(text, name, writer=html5_polyglot.Writer(), settings_overrides=settings)
    assert b"</html>" in html


@pytest.mark.parametrize("name", DOCUMENTS)
def test_links_to_files_of_the_project_lead_somewhere(name: str) -> None:
    references = tree_of(ROOT / name).findall(nodes.reference)
    targets = [reference.get("refuri", "") for reference in references]
    files = [target for target in targets if target and ":" not in target]
    assert [f for f in files if not (ROOT / name).parent.joinpath(f).exists()] == []


# Commands of the README


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """What the README calls https://host/."""
    with Nginx(plant_host(tmp_path_factory.mktemp("host"))) as server:
        yield server


@pytest.fixture
def machine(tmp_path: Path, host: Nginx) -> Iterator[Machine]:
    machine = Machine(tmp_path, {"https://host/": host.url("")})
    try:
        yield machine
    finally:
        machine.clean_up()


def test_the_readme_has_the_blocks_that_people_copy() -> None:
    written = [command for block in blocks_of(README) for command in block.commands]
    assert len(blocks_of(README)) >= 5
    assert "lazyfs https://host/debian.iso /mnt/img" in written
    assert "mount -o loop,ro /mnt/img/debian.iso /media" in written


@pytest.mark.parametrize("block", blocks_of(README), ids=repr)
def test_a_block_of_commands_does_what_it_says(machine: Machine, block: Block) -> None:
    if not IS_ROOT:
        pytest.skip("the commands of the README are for root: mount and umount need it")
    need_loop()
    need_tool("getfattr", "attr")
    done = machine.run(block.commands)
    assert done.returncode == 0, done.stdout + done.stderr
    machine.check_that_nothing_is_left()


# Words of the prose


def literals(path: Path) -> list[str]:
    """What is set in ``double backquotes``, and the lines of plain blocks."""
    tree = tree_of(path)
    inline = [node.astext() for node in tree.findall(nodes.literal)]
    plain = [b for b in tree.findall(nodes.literal_block) if "code" not in b["classes"]]
    return inline + [line.strip() for block in plain for line in block.astext().splitlines()]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    """Its options, and those of its subcommands."""
    names = {name for action in parser._actions for name in action.option_strings}
    commands = [a for a in parser._actions if isinstance(a, argparse._SubParsersAction)]
    return names.union(*(options_of(sub) for a in commands for sub in a.choices.values()))


MOUNT = options_of(mount._parser())
OF_COMMANDS = {
    name: options_of(command._parser())
    for name in COMMANDS
    if hasattr(command := importlib.import_module(f"lazyfs.cli.{name}"), "_parser")
}


def misused(words: list[str]) -> set[str]:
    """The options on a command line of lazyfs that its command does not have."""
    known = OF_COMMANDS.get(words[1], MOUNT)
    return {word.partition("=")[0] for word in words[1:] if word.startswith("-")} - known


def test_options_of_the_readme_exist() -> None:
    named = {word.split()[0] for word in literals(README) if word.startswith("--")}
    assert {"--header", "--netrc", "--proxy", "--cacert", "--timeout"} <= named
    assert named <= MOUNT.union(*OF_COMMANDS.values())


def test_commands_of_the_readme_exist() -> None:
    written = [command for block in blocks_of(README) for command in block.commands]
    lines = [shlex.split(line) for line in literals(README) + written if line.startswith("lazyfs ")]
    assert ["lazyfs", "--help-all"] in lines
    assert {words[1] for words in lines if words[1].isalpha()} <= set(COMMANDS)
    assert [words for words in lines if misused(words)] == []


def test_make_targets_of_the_readme_exist() -> None:
    named = {line.split()[1] for line in literals(README) if line.startswith("make ")}
    assert {"demo", "test", "venv"} <= named
    makefile = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z- ]+):", makefile, re.MULTILINE)
    assert named <= {target for targets in rules for target in targets.split()}


# The demo's transcript


def transcript() -> list[str]:
    between = README.read_text().partition("\n.. demo transcript\n")[2]
    text, end, _ = between.partition("\n.. end of transcript\n")
    assert end, "the comments around the transcript are gone"
    (block,) = publish_doctree(text, settings_overrides=STRICT).findall(nodes.literal_block)
    return block.astext().splitlines()


def shape(lines: list[str]) -> list[str]:
    """The lines without what differs from run to run: numbers, the directory, the bar."""
    masked = [re.sub(r"lazyfs-demo-\w+", "lazyfs-demo-*", line) for line in lines]
    masked = [re.sub(r"\d+(\.\d+)?", "#", line) for line in masked]
    return [re.sub("[\N{FULL BLOCK}\N{LIGHT SHADE}]+", "=", line).rstrip() for line in masked]


def test_the_transcript_is_what_the_demo_prints(tmp_path: Path) -> None:
    need_loop()
    need_tool("mksquashfs", "squashfs-tools")
    command = [*LAZYFS, "demo"]
    done = run(command, env=environment(tmp_path, COLUMNS="80"), limit=2 * COMMAND_LIMIT)
    assert (done.returncode, done.stderr) == (0, "")
    assert shape(transcript()) == shape(done.stdout.splitlines())
    assert len(transcript()) > 10

"""What the documents say is so: commands run as they are written, and options exist."""

import argparse
import contextlib
import importlib
import io
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
from docutils import nodes
from docutils.core import publish_doctree, publish_string
from docutils.writers import html5_polyglot

from lazyfs.cli import COMMANDS, loop, mount
from lazyfs.frontends.loop import loops_below

from .mounts import (
    COMMAND_LIMIT,
    IS_ROOT,
    LAZYFS,
    environment,
    need_loop,
    need_tool,
    run,
    run_well,
)
from .servers import Nginx
from .waiting import eventually

ROOT = Path(__file__).parents[2]
README = ROOT / "README.rst"
MANUAL = ROOT / "docs/lazyfs.1.rst"
DOCUMENTS = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [*ROOT.glob("*.rst"), *ROOT.glob("*/*.rst"), *ROOT.glob("contrib/*/*.rst")]
    if not path.relative_to(ROOT).parts[0].startswith(".")
)

HIDDEN = {"--user-agent"}  # in the manual page, but not in --help, which is long enough

# Colours of code blocks would need one more package.
_STRICT = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none", "traceback": True}


def tree_of(path: Path) -> nodes.document:
    """A document; what docutils would warn of is an error."""
    settings = {**_STRICT, "warning_stream": io.StringIO()}
    return publish_doctree(path.read_text(), str(path), settings_overrides=settings)


@pytest.mark.parametrize("name", DOCUMENTS)
def test_every_document_is_strictly_right(name: str) -> None:
    settings = {**_STRICT, "warning_stream": io.StringIO()}
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


class Block:
    """One block of commands."""

    def __init__(self, text: str) -> None:
        self.commands = [line[2:] for line in text.splitlines() if line.startswith("$ ")]
        assert len(self.commands) == len(text.splitlines()), "a line is no command"

    def __repr__(self) -> str:
        return next(command for command in self.commands if command.startswith(("lazyfs", "mount")))


def blocks() -> list[Block]:
    """All that can be run here: what needs a kernel of its own is run by tests/guest."""
    code = tree_of(README).findall(nodes.literal_block)
    ours = [b for b in code if "console" in b["classes"] and "guest" not in b["classes"]]
    return [Block(block.astext()) for block in ours]


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """What the README calls https://host/.

    Its debian.iso is a squashfs in truth: not every kernel can mount an ISO, and for a loop mount
    it makes no difference.
    """
    place = tmp_path_factory.mktemp("host")
    tree = place / "tree"
    tree.mkdir()
    for number in range(50):
        (tree / f"{number}.bin").write_bytes(os.urandom(40_000))
    root = place / "served"
    root.mkdir()
    squash = need_tool("mksquashfs", "squashfs-tools")
    run_well([squash, tree, root / "filesystem.squashfs", "-no-progress", "-quiet"])
    (root / "debian.iso").symlink_to("filesystem.squashfs")
    (tree / "boot").mkdir()
    (tree / "boot/grub.cfg").write_text("menuentry lazy {}\n")
    maker = need_tool("xorriso", "xorriso")
    run_well([maker, "-as", "mkisofs", "-quiet", "-R", "-o", root / "boot.iso", tree])
    (root / "disk.raw").write_bytes(os.urandom((2 << 20) + 777))
    with Nginx(root) as server:
        yield server


class Machine:
    """Runs a block of commands in directories of its own, which stand for the machine's.

    The mount table is a copy too: mount(8) looks for lazyfs only where programs are installed, so
    that place is covered by one that has it.
    """

    def __init__(self, directory: Path, host: Nginx) -> None:
        self.directory = directory / "machine"
        self._programs = directory / "bin"
        self._host = host.url("")
        self._environment = environment(self.directory / "home")
        self._places = {
            "https://host/": self._host,
            "/mnt/img": str(self.directory / "mnt/img"),
            "/media": str(self.directory / "media"),
            "/var/cache/lazyfs": str(self.directory / "var/cache/lazyfs"),
        }
        for place in ("home", "mnt/img", "media", "cwd"):
            (self.directory / place).mkdir(parents=True)
        self._programs.mkdir()
        (self._programs / "lazyfs").write_text(f'#!/bin/sh\nexec {shlex.join(LAZYFS)} "$@"\n')
        (self._programs / "lazyfs").chmod(0o755)

    def run(self, commands: list[str]) -> subprocess.CompletedProcess[str]:
        """Run them until one fails; stderr ends with that one. In the end nothing is mounted."""
        script = [
            f"mount --bind {self._programs} /usr/local/bin",
            *map(self._here, commands),
            f"if grep {self.directory} /proc/self/mountinfo >&2; then exit 1; fi",
        ]
        shell = ["unshare", "--mount", "sh", "-exc", "\n".join(script)]
        return run(shell, env=self._environment, cwd=self.directory / "cwd")

    def daemons(self) -> list[int]:
        """Those that serve an image from the host."""
        lines = Path("/proc").glob("[0-9]*/cmdline")
        return [int(line.parent.name) for line in lines if self._is_ours(line)]

    def clean_up(self) -> None:
        """End what a block that failed has left: a daemon that is told to end unmounts."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # the first may be refused
            for pid in self.daemons():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(AssertionError):
                eventually(lambda: self.daemons() == [], "the daemons end", within=5)

    def _here(self, command: str) -> str:
        pattern = "|".join(map(re.escape, self._places))
        return re.sub(pattern, lambda found: self._places[found[0]], command)

    def _is_ours(self, command_line: Path) -> bool:
        try:
            shown = command_line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            return False
        return shown.startswith(b"lazyfs ") and self._host.encode() in shown


@pytest.fixture
def machine(tmp_path: Path, host: Nginx) -> Iterator[Machine]:
    machine = Machine(tmp_path, host)
    try:
        yield machine
    finally:
        machine.clean_up()


def test_the_readme_has_the_blocks_that_people_copy() -> None:
    written = [command for block in blocks() for command in block.commands]
    assert len(blocks()) >= 5
    assert "lazyfs https://host/debian.iso /mnt/img" in written
    assert "mount -o loop,ro /mnt/img/debian.iso /media" in written


@pytest.mark.parametrize("block", blocks(), ids=repr)
def test_a_block_of_commands_does_what_it_says(machine: Machine, block: Block) -> None:
    if not IS_ROOT:
        pytest.skip("the commands of the README are for root: mount and umount need it")
    need_loop()
    need_tool("getfattr", "attr")
    done = machine.run(block.commands)
    assert done.returncode == 0, done.stdout + done.stderr
    eventually(lambda: loops_below(machine.directory) == [], "no loop device is left")
    eventually(lambda: machine.daemons() == [], "no daemon is left")


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


MOUNT, LOOP = options_of(mount._parser()), options_of(loop._parser())
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
    written = [command for block in blocks() for command in block.commands]
    lines = [shlex.split(line) for line in literals(README) + written if line.startswith("lazyfs ")]
    assert ["lazyfs", "--help"] in lines
    assert {words[1] for words in lines if words[1].isalpha()} <= set(COMMANDS)
    assert [words for words in lines if misused(words)] == []


def test_make_targets_of_the_readme_exist() -> None:
    named = {line.split()[1] for line in literals(README) if line.startswith("make ")}
    assert {"demo", "test", "venv"} <= named
    makefile = (ROOT / "Makefile").read_text()
    rules = re.findall(r"^([a-z- ]+):", makefile, re.MULTILINE)
    assert named <= {target for targets in rules for target in targets.split()}


# Options of the manual page

NOT_FOR_LOOP = {"--name", "--browse", "--allow-other", "--allow-root", "-V", "--version"}


def documented(section: nodes.section) -> set[str]:
    """The option strings that a section defines."""
    terms = section.findall(nodes.term)
    found = [word.astext().split()[0] for term in terms for word in term.findall(nodes.literal)]
    assert sorted(found) == sorted(set(found)), "an option is documented twice"
    return set(found)


def manual() -> tuple[set[str], set[str]]:
    """The options that the manual page has for all commands, and for ``lazyfs loop`` alone."""
    sections = {s[0].astext(): s for s in tree_of(MANUAL).findall(nodes.section)}
    about_loop = sections["Loop"]
    about_loop.parent.remove(about_loop)
    return documented(sections["OPTIONS"]), documented(about_loop)


def test_the_manual_page_has_exactly_the_options_that_there_are() -> None:
    common, for_loop = manual()
    assert common == MOUNT
    assert (common - NOT_FOR_LOOP) | for_loop == LOOP


@pytest.mark.parametrize("command", [mount, loop], ids=["mount", "loop"])
def test_help_has_all_options_but_the_hidden_ones(command: ModuleType) -> None:
    parser = command._parser()
    shown = set(re.findall(r"(?<![\w-])--?[a-zA-Z][\w-]*", parser.format_help()))
    assert options_of(parser) - shown == HIDDEN


# The demo's transcript


def transcript() -> list[str]:
    between = README.read_text().partition("\n.. demo transcript\n")[2]
    text, end, _ = between.partition("\n.. end of transcript\n")
    assert end, "the comments around the transcript are gone"
    (block,) = publish_doctree(text, settings_overrides=_STRICT).findall(nodes.literal_block)
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

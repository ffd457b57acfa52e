"""Documents: parsing them, and a machine to run their blocks of commands on.

A block is ``.. code-block:: console``. Its lines are commands, which begin with ``$`` and may
continue on lines with ``>``, and their output. Commands of a block without output must succeed;
output is compared line by line, with ``...`` for anything. A block after a comment ``.. not run:
REASON`` is not run; a block with the class ``guest`` is run in a virtual machine.
"""

import contextlib
import doctest
import io
import os
import re
import shlex
import signal
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from docutils import nodes
from docutils.core import publish_doctree
from docutils.parsers.rst import Directive, directives

from lazyfs.system.loopdevice import loops_below

from .mounts import LAZYFS, environment, need_tool, run, run_well
from .waiting import eventually

ROOT = Path(__file__).parents[2]

# Syntax highlighting would need another package.
STRICT = {"report_level": 2, "halt_level": 2, "syntax_highlight": "none", "traceback": True}


class TableOfContents(Directive):
    """Sphinx's ``toctree``, as links, so that their targets can be checked."""

    has_content = True
    option_spec = dict.fromkeys(("caption", "hidden", "maxdepth", "titlesonly"), str)

    def run(self) -> list[nodes.Node]:
        names = [line.strip() for line in self.content]
        links = [nodes.reference("", name, refuri=f"{name}.rst") for name in names if name]
        return [nodes.paragraph("", "", *links)]


directives.register_directive("toctree", TableOfContents)


def tree_of(path: Path) -> nodes.document:
    """A parsed document; docutils' warnings are errors."""
    settings = {**STRICT, "warning_stream": io.StringIO()}
    return publish_doctree(path.read_text(), str(path), settings_overrides=settings)


@dataclass(frozen=True)
class Step:
    """One command and its documented output."""

    command: str
    output: str

    def prints(self, printed: str) -> bool:
        """Whether ``printed`` matches the documented output, with ``...`` for anything."""
        wanted, got = self.output.strip() + "\n", printed.strip() + "\n"
        return doctest.OutputChecker().check_output(wanted, got, doctest.ELLIPSIS)


@dataclass(frozen=True)
class Done:
    """A command that was run, and its output (both streams), with the document's names."""

    command: str
    output: str
    status: int


class Block:
    """One block of commands."""

    def __init__(self, text: str) -> None:
        before, *parts = re.split(r"^\$ ", text, flags=re.MULTILINE)
        assert not before, f"the block does not begin with a command: {before!r}"
        self.steps = [Step(*_command_and_output(part)) for part in parts]
        self.commands = [step.command for step in self.steps]
        self.shows_output = any(step.output.strip() for step in self.steps)

    def __repr__(self) -> str:
        ours = (c for c in self.commands if c.startswith(("lazyfs", "mount")))
        return next(ours, self.commands[0])


def _command_and_output(text: str) -> tuple[str, str]:
    """A command, with its continuation lines, and its output."""
    first, *rest = text.split("\n")
    more = list(takewhile(lambda line: line.startswith(">"), rest))
    command = [first, *(line[1:].removeprefix(" ") for line in more)]
    return "\n".join(command), "\n".join(rest[len(more) :])


def console_blocks(path: Path) -> Iterator[nodes.literal_block]:
    """All blocks of commands in a document."""
    for block in tree_of(path).findall(nodes.literal_block):
        if "console" in block["classes"]:
            yield block


def blocks_of(path: Path) -> list[Block]:
    """All blocks that can be run here; tests/guest runs those that need their own kernel."""
    found = [block for block in console_blocks(path) if not _is_for_elsewhere(block)]
    return [Block(block.astext()) for block in found]


def _is_for_elsewhere(block: nodes.literal_block) -> bool:
    return "guest" in block["classes"] or reason_not_to_run(block) != ""


def reason_not_to_run(block: nodes.literal_block) -> str:
    """The reason in a comment ``.. not run: ...`` before a block; empty if there is none."""
    place = block.parent.index(block)
    before = block.parent[place - 1] if place else None
    if not isinstance(before, nodes.comment):
        return ""
    return str(before.astext()).partition("not run: ")[2]


def plant_host(place: Path) -> Path:
    """Make the files that documents use at https://host/; returns the directory.

    Its debian.iso is really a squashfs: not every kernel can mount an ISO, and for a loop mount it
    makes no difference. boot.iso and live.iso are ISO images.
    """
    tree, root = place / "tree", place / "served"
    tree.mkdir()
    root.mkdir()
    for number in range(50):
        (tree / f"{number}.bin").write_bytes(os.urandom(40_000))
    squash = need_tool("mksquashfs", "squashfs-tools")
    run_well([squash, tree, root / "filesystem.squashfs", "-no-progress", "-quiet"])
    (root / "debian.iso").symlink_to("filesystem.squashfs")
    (tree / "boot").mkdir()
    (tree / "boot/grub.cfg").write_text("menuentry lazy {}\n")
    _make_iso(tree, root / "boot.iso")
    (root / "disk.raw").write_bytes(os.urandom((2 << 20) + 777))
    _make_disk(root / "filesystem.squashfs", root / "vm.raw")
    _make_iso(_plant_live_medium(place / "live", root / "filesystem.squashfs"), root / "live.iso")
    return root


def _plant_live_medium(tree: Path, squashfs: Path) -> Path:
    """Make the tree of live.iso."""
    for name in ("live", "boot/grub", "doc"):
        (tree / name).mkdir(parents=True)
    (tree / "boot/grub/grub.cfg").write_text("linux /live/vmlinuz boot=live\n")
    (tree / "README.txt").write_text("A live system to try things with.\n")
    (tree / "doc/manual.txt").write_bytes(os.urandom(8 << 20))
    (tree / "live/vmlinuz").write_bytes(os.urandom(530_000))
    (tree / "live/filesystem.squashfs").hardlink_to(squashfs)
    return tree


def _make_disk(filesystem: Path, image: Path) -> None:
    """Make a disk with a GPT: a boot partition and a root filesystem."""
    content = filesystem.read_bytes()
    image.write_bytes(bytes(2 << 20) + content + bytes(2 << 20))
    table = (
        "label: gpt\nstart=1MiB, size=1MiB, name=boot, type=21686148-6449-6E6F-744E-656564454649\n"
        f"start=2MiB, size={-(-len(content) // 1024)}KiB, name=root\n"
    )
    tool = need_tool("sfdisk", "fdisk")
    subprocess.run(
        [tool, "--quiet", "--wipe-partitions", "never", image],
        input=table.encode(),
        check=True,
        timeout=60,
    )


def _make_iso(tree: Path, image: Path) -> None:
    maker = need_tool("xorriso", "xorriso")
    run_well([maker, "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE", "-o", image, tree])


class Machine:
    """Runs a block of commands in private directories, which replace the machine's.

    It has its own mount namespace too: mount(8) looks for lazyfs only where programs are installed,
    so a directory with lazyfs is mounted there; and fstab is empty.
    """

    def __init__(self, directory: Path, servers: Mapping[str, str]) -> None:
        """``servers``: addresses in documents, and their replacements here."""
        self.directory = directory / "machine"
        self.cwd = self.directory / "cwd"
        self.home = self.directory / "home"
        self._programs = directory / "bin"
        self._fstab = directory / "fstab"
        self._servers = servers
        directories = ("/mnt/img", "/media", "/var/cache/lazyfs", "/srv")
        self._places = {**servers, **{name: f"{self.directory}{name}" for name in directories}}
        for place in ("home", "mnt/img", "media", "cwd", "srv"):
            (self.directory / place).mkdir(parents=True)
        self._programs.mkdir()
        (self._programs / "lazyfs").write_text(f'#!/bin/sh\nexec {shlex.join(LAZYFS)} "$@"\n')
        (self._programs / "lazyfs").chmod(0o755)
        self._fstab.touch()

    def run(self, commands: list[str]) -> subprocess.CompletedProcess[str]:
        """Run them until one fails; stderr ends with that one. Fails if a mount is left."""
        return self._shell("-exc", [*map(self._here, commands)])

    def run_each(self, commands: list[str]) -> list[Done]:
        """Run them all in one shell, even after one that fails. Fails if a mount is left."""
        lines = [f"{self._here(command)}\nprintf '\\0%s\\0' $?" for command in commands]
        done = self._shell("-c", ["exec 2>&1", *lines])
        *said, rest = done.stdout.split("\0")
        outputs, statuses = map(self._there, said[::2]), map(int, said[1::2])
        found = list(map(Done, commands, outputs, statuses))
        assert len(found) == len(commands), rest + done.stderr
        assert done.returncode == 0, f"something is still mounted: {rest}"
        return found

    def daemons(self) -> list[int]:
        """The daemons that serve images of these servers."""
        lines = Path("/proc").glob("[0-9]*/cmdline")
        return [int(line.parent.name) for line in lines if self._is_ours(line)]

    def check_that_nothing_is_left(self) -> None:
        eventually(lambda: loops_below(self.directory) == [], "no loop device is left")
        eventually(lambda: self.daemons() == [], "no daemon is left")

    def clean_up(self) -> None:
        """End the daemons left by a failed block, which unmount by themselves."""
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):  # the first may be refused
            for pid in self.daemons():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
            with contextlib.suppress(AssertionError):
                eventually(lambda: self.daemons() == [], "the daemons end", within=5)

    def _shell(self, how: str, lines: list[str]) -> subprocess.CompletedProcess[str]:
        script = [
            f"mount --bind {self._programs} /usr/local/bin",
            f"mount --bind {self._fstab} /etc/fstab",
            *lines,
            f"if grep {self.directory} /proc/self/mountinfo >&2; then exit 1; fi",
        ]
        shell = ["unshare", "--mount", "sh", how, "\n".join(script)]
        return run(shell, env=environment(self.home), cwd=self.cwd)

    def _here(self, text: str) -> str:
        pattern = "|".join(map(re.escape, sorted(self._places, key=len, reverse=True)))
        return re.sub(pattern, lambda found: self._places[found[0]], text)

    def _there(self, text: str) -> str:
        for written, here in self._places.items():
            text = text.replace(here, written)
        return text

    def _is_ours(self, command_line: Path) -> bool:
        try:
            shown = command_line.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            return False
        urls = [url.encode() for url in self._servers.values() if "://" in url]
        return shown.startswith(b"lazyfs ") and any(url in shown for url in urls)

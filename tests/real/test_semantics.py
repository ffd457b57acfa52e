"""The examples of docs/semantics.rst do what stands there, line for line."""

import os
import re
import shlex
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from docutils import nodes

from .blocks import ROOT, Block, Step, tree_of
from .mounts import IS_ROOT, LAZYFS, environment, is_mounted, run
from .servers import MTIME, Nginx
from .waiting import eventually

DOCUMENT = ROOT / "docs/semantics.rst"
SIZE = (40 << 20) + 777


@dataclass(frozen=True)
class Example:
    promise: str  # the title of its section
    steps: tuple[Step, ...]


def examples() -> list[Example]:
    return [
        Example(section[0].astext(), tuple(Block(block.astext()).steps))
        for section in tree_of(DOCUMENT).findall(nodes.section)
        for block in section.findall(nodes.literal_block)
    ]


class World:
    """Where an example takes place: a machine's directories, and the server that it speaks of."""

    def __init__(self, directory: Path, server: Nginx) -> None:
        self._server = server
        self._cwd = directory / "cwd"
        self.mountpoint = directory / "img"
        programs = directory / "bin"
        for place in (self._cwd, self.mountpoint, programs, directory / "home"):
            place.mkdir()
        (programs / "lazyfs").write_text(f'#!/bin/sh\nexec {shlex.join(LAZYFS)} "$@"\n')
        (programs / "lazyfs").chmod(0o755)
        self._environment = environment(directory / "home", PATH=f"{programs}:{os.environ['PATH']}")
        self._returning: threading.Timer | None = None

    def do(self, command: str) -> str:
        """Run it; returns what it prints, on both streams, in the document's words."""
        words = command.split()
        if words[0] == "server":
            self._tell_server(*words[1:])
            return ""
        shell = ["sh", "-c", f"exec 2>&1\n{self._here(command)}"]
        return self._there(run(shell, env=self._environment, cwd=self._cwd).stdout)

    def clean_up(self) -> None:
        if self._returning is not None:
            self._returning.join()
        if is_mounted(self.mountpoint):
            run(["umount", "--force", "--lazy", self.mountpoint])

    def _tell_server(self, what: str, argument: str = "") -> None:
        if what == "replace":
            image = self._server.root / argument
            image.write_bytes(os.urandom(SIZE))
            os.utime(image, (MTIME + 100, MTIME + 100))
        elif what == "on":
            self._server.start()
        else:
            self._server.stop()
            if argument:
                self._returning = threading.Timer(float(argument), self._server.start)
                self._returning.start()

    def _here(self, text: str) -> str:
        text = re.sub("https://(.*@)?host/", self._url, text)
        return text.replace("/mnt/img", str(self.mountpoint))

    def _url(self, found: re.Match[str]) -> str:
        return self._server.url("").replace("://", f"://{found[1] or ''}")

    def _there(self, text: str) -> str:
        text = text.replace(self._server.url(""), "https://host/")
        return text.replace(str(self.mountpoint), "/mnt/img")


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    root = tmp_path / "served"
    root.mkdir()
    (root / "disk.raw").write_bytes(os.urandom(SIZE))
    os.utime(root / "disk.raw", (MTIME, MTIME))
    with Nginx(root) as server:
        world = World(tmp_path, server)
        try:
            yield world
        finally:
            world.clean_up()


def test_every_promise_has_an_example() -> None:
    titles = [section[0].astext() for section in tree_of(DOCUMENT).findall(nodes.section)]
    assert [example.promise for example in examples()] == titles[:-1]
    assert titles[-1] == "What happens when"


@pytest.mark.parametrize("example", examples(), ids=lambda example: example.promise)
def test_the_example_prints_what_stands_there(world: World, example: Example) -> None:
    if not IS_ROOT:
        pytest.skip("the examples unmount with umount(8), which is for root")
    for step in example.steps:
        printed = world.do(step.command)
        assert step.prints(printed), f"$ {step.command}\n{printed}"
    eventually(lambda: not is_mounted(world.mountpoint), "nothing is mounted")

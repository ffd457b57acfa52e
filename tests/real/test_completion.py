"""Completion in real shells: what the Tab key makes of a line."""

import os
import pty
import re
import select
import shlex
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mounts import COMMAND_LIMIT, LAZYFS, Lab, environment, need_tool, run
from .servers import Scripted

SCRIPTS = Path(__file__).parents[2] / "contrib/completion"
_END = "\x04"  # Ctrl-D: the shell ends
_SHOW = "\x0f"  # Ctrl-O: the shell shows its line, see below
_DISCARD = "\x15"  # Ctrl-U


class Interactive:
    """A shell on a terminal of its own."""

    command: tuple[str, ...]
    setup: tuple[str, ...]

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._pid, self._terminal = pty.fork()
        if self._pid == 0:
            os.chdir(directory)
            os.execvpe(self.command[0], self.command, {**env, "TERM": "dumb", "PS1": ""})
        self._unread = ""
        for line in (*self.setup, "echo rea''dy"):
            self._type(f"{line}\n")
        self._until("\nready\r\n")

    def completed(self, line: str) -> str:
        """What Tab makes of a line."""
        return self._after_tab(line)[1]

    def offered(self, line: str) -> list[str]:
        """The words that Tab shows below a line."""
        return self._after_tab(line)[0].partition("\n")[2].split()

    def close(self) -> None:
        self._type(_DISCARD + _END)
        try:
            while os.read(self._terminal, 4096):
                pass
        except OSError:  # the other end is closed
            pass
        os.close(self._terminal)
        os.waitpid(self._pid, 0)

    def _after_tab(self, line: str) -> tuple[str, str]:
        self._type(f"{line}\t{_SHOW}")
        said = self._until(r"<<(.*?)>>")
        self._type(_DISCARD)
        return said[0].rpartition("<<")[0], said[1]

    def _type(self, keys: str) -> None:
        os.write(self._terminal, keys.encode())

    def _until(self, pattern: str) -> re.Match[str]:
        """What the shell writes, up to the end of this."""
        until = time.monotonic() + COMMAND_LIMIT
        while not (found := re.search(f"(?s:.*?){pattern}", self._unread)):
            left = until - time.monotonic()
            ready, _, _ = select.select([self._terminal], [], [], max(0.0, left))
            assert ready, f"the shell has not said {pattern!r}, but {self._unread!r}"
            self._unread += os.read(self._terminal, 4096).decode(errors="replace")
        self._unread = self._unread[found.end() :]
        return found


class Bash(Interactive):
    command = ("bash", "--norc", "--noprofile", "-i")
    setup = (
        f"source {SCRIPTS}/lazyfs.bash",
        "bind 'set show-all-if-ambiguous on' 'set bell-style none'",
        r"""bind -x '"\C-o": printf "<<%s>>" "$READLINE_LINE"'""",
    )


class Zsh(Interactive):
    command = ("zsh", "-f", "-i")
    setup = (
        f"PS1=; fpath=({SCRIPTS} $fpath); autoload -U compinit; compinit -u -D",
        "show-line() { print -rn -- '<<'$BUFFER'>>' }; zle -N show-line; bindkey '^O' show-line",
    )


class Fish:
    """fish tells what it would offer; the line is made of that as it does it."""

    def __init__(self, directory: Path, env: dict[str, str]) -> None:
        self._directory, self._env = directory, env

    def completed(self, line: str) -> str:
        before, space, _ = line.rpartition(" ")
        (word,) = self.offered(line)
        end = "" if word.endswith(("/", "=")) else " "
        return before + space + word.replace(" ", r"\ ") + end

    def offered(self, line: str) -> list[str]:
        script = f"source {SCRIPTS}/lazyfs.fish; complete --do-complete $argv"
        done = run(["fish", "--no-config", "-c", script, line], env=self._env, cwd=self._directory)
        assert (done.returncode, done.stderr) == (0, "")
        return [row.partition("\t")[0] for row in done.stdout.splitlines()]

    def close(self) -> None:
        """Nothing runs."""


SHELLS = {"bash": Bash, "zsh": Zsh, "fish": Fish}


@pytest.fixture
def place(lab: Lab) -> Path:
    """A directory with some names in it."""
    directory = lab.directory / "place"
    directory.mkdir()
    (directory / "an image.iso").touch()
    (directory / "mnt.iso").touch()
    (directory / "mnt").mkdir()
    return directory


@pytest.fixture(params=SHELLS)
def shell(request: pytest.FixtureRequest, lab: Lab, place: Path) -> Iterator[Interactive | Fish]:
    """A shell in that directory, which knows lazyfs."""
    need_tool(request.param, request.param)
    programs = lab.directory / "bin"
    programs.mkdir()
    (programs / "lazyfs").write_text(f'#!/bin/sh\nexec {shlex.join(LAZYFS)} "$@"\n')
    (programs / "lazyfs").chmod(0o755)
    env = environment(lab.home)
    env["PATH"] = f"{programs}:{env['PATH']}"
    shell = SHELLS[request.param](place, env)
    try:
        yield shell
    finally:
        shell.close()


def test_a_line_goes_on_by_itself(shell: Interactive | Fish) -> None:
    for line, whole in {
        "lazyfs sta": "lazyfs status ",
        "lazyfs help cach": "lazyfs help cache ",
        "lazyfs cache pr": "lazyfs cache prune ",
        "lazyfs ls --rec": "lazyfs ls --recursive ",
        "lazyfs --on-change ref": "lazyfs --on-change refetch ",
        "lazyfs --on-change=ref": "lazyfs --on-change=refetch ",
        "lazyfs ls https://h:8/a.iso --net": "lazyfs ls https://h:8/a.iso --netrc ",
        "lazyfs -o ro,cacer": "lazyfs -o ro,cacert=",
        "lazyfs ls an": r"lazyfs ls an\ image.iso ",
        "lazyfs --log-file=an": r"lazyfs --log-file=an\ image.iso ",
        "lazyfs --cache-dir=mn": "lazyfs --cache-dir=mnt/",
        "lazyfs https://h/a.iso mn": "lazyfs https://h/a.iso mnt/",
    }.items():
        assert shell.completed(line) == whole


def test_what_a_line_may_go_on_with_is_offered(shell: Interactive | Fish) -> None:
    assert {"cache", "cat"} <= set(shell.offered("lazyfs ca"))
    tls = {"--tls-certificates", "--tls-psk", "--tls-verify-peer"}
    assert tls <= set(shell.offered("lazyfs serve --tls-"))
    assert {"refetch", "fail"} <= {
        word.rpartition("=")[2] for word in shell.offered("lazyfs --on-change=")
    }
    assert {"mnt/", "mnt.iso"} <= set(shell.offered("lazyfs ls mnt"))


def test_the_mount_points_of_running_daemons_are_known(
    shell: Interactive | Fish, lab: Lab, place: Path, scripted: Scripted
) -> None:
    at = place / "mnt" / "my image"
    at.mkdir()
    with lab.mounted(scripted.url("image.raw"), at=at):
        quoted = str(at).replace(" ", r"\ ")
        assert shell.completed(f"lazyfs stop {place}/mn") == f"lazyfs stop {quoted} "
        assert shell.completed(f"lazyfs umount {place}/mn") == f"lazyfs umount {quoted} "

"""What a command line may go on with."""

from pathlib import Path
from typing import Any

import pytest

from lazyfs.cache import maintenance
from lazyfs.cli import complete, mount
from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.complete import DIRECTORY, FILE, rows
from lazyfs.cli.main import main
from lazyfs.daemon import client
from lazyfs.daemon.client import Daemon


def words(line: str) -> list[str]:
    """How the last word of a line may go on, without what it means."""
    return [word for word, _ in rows(line.split(" "))]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("sta", ["status"]),
        ("c", ["cat", "cp", "cache", "config"]),
        ("nothing", []),
        ("ls --js", ["--json"]),
        ("ls --fi", []),
        ("--fi", ["--fill"]),
        ("https://h/a /m --fi", ["--fill"]),
        ("mount --fi", ["--fill"]),
        ("serve --tls-", ["--tls-certificates", "--tls-psk", "--tls-verify-peer"]),
        ("--on-change ", ["refetch", "fail"]),
        ("--on-change=", ["--on-change=refetch", "--on-change=fail"]),
        ("ls --on-change=f", ["--on-change=fail"]),
        ("--fill --log-format j", ["json"]),
        ("--cache-dir ", [":directory"]),
        ("--cache-dir=/v", [":directory"]),
        ("--log-file ", [":file"]),
        ("--timeout ", []),
        ("--proxy ", []),
        ("https://h/a ", [":directory"]),
        ("https://h/a --fill ", [":directory"]),
        ("https://h/a --timeout 5 ", [":directory"]),
        ("ls ", [":file"]),
        ("cp i a b ", [":file"]),
        ("cache ", ["list", "verify", "prune", "rm"]),
        ("cache p", ["prune"]),
        ("cache prune --u", ["--unused"]),
        ("profile show ", [":file"]),
        ("profile merge a b ", [":file"]),
        ("help ca", ["cat", "cache"]),
        ("-o cache_d", ["cache_dir="]),
        ("-o allow_o", ["allow_other", "allow_other"]),
        ("-o ro,nod", ["ro,nodev"]),
        ("loop -o n", []),
        ("-- --fi", [":directory"]),
        ("demo ", []),
        ("rate /m ", []),
    ],
)
def test_a_word_goes_on(line: str, found: list[str]) -> None:
    assert words(line) == found


def test_an_empty_line_has_all_commands_and_what_they_do() -> None:
    assert rows([""]) == rows([]) == list(COMMANDS.items())


def test_a_dash_has_all_options_and_what_they_do() -> None:
    found = rows(["-"])
    assert {word for word, _ in found} == set(mount._parser().options())
    assert all(what for _, what in found)


RUNNING = [
    Daemon(Path("/s"), {"where": where, "images": [{"name": "a.iso"}]})
    for where in ("/mnt/img", "/dev/nbd0")
]


@pytest.mark.parametrize(
    "line",
    ["status ", "stop ", "map --svg x ", "fill --wait ", "umount ", "detach ", "top --every 1s "],
)
def test_what_runs_is_offered_where_it_is_asked_for(
    line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "running", lambda: RUNNING)
    assert rows(line.split(" ")) == [("/mnt/img", "a.iso"), ("/dev/nbd0", "a.iso")]
    assert words(f"{line}/dev") == ["/dev/nbd0"]


@pytest.mark.parametrize("line", ["cache rm ", "cache rm a ", "cache verify "])
def test_caches_are_offered_where_they_are_asked_for(
    line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Path] = []

    class Cached:
        name, url = "debian.iso-1", "https://h/debian.iso"

    def all_caches(directory: Path) -> list[Any]:
        asked.append(directory)
        return [Cached]

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(maintenance, "all_caches", all_caches)
    assert rows(line.split(" ")) == [("debian.iso-1", "https://h/debian.iso")]
    assert asked == [tmp_path / "lazyfs"]


def test_it_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["__complete", "sto"]) == 0
    assert main(["__complete", "ls", ""]) == 0
    assert capsys.readouterr().out == f"stop\t{COMMANDS['stop']}\n:file\t\n"


def test_names_from_elsewhere_stay_on_their_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = Daemon(Path("/s"), {"where": "/mnt/a\nb\tc", "images": [{"name": "\x1b[2J"}]})
    monkeypatch.setattr(client, "running", lambda: [odd])
    assert complete.main(["status", ""]) == 0
    assert capsys.readouterr().out == "/mnt/a?b?c\t?[2J\n"


def test_every_option_and_argument_can_be_completed() -> None:
    """None of them raises, whatever its kind."""
    for command in COMMANDS:
        for option, _ in rows([command, "-"]):
            for row in rows([command, f"{option}="]) if option.startswith("--") else []:
                assert row in (FILE, DIRECTORY) or row[0].startswith(f"{option}=")

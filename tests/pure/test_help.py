"""Help of both lengths, and what is said of a command line that is nearly right."""

import argparse
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cli import mount
from lazyfs.cli.commandtable import COMMANDS, GROUPS
from lazyfs.cli.helptext import Rare
from lazyfs.cli.main import main
from lazyfs.cli.parser import Parser, listed, parser_of, suggestion

SCREEN = 24  # lines of a terminal, all of them for the help
FIRST_SCREEN = 40  # for that of lazyfs itself, which has the commands too
COLUMNS = 80


def all_parsers() -> Iterator[Parser]:
    """Of all commands, and of those within them."""
    for name in COMMANDS:
        parser = parser_of(name)
        yield parser
        yield from parser.commands().values()


PARSERS = {parser.prog: parser for parser in all_parsers()}
every_command = pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)


@pytest.fixture(autouse=True)
def _a_terminal_of_the_usual_width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(COLUMNS))


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """What a command line that asks for help prints."""
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 0
    out, err = capsys.readouterr()
    assert err == ""
    return out


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The one line that is said of a wrong command line."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    return err.removeprefix("lazyfs: ").rstrip()


def rows_of(text: str) -> list[str]:
    """The lines of a help that begin with an option."""
    return [line.strip() for line in text.splitlines() if line.startswith("  -")]


def names_in(text: str) -> set[str]:
    """The options that the lines of a help begin with, in every spelling."""
    words = [word.strip(",") for row in rows_of(text) for word in row.split("  ")[0].split()]
    return {word for word in words if word.startswith("-")}


def options_of(parser: Parser) -> list[argparse.Action]:
    return [a for _, group in parser.groups() for a in group if a.option_strings]


# Of two lengths


@every_command
def test_help_fits_on_a_screen(parser: Parser) -> None:
    lines = parser.format_help().splitlines()
    assert len(lines) <= (FIRST_SCREEN if parser.prog == "lazyfs" else SCREEN)
    assert [line for line in lines if len(line) > COLUMNS] == []


@every_command
def test_help_ends_with_an_example(parser: Parser) -> None:
    last = parser.format_help().rpartition("\n\nexample")[2]
    what, colon, lines = last.partition(":\n")
    assert colon
    assert [line for line in lines.splitlines() if line and not line.startswith("  ")] == []
    assert f"  {parser.prog}" in lines or what  # what is no command is said to be something else


@every_command
def test_full_help_has_every_option_with_a_word_on_it(
    parser: Parser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parser, "in_full", True)
    text = parser.format_help()
    assert names_in(text) == set(parser.options())
    assert [o.option_strings for o in options_of(parser) if not o.help] == []
    assert [line for line in text.splitlines() if len(line) > COLUMNS] == []


@every_command
def test_help_has_what_is_not_rare_and_says_so_if_there_is_more(parser: Parser) -> None:
    common = [o for o in options_of(parser) if not isinstance(o.help, Rare)]
    shown = {name for o in common for name in o.option_strings} - {"--help-all"}
    rare = {name for o in options_of(parser) for name in o.option_strings} - shown
    more = {"--help-all"} if rare - {"-h", "--help", "--help-all"} else set()
    assert names_in(parser.format_help()) == shown | more


@pytest.mark.parametrize("prog", PARSERS)
def test_help_can_be_asked_for_in_two_ways(prog: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = prog.split()[1:]
    asked = said([*words, "--help"], capsys)
    assert asked.startswith("usage: lazyfs")
    assert said(["help", *words], capsys) == asked
    assert said([*words, "-h"], capsys) == asked


@every_command
def test_columns_of_help_are_straight(parser: Parser) -> None:
    rows = re.findall(r"^  -.*?  +(?=\S)", parser.format_help(), re.MULTILINE)
    assert len(rows) == len(rows_of(parser.format_help()))
    assert len(set(map(len, rows))) <= 1


def test_no_help_waits_for_an_event_loop() -> None:
    """It has to come at once, and Tab asks for as much."""
    script = (
        "import sys\n"
        "from lazyfs.cli.commandtable import COMMANDS\n"
        "from lazyfs.cli.parser import parser_of\n"
        "texts = [parser_of(name).format_help() for name in COMMANDS]\n"
        "print(*{'trio', 'httpx', 'pyfuse3', 'pycdlib'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True)
    assert done.stdout == b"\n"


def test_full_help_is_in_groups(capsys: pytest.CaptureFixture[str]) -> None:
    full = said(["--help-all"], capsys)
    for title in ("options", "cache", "fetching", "server", "logging"):
        assert f"\n\n{title}:\n  -" in full
    assert full.index("\ncache:") < full.index("--min-free") < full.index("\nfetching:")
    for name, what in COMMANDS.items():
        assert f"  {name}" in full
        assert what in full


def test_commands_are_in_one_group_each(capsys: pytest.CaptureFixture[str]) -> None:
    assert sum(map(len, GROUPS.values())) == len(COMMANDS)
    short = said(["--help"], capsys)
    for title, commands in GROUPS.items():
        row = f"{title} {', '.join(commands)}"
        assert row.split() in [line.split() for line in short.splitlines()]


# Nearly right


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--cachedir=/c", "https://h/a"], "--cachedir is unknown; did you mean --cache-dir?"),
        (["--cache_dir", "/c", "https://h/a"], "--cache_dir is unknown; did you mean --cache-dir?"),
        (["-cache-dir", "/c", "https://h/a"], "-cache-dir is unknown; did you mean --cache-dir?"),
        (["--read-ahead=8M", "u", "/m"], "--read-ahead is unknown; did you mean --readahead?"),
        (["loop", "--repare", "https://h/a", "/m"], "--repare is unknown; did you mean --repair?"),
        (["ls", "--jsno", "https://h/a"], "--jsno is unknown; did you mean --json?"),
        (["cache", "prune", "--unusde=3d"], "--unusde is unknown; did you mean --unused?"),
        (["--qqqq", "https://h/a", "/m"], "--qqqq is unknown; see lazyfs --help"),
        (["ls", "--qqqq", "https://h/a"], "--qqqq is unknown; see lazyfs ls --help"),
        (["-o", "cachedir=/c", "https://h/a", "/m"],
         "mount option cachedir is unknown; did you mean cache_dir?"),
        (["-o", "alow_other", "https://h/a", "/m"],
         "mount option alow_other is unknown; did you mean allow_other?"),
        (["statsu"], "'statsu' is neither a URL nor a command; did you mean status?"),
        (["unmount", "/m"], "'unmount' is neither a URL nor a command; did you mean umount?"),
        (["cache", "lst"], "lazyfs cache knows no 'lst'; did you mean list?"),
        (["cache", "xyz"], "lazyfs cache knows no 'xyz'; it knows list, verify, prune or rm"),
        (["--on-change=refech", "https://h/a", "/m"],
         "--on-change knows no 'refech'; did you mean refetch?"),
        (["--log-format=yaml", "https://h/a", "/m"],
         "--log-format knows no 'yaml'; it knows text or json"),
    ],
)  # fmt: skip
def test_a_mistake_is_told_with_what_was_meant(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert refused(arguments, capsys) == says


@pytest.mark.parametrize(
    "arguments",
    [
        ["--hedaer=Authorization: Hunter2", "https://h/a", "/m"],
        ["https://h/a", "/m", "--hedaer=Authorization: Hunter2"],
        ["ls", "--hedaer=Authorization: Hunter2", "https://h/a"],
        ["cache", "list", "--hedaer=Authorization: Hunter2"],
        ["--hedaer", "Hunter2", "https://h/a", "/m"],
        ["-pHunter2", "https://h/a", "/m"],
        ["attach", "-pHunter2", "https://h/a"],
        ["cache", "https://user:Hunter2@h/a"],
        ["detach", "/dev/nbd0", "https://user:Hunter2@h/a"],
    ],
)
def test_a_mistake_does_not_tell_secrets(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "Hunter" not in refused(arguments, capsys)


def test_nothing_far_from_it_is_suggested() -> None:
    assert suggestion("--frobnicate", mount._parser().options()) == ""
    assert suggestion("", mount._parser().options()) == ""
    assert suggestion("x", []) == ""


LONG = [name for name in mount._parser().options() if len(name) > 6]


@given(st.sampled_from(LONG), st.data())
def test_an_option_with_a_letter_left_out_is_recognized(name: str, data: st.DataObject) -> None:
    place = data.draw(st.integers(2, len(name) - 1))
    wrong = name[:place] + name[place + 1 :]
    if wrong not in LONG:
        meant = suggestion(wrong, mount._parser().options())
        assert meant.startswith("did you mean --")
        assert meant[len("did you mean ") : -1] in mount._parser().options()


@given(st.text(max_size=20), st.lists(st.text(max_size=20), max_size=5))
def test_only_what_is_known_is_suggested(word: str, known: list[str]) -> None:
    meant = suggestion(word, known)
    assert meant in {"", *(f"did you mean {name}?" for name in known)}


def test_lists_of_names_are_told_as_people_do() -> None:
    assert [listed(list(names)) for names in ("", "a", "ab", "abc")] == [
        "",
        "a",
        "a or b",
        "a, b or c",
    ]


@pytest.mark.parametrize("words", [["--help"], ["ls", "--help-all"], ["--version"], ["help", "cp"]])
def test_help_that_cannot_be_written_is_no_success(words: list[str]) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "lazyfs", *words], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert "the output cannot be written: No space left on device" in done.stderr

"""The pictures of the README show what the commands say today."""

import re
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from .mounts import COMMAND_LIMIT, IS_ROOT, environment, need_loop, need_tool, run

KEPT = Path(__file__).parents[2] / "docs/pictures"
PICTURES = ("demo", "top", "status", "map")
MOST = 60_000  # bytes
SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with new pictures."""
    if not IS_ROOT:
        pytest.skip("the pictures are made in a mount namespace, which needs root")
    need_loop()
    need_tool("mksquashfs", "squashfs-tools")
    need_tool("nginx", "nginx-light")
    directory = tmp_path_factory.mktemp("pictures")
    done = run(
        [sys.executable, KEPT / "make.py", directory],
        env=environment(directory),
        limit=2 * COMMAND_LIMIT,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return directory


def rows(picture: Path) -> list[str]:
    """What stands in a picture: the command, and the lines of the terminal."""
    root = ET.fromstring(picture.read_text())
    return [" ".join(text.itertext()) for text in root if text.tag in (f"{SVG}text", f"{SVG}g")]


def shape(lines: list[str]) -> list[str]:
    """The lines that have words, without what differs from run to run: names, amounts, times."""
    masked = [re.sub(r"lazyfs-demo-\w+", "lazyfs-demo-*", line) for line in lines]
    masked = [re.sub(r"\d+(\.\d+)?( ([KMG]i)?B| min\b| s\b)?", "#", line) for line in masked]
    return [" ".join(line.split()) for line in masked if re.search("[a-z]", line)]


@pytest.mark.parametrize("name", PICTURES)
def test_a_kept_picture_has_the_words_of_a_new_one(made: Path, name: str) -> None:
    assert shape(rows(KEPT / f"{name}.svg")) == shape(rows(made / f"{name}.svg"))


@pytest.mark.parametrize("name", ["top", "map"])
def test_what_is_here_is_drawn_with_blocks_where_the_terminal_has_them(
    made: Path, name: str
) -> None:
    root = ET.fromstring((made / f"{name}.svg").read_text())
    assert root.findall(f"./{SVG}g/{SVG}rect")


@pytest.mark.parametrize("name", PICTURES)
def test_a_picture_names_its_command_and_is_small(name: str) -> None:
    picture = KEPT / f"{name}.svg"
    assert rows(picture)[0].startswith(f"$ lazyfs {name}")
    assert picture.stat().st_size < MOST


def test_all_pictures_that_are_made_are_kept(made: Path) -> None:
    assert {path.name for path in made.glob("*.svg")} == {path.name for path in KEPT.glob("*.svg")}

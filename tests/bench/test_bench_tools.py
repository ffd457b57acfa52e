"""The tools that are compared: their command lines, and which of them are there."""

import subprocess
from pathlib import Path

import pytest

from bench import system
from bench.image import Image
from bench.server import Way
from bench.tools import TOOLS, Download, Httpfs2, Lazyfs, Ratarmount, Task, Tool, variant

URL = "http://127.0.0.1:8080/image"


class _SilentServer:
    def log(self) -> list[object]:
        return []


@pytest.fixture
def way() -> Way:
    return Way(_SilentServer(), 8080, None)  # type: ignore[arg-type]


@pytest.fixture
def image(tmp_path: Path) -> Image:
    path = tmp_path / "original"
    path.write_bytes(bytes(8192))
    return Image(path, "squashfs", [])


@pytest.fixture
def room(tmp_path: Path) -> Path:
    directory = tmp_path / "room"
    directory.mkdir()
    return directory


def words(command: object) -> list[str]:
    assert isinstance(command, list | tuple)
    return [str(part) for part in command]


def follows(command: list[str], *expected: str) -> bool:
    """Whether the words stand in the command, one behind the other."""
    length = len(expected)
    return any(command[n : n + length] == list(expected) for n in range(len(command) - length + 1))


# Variants


def test_a_variant_is_a_lazyfs_with_a_name_and_options_of_its_own() -> None:
    made = variant("small=--block-size 16K --no-cache")
    assert issubclass(made, Lazyfs)
    assert (made.name, made.options) == ("small", ("--block-size", "16K", "--no-cache"))
    assert made.tasks == Lazyfs.tasks
    assert Lazyfs.options == ()


def test_a_value_may_have_an_equals_sign_of_its_own() -> None:
    assert variant("a=--header=K: V").options == ("--header=K:", "V")


def test_a_variant_may_have_no_options() -> None:
    made = variant("plain")
    assert (made.name, made.options) == ("plain", ())


def test_the_options_of_a_variant_reach_all_its_commands(
    way: Way, image: Image, room: Path
) -> None:
    tool = variant("small=--block-size 16K")(way, image, room, None)
    for command in (tool.command(), tool.listing(), tool.extraction("a")):
        assert follows(words(command), "--block-size", "16K")


# Command lines


def test_lazyfs_is_told_its_cache_its_connections_and_what_will_be_read(
    way: Way, image: Image, room: Path
) -> None:
    tool = Lazyfs(way, image, room, 8)
    tool.told = ["--profile", room / "p"]
    command = words(tool.command())
    assert command[-2:] == [URL, str(room / "mnt")]
    assert "--foreground" in command
    assert follows(command, "--cache-dir", str(room / "cache"))
    assert follows(command, "--connections", "8")
    assert follows(command, "--profile", str(room / "p"))


def test_lazyfs_has_its_own_default_of_connections(way: Way, image: Image, room: Path) -> None:
    assert "--connections" not in words(Lazyfs(way, image, room, None).command())


def test_lazyfs_looks_into_an_iso_by_itself(way: Way, image: Image, room: Path) -> None:
    tool = Lazyfs(way, image, room, None)
    assert follows(words(tool.listing()), "ls", "-R")
    assert words(tool.listing())[-1] == URL
    assert words(tool.extraction("a/b"))[-2:] == [URL, "a/b"]
    assert "cat" in words(tool.extraction("a/b"))


@pytest.mark.parametrize("name", ["nbdkit", "httpfs2", "download", "local"])
def test_others_look_into_the_file_with_xorriso(
    name: str, way: Way, image: Image, room: Path
) -> None:
    tool = TOOLS[name](way, image, room, None)
    where = f"stdio:{tool.target}"
    assert follows(words(tool.listing()), "xorriso", "-indev", where)
    assert words(tool.extraction("a/b"))[-1] == "a/b"


def test_ratarmount_is_looked_into_as_a_tree(way: Way, image: Image, room: Path) -> None:
    tool = Ratarmount(way, image, room, None)
    assert words(tool.command())[-2:] == [URL, str(tool.mountpoint)]
    assert str(tool.mountpoint) in words(tool.listing())
    assert words(tool.extraction("a/b")) == ["cat", str(tool.mountpoint / "a/b")]


def test_a_download_is_there_when_the_file_has_its_size(way: Way, image: Image, room: Path) -> None:
    tool = Download(way, image, room, None)
    assert follows(words(tool.command()), "--output", tool.target)
    assert words(tool.command())[-1] == URL


@pytest.mark.parametrize("name", ["nbdkit", "nbdkit-cow", "nbdkit-cache", "rclone", "httpdirfs"])
def test_peers_are_given_the_image_and_a_place(
    name: str, way: Way, image: Image, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(Tool, "launch", lambda _, command: launched.extend(words(command)))
    monkeypatch.setattr(system, "wait_until", lambda *_: True)
    command = words(TOOLS[name](way, image, room, None).command())
    assert any(word.startswith("http://127.0.0.1:8080/") for word in [*launched, *command])
    assert any(word.startswith(str(room / "mnt")) for word in command)


@pytest.mark.parametrize("name", ["lazyfs-serve", "nbdkit-curl", "nbdkit-file"])
def test_servers_of_nbd_are_known_by_their_socket(
    name: str, way: Way, image: Image, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched: list[str] = []
    monkeypatch.setattr(Tool, "launch", lambda _, command: launched.extend(words(command)))
    monkeypatch.setattr(system, "wait_until", lambda *_: True)
    tool = TOOLS[name](way, image, room, None)
    tool.start()
    assert tool.target == f"nbd+unix:///?socket={room}/nbd.sock"
    assert follows(launched, "--unix", f"{room}/nbd.sock")
    assert launched[-1] == (str(image.path) if name == "nbdkit-file" else URL)


def test_a_server_that_does_not_start_says_why(
    way: Way, image: Image, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (room / "messages").write_text("no such plugin\n")
    monkeypatch.setattr(Tool, "launch", lambda *_: None)
    monkeypatch.setattr(system, "wait_until", lambda *_: False)
    with pytest.raises(system.Failed, match="no such plugin"):
        TOOLS["nbdkit-curl"](way, image, room, None).start()


def test_nbdkit_that_does_not_start_is_a_failure(
    way: Way, image: Image, room: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Tool, "launch", lambda *_: None)
    monkeypatch.setattr(system, "wait_until", lambda *_: False)
    with pytest.raises(system.Failed, match="nbdkit does not start"):
        TOOLS["nbdkit-cow"](way, image, room, None).command()


# What is installed, and what a process leaves


@pytest.mark.parametrize("tool", [Ratarmount, Httpfs2, Download])
def test_a_tool_that_is_not_there_says_so(
    tool: type[Tool], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(system.Failed, match="is not installed"):
        tool.version()


def test_the_last_message_of_a_tool_is_kept_and_its_end_is_seen(
    way: Way, image: Image, room: Path
) -> None:
    tool = Lazyfs(way, image, room, None)
    assert tool.last_message() == "it said nothing"
    tool.launch(["sh", "-c", "echo first; echo last >&2"])
    assert system.wait_until(tool.ended, 10)
    assert tool.last_message() == "last"


@pytest.mark.parametrize(
    ("said", "followed"),
    [
        ("lazyfs: the profile is not used: it is of another version of the image", False),
        ("lazyfs: nothing is preloaded: this is no ISO", False),
        ("lazyfs: --preload squashfs:a: there is no a", False),
        ("lazyfs: is mounted on /mnt", True),
    ],
)
def test_a_lazyfs_that_does_not_follow_is_noticed(
    said: str, followed: bool, way: Way, image: Image, room: Path
) -> None:
    tool = Lazyfs(way, image, room, None)
    assert tool.not_followed() is None
    (room / "messages").write_text(f"before\n{said}\nafter\n")
    assert tool.not_followed() == (None if followed else said)


def test_stopping_a_tool_ends_all_that_it_launched(way: Way, image: Image, room: Path) -> None:
    tool = Lazyfs(way, image, room, None)
    tool.launch(["sleep", "600"])
    tool.launch(["sleep", "600"])
    assert not tool.ended()
    assert tool.peak_memory() > 0
    tool.stop()
    assert tool.ended()


def test_every_tool_is_listed_under_its_own_name_and_can_do_something() -> None:
    assert all(name == tool.name for name, tool in TOOLS.items())
    assert all(tool.tasks <= set(Task) and tool.tasks for tool in TOOLS.values())


# The bench's own way to run programs


def test_a_program_that_fails_says_why_in_its_last_line() -> None:
    with pytest.raises(system.Failed, match=r"^sh: why$"):
        system.run(["sh", "-c", "echo more >&2; echo why >&2; exit 3"])


def test_a_program_that_takes_too_long_is_ended() -> None:
    with pytest.raises(system.Failed, match="took longer"):
        system.run(["sleep", "600"], 0.05)


def test_a_process_that_ignores_sigterm_is_killed() -> None:
    script = "trap '' TERM; echo ready; while :; do sleep 600 & wait; done"
    with subprocess.Popen(
        ["sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        system.end(process, 0.1)
        assert process.returncode == -9

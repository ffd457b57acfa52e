"""What people see of a running daemon, and what they can tell it."""

import json
import os
import re
import shlex
import signal
import subprocess
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from .images import MIB, Images
from .mounts import (
    IS_ROOT,
    LAZYFS,
    Lab,
    Mounted,
    finish_reading,
    loop_mounted,
    need_loop,
    read,
    start_reading,
)
from .servers import Answer, Nginx, Scripted
from .waiting import eventually

BLOCK = 32 << 10  # bytes: the default


def said(lab: Lab, *words: str | Path, env: dict[str, str] | None = None) -> str:
    done = lab.start(*words, env=env)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def status(lab: Lab, where: str | Path) -> dict[str, object]:
    """Of the only image there."""
    (daemon,) = json.loads(said(lab, "status", "--json", where))
    (image,) = daemon["images"]
    assert isinstance(image, dict)
    return image


def refused(lab: Lab, *words: str | Path) -> str:
    done = lab.start(*words)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    return done.stderr


def until_complete(mounted: Mounted) -> None:
    eventually(lambda: "is complete" in mounted.messages(), "the image is complete", 30)


def test_status_for_people(lab: Lab, scripted: Scripted) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        read(mounted.image, 2 * MIB, 100)
        text = said(lab, "status", mounted.path)
        assert text.startswith(f"{mounted.path}  (fuse, process {mounted.pid})\n  {url}\n")
        assert re.search(r"here +\S+ KiB of 4\.0 MiB \(\d %\)\n", text)
        assert re.search(r"server +ok, ", text)
        assert re.search(r"reads +\d+ % without waiting; ", text)


@pytest.mark.parametrize("where", ["the mount point", "the image", "the URL"])
def test_a_daemon_has_many_names(lab: Lab, scripted: Scripted, where: str) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        names = {"the mount point": mounted.path, "the image": mounted.image, "the URL": url}
        assert status(lab, names[where])["url"] == url


def test_status_shows_everything_that_we_may_see(lab: Lab, scripted: Scripted) -> None:
    with (
        lab.mounted(scripted.url("image.raw")) as one,
        lab.mounted("--no-cache", scripted.url("image.raw")) as other,
    ):
        daemons = json.loads(said(lab, "status", "--json"))
        places = {daemon["where"]: daemon["pid"] for daemon in daemons}
        assert places[str(one.path)] == one.pid
        assert places[str(other.path)] == other.pid


def test_every_field_of_the_status_is_documented(lab: Lab, scripted: Scripted) -> None:
    text = (Path(__file__).parents[2] / "docs/control.rst").read_text()
    _, _, table = text.partition("\nfield ")
    rows = [line for line in table.splitlines() if line.startswith("``")]
    named = {name for row in rows for name in re.findall(r"``(\w+)``", row[:23])}
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert set(status(lab, mounted.path)) == named


def test_who_serves_nothing_there_is_not_found(lab: Lab, tmp_path: Path) -> None:
    assert "no lazyfs serves" in refused(lab, "status", tmp_path)
    assert "no lazyfs serves" in refused(lab, "pause", tmp_path)


def test_the_socket_goes_with_its_daemon(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        listed = subprocess.run(["ss", "-xlH"], capture_output=True, text=True, check=True).stdout
        (socket,) = re.findall(rf"(/\S*/lazyfs/(?:run/)?{mounted.pid}\.sock)", listed)
        assert os.stat(socket).st_mode & 0o777 == 0o600
    assert not os.path.exists(socket)


def test_a_socket_left_by_a_killed_daemon_is_no_trouble(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
        left = Path("/run/lazyfs", f"{mounted.pid}.sock")

        def is_cleared_away() -> bool:
            assert "no lazyfs serves" in refused(lab, "status", mounted.path)
            return not left.exists()

        eventually(is_cleared_away, "its socket is gone")


def test_trouble_shows_with_its_cause_and_goes(lab: Lab, scripted: Scripted) -> None:
    words = ["--timeout", "30", "--readahead", "0", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        scripted.behaviour = lambda _: Answer(503)
        reader = start_reading(mounted.image, 2 * MIB, 4096)
        eventually(lambda: bool(status(lab, mounted.path)["trouble"]), "the trouble shows")
        assert "status 503" in str(status(lab, mounted.path)["trouble"])
        assert "trouble for " in said(lab, "status", mounted.path)
        scripted.behaviour = lambda _: None
        assert len(finish_reading(reader)) == 4096
        assert status(lab, mounted.path)["trouble"] == ""


def test_a_fill_can_be_asked_for_paused_and_waited_for(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        said(lab, "pause", mounted.path)
        assert status(lab, mounted.path)["paused"] is True
        said(lab, "resume", mounted.path)
        assert status(lab, mounted.path)["paused"] is False
        said(lab, "rate", mounted.path, "1M/s")
        assert status(lab, mounted.path)["fill_rate"] == MIB
        said(lab, "fill", mounted.path)
        eventually(lambda: status(lab, mounted.path)["filling"] is True, "it fills")
        said(lab, "pause", mounted.path)
        assert "paused" in said(lab, "status", mounted.path)
        said(lab, "rate", mounted.path, "none")
        assert said(lab, "fill", "--wait", mounted.path) == ""
        until_complete(mounted)
        assert "complete: the server is not needed" in said(lab, "status", mounted.path)


def test_what_is_paused_stays_so(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted("--fill", "--rate", "256K/s", scripted.url("image.raw")) as mounted:
        said(lab, "pause", mounted.path)
        eventually(lambda: status(lab, mounted.path)["under_way"] == 0, "the last request ends")
        asked = len(scripted.requests)
        said(lab, "rate", mounted.path, "none")
        read(mounted.image, 3 * MIB, 10)
        assert len(scripted.requests) > asked, "readers are served"
        assert status(lab, mounted.path)["cached"] != status(lab, mounted.path)["size"]


def test_a_fill_that_cannot_come_to_its_end_is_said(lab: Lab, scripted: Scripted) -> None:
    scripted.files["/image.raw"].content = os.urandom(24 * MIB)
    words = ["--cache-size", "16M", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        assert "the fill has stopped" in refused(lab, "fill", "--wait", mounted.path)


def test_a_map_shows_what_is_here(lab: Lab, scripted: Scripted, tmp_path: Path) -> None:
    with lab.mounted("--readahead", "0", scripted.url("image.raw")) as mounted:
        read(mounted.image, 2 * MIB, 1)
        lines = said(lab, "map", mounted.path).splitlines()
        rows = [line[1:-1] for line in lines[1:-1]]
        shown = "".join(rows).rstrip()
        blocks = (4 * MIB + 100) // BLOCK + 1
        assert shown[:2] == "++", "what came with the opening was not read"
        assert shown[2 * MIB // BLOCK] == "█"
        assert blocks // 2 < len(shown) <= blocks
        assert set(shown) <= set(" █+")
        said(lab, "map", "--svg", tmp_path / "map.svg", mounted.path)
    drawing = ET.parse(tmp_path / "map.svg").getroot()
    assert any(element.tag.endswith("rect") for element in drawing)


def test_top_shows_all_that_on_one_screen(lab: Lab, scripted: Scripted) -> None:
    env = {"COLUMNS": "80", "LINES": "24"}
    with lab.mounted("--verbose", scripted.url("image.raw")) as mounted:
        read(mounted.image, 2 * MIB, 4096)
        lines = said(lab, "top", mounted.path, env=env).splitlines()
        assert len(lines) <= 24
        assert all(len(line) <= 80 for line in lines)
        screen = "\n".join(lines)
        for part in (str(mounted.path), "here ", "throughput", "slowest reads", "is mounted on"):
            assert part in screen
        ascii_only = said(lab, "top", mounted.path, env={**env, "PYTHONIOENCODING": "ascii"})
        assert ascii_only.isascii()


def test_top_ends_with_its_daemon(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        words = shlex.join([*LAZYFS, "top", "--every", "0.1", str(mounted.path)])
        terminal = subprocess.Popen(
            ["script", "--quiet", "--return", "--command", words, lab.directory / "screen"],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        )  # fmt: skip
        shown = lab.directory / "screen"
        eventually(lambda: shown.exists() and b"throughput" in shown.read_bytes(), "it is drawn")
    assert terminal.wait(20) == 1
    assert re.search(rb"the daemon at \S+ (has ended|cannot be asked)", shown.read_bytes())


def test_stop_ends_what_nobody_uses(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        said(lab, "stop", mounted.path)
        mounted.wait_until_ended()


def test_stop_is_refused_while_a_file_is_open_however_often(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        with open(mounted.image, "rb") as image:
            for _ in range(3):
                assert f"(process {os.getpid()}) uses" in refused(lab, "stop", mounted.path)
            assert len(image.read(10)) == 10
        said(lab, "stop", mounted.path)
        mounted.wait_until_ended()


def test_stop_is_refused_while_a_loop_device_stands_on_it(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    need_loop()
    image = images.squashfs()
    at = lab.mountpoint()
    with lab.mounted(nginx.url(image.name)) as mounted:
        with loop_mounted(mounted.image, at, "squashfs"):
            for _ in range(3):
                assert "stands on it" in refused(lab, "stop", mounted.path)
            assert os.listdir(at)
        assert not mounted.has_ended()


def test_a_url_is_not_taken_for_a_path(lab: Lab, scripted: Scripted) -> None:
    """Wherever the command is given: the directory in which it runs may be in a mount."""
    with lab.mounted(scripted.url("image.raw")) as mounted:
        command = shlex.join([*LAZYFS, "pause", "https://other.example/x"])
        shell = ["sh", "-c", f"cd {shlex.quote(str(mounted.path))} && {command}"]
        done = subprocess.run(shell, capture_output=True, text=True, check=False, timeout=20)
        assert "no lazyfs serves https://other.example/x" in done.stderr
        assert status(lab, mounted.path)["paused"] is False


def test_a_mount_is_found_by_way_of_a_link(lab: Lab, scripted: Scripted, tmp_path: Path) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        link = tmp_path / "link"
        link.symlink_to(mounted.path)
        above = tmp_path / "above"
        above.symlink_to(mounted.path.parent)
        for name in (link, link / mounted.image.name, above / mounted.path.name):
            assert status(lab, name)["name"] == mounted.image.name


def test_a_daemon_that_does_not_answer_is_said_to_be_there(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.signal(signal.SIGSTOP)
        try:
            done = lab.start("status", mounted.path)
        finally:
            mounted.signal(signal.SIGCONT)
        assert done.returncode == 1
        assert f"{mounted.pid}.sock cannot be asked: " in done.stderr


def test_many_images_are_mapped_one_by_one(lab: Lab, scripted: Scripted) -> None:
    names = [f"{number}.raw" for number in range(3)]
    scripted.files |= {f"/{name}": scripted.files["/image.raw"] for name in names}
    with lab.mounted(*map(scripted.url, names)) as mounted:
        shown = said(lab, "map", mounted.path)
        assert [line.split()[0] for line in shown.splitlines() if ".raw" in line] == names


def test_another_user_sees_nothing(lab: Lab, scripted: Scripted) -> None:
    if not IS_ROOT:
        pytest.skip("only root can become another user")
    with lab.mounted(scripted.url("image.raw")) as mounted:
        (socket,) = Path("/run/lazyfs").glob(f"{mounted.pid}.sock")
        look = ["setpriv", "--reuid=65534", "--clear-groups", "stat", socket]
        done = subprocess.run(look, capture_output=True, text=True, check=False)
        assert "Permission denied" in done.stderr

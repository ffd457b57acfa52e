"""What a running daemon can be told beside filling: preload, profile, reload, handover."""

import json
import os
import socket
from pathlib import Path

from iso.flavours import make

from .images import MIB, Images
from .mounts import Lab, loop_device, loop_mounted, need_loop, read
from .servers import Answer, Nginx, Request, Scripted
from .test_steering import refused, said, status, until_complete
from .waiting import eventually

BLOCK = 32 << 10


def ask(mounted_pid: int, **fields: object) -> dict[str, object]:
    """What any program may do: one line to the socket, one line back."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(20)
        directory = "/run/lazyfs" if os.geteuid() == 0 else f"/tmp/lazyfs-{os.geteuid()}"
        connection.connect(f"{directory}/{mounted_pid}.sock")
        connection.sendall(json.dumps({"lazyfs": 1, **fields}).encode() + b"\n")
        answer: dict[str, object] = json.loads(connection.makefile().readline())
        return answer


def test_files_of_an_iso_are_preloaded(lab: Lab, tmp_path: Path) -> None:
    shelf = tmp_path / "shelf"
    (tmp_path / "tree/docs").mkdir(parents=True)
    shelf.mkdir()
    for number in range(4):
        (tmp_path / f"tree/docs/{number}.pdf").write_bytes(os.urandom(MIB))
    make(["xorriso", "-as", "mkisofs"], tmp_path / "tree", shelf / "a.iso")
    with Nginx(shelf) as nginx, lab.mounted("--readahead", "0", nginx.url("a.iso")) as mounted:
        assert mounted.cached() < MIB
        assert said(lab, "preload", mounted.path, "docs/1*", "docs/2*").startswith("2.0 MiB")
        eventually(lambda: mounted.cached() > 2 * MIB, "both come")
        assert mounted.cached() < 3 * MIB
        assert "nothing in the image" in refused(lab, "preload", mounted.path, "no/such/*")


def test_a_profile_is_recorded_and_replayed_while_mounted(
    lab: Lab, scripted: Scripted, tmp_path: Path
) -> None:
    file = tmp_path / "run.profile"
    words = ("--readahead", "0", scripted.url("image.raw"))
    with lab.mounted(*words) as mounted:
        read(mounted.image, 0, 10)
        said(lab, "profile", "record", mounted.path, file)
        read(mounted.image, 3 * MIB, BLOCK)
        said(lab, "profile", "stop", mounted.path)
        read(mounted.image, 2 * MIB, 10)
        assert "no/such" in refused(lab, "profile", "record", mounted.path, tmp_path / "no/such")
    (line,) = [line for line in file.read_text().splitlines() if line[:1] == "0"]
    assert line.split()[1:] == [str(3 * MIB), str(BLOCK)]
    with lab.mounted(*words, cache=tmp_path / "other") as mounted:
        said(lab, "preload", "--profile", file, mounted.path)
        eventually(
            lambda: (
                os.pread(os.open(mounted.image, os.O_RDONLY), 1, 0) is not None
                and mounted.cached() >= BLOCK + (64 << 10)
            ),
            "it comes",
        )


def test_what_to_preload_has_to_be_said(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        done = lab.start("preload", mounted.path)
        assert (done.returncode, "is not said" in done.stderr) == (2, True)
        for fields in ({"patterns": 3}, {"profile": {}}):
            assert "error" in ask(mounted.pid, do="preload", **fields)
        assert "error" in ask(mounted.pid, do="profile", file=["x"])


def test_logins_are_read_again(lab: Lab, scripted: Scripted, tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("X-Token: old\n")
    seen: list[str | None] = []

    def look(request: Request) -> Answer | None:
        seen.append(request.headers.get("x-token"))
        return None

    scripted.behaviour = look
    words = ["--readahead", "0", "--header", f"@{token}", scripted.url("image.raw")]
    with lab.mounted(*words) as mounted:
        read(mounted.image, MIB, 10)
        token.write_text("X-Token: new\n")
        said(lab, "reload", mounted.path)
        read(mounted.image, 2 * MIB, 10)
        assert (seen[0], seen[-1]) == ("old", "new")
        token.unlink()
        assert "cannot be read" in refused(lab, "reload", mounted.path)
        read(mounted.image, 3 * MIB, 10)
        assert seen[-1] == "new"


def test_a_loop_device_is_handed_over_when_asked(lab: Lab, images: Images, nginx: Nginx) -> None:
    need_loop()
    image = images.squashfs()
    with lab.mounted(nginx.url(image.name)) as mounted:
        assert "is not complete" in refused(lab, "handover", mounted.path)
        said(lab, "fill", "--wait", mounted.path)
        until_complete(mounted)
        assert said(lab, "handover", mounted.path).startswith("no loop device stands on it")
        with loop_device(mounted.image) as device:
            shown = said(lab, "handover", mounted.path)
            # It may have been moved already, by the daemon itself.
            assert shown.startswith((f"{device} stands on the copy now\n", "no loop device"))
            assert str(lab.cache) in Path(f"/sys/block/{device.name}/loop/backing_file").read_text()


def test_a_mount_that_is_stood_on_can_be_left_with_all_it_has(lab: Lab, images: Images) -> None:
    need_loop()
    image = images.squashfs()
    with (
        Nginx(images.root) as own,
        lab.mounted(own.url(image.name)) as mounted,
        loop_mounted(mounted.image, lab.mountpoint(), "squashfs") as tree,
    ):
        assert "--handover" in refused(lab, "umount", mounted.path)
        assert said(lab, "umount", "--handover", mounted.path) == ""
        mounted.wait_until_ended()
        own.stop()
        files = [file for file in tree.rglob("*") if file.is_file()]
        assert files
        assert sum(len(file.read_bytes()) for file in files) > MIB


def test_without_a_cache_nothing_is_handed_over(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted("--no-cache", scripted.url("image.raw")) as mounted:
        assert "no cache on disk" in refused(lab, "handover", mounted.path)


def test_metrics_are_those_of_the_status(lab: Lab, scripted: Scripted, tmp_path: Path) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        read(mounted.image, 2 * MIB, 10)
        text = said(lab, "metrics", mounted.path)
        now = status(lab, mounted.path)
        labels = f'image="image.raw",url="{now["url"]}",where="{mounted.path}"'
        assert f"lazyfs_cached_bytes{{{labels}}} {float(str(now['cached']))}" in text
        assert f"lazyfs_requests_total{{{labels}}} {float(str(now['requests']))}" in text
        file = tmp_path / "lazyfs.prom"
        assert said(lab, "metrics", "--output", file, mounted.path) == ""
        assert set(file.read_text().splitlines()) & set(text.splitlines())
        assert os.listdir(tmp_path).count("lazyfs.prom") == 1
    assert lab.start("metrics", "--every", "1s").returncode == 2


def test_each_request_is_logged_when_that_is_asked_for(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted("-v", "--readahead", "0", scripted.url("image.raw")) as mounted:
        read(mounted.image, MIB, 10)
    assert "came in" not in mounted.messages()
    with lab.mounted("-vv", "--readahead", "0", scripted.url("image.raw")) as mounted:
        read(mounted.image, 2 * MIB, 10)
    found = [line for line in mounted.messages().splitlines() if "came in" in line]
    first, last = 2 * MIB, 2 * MIB + BLOCK - 1
    assert any(f" REQUEST {scripted.url('image.raw')}: bytes {first} to {last}" in f for f in found)
    assert "(DEMAND)" in found[-1]

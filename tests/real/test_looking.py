"""ls, cat, cp and info: an image over HTTP, a local file, and an image that is mounted."""

import contextlib
import gzip
import json
import os
import pty
import shutil
import signal
import stat
import struct
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from iso.flavours import make, plant_bytes, plant_posix
from iso.views import of_directory

from .images import MIB, Images
from .mounts import (
    COMMAND_LIMIT,
    IS_ROOT,
    LAZYFS,
    Lab,
    environment,
    is_mounted,
    run,
    run_well,
)
from .servers import Answer, Nginx, Request, Scripted
from .waiting import eventually

BLOCK = 32 << 10  # bytes: lazyfs's default
BIG = 3 * MIB + 5  # bytes of each big file
OPENING = 1  # byte: what a request that opens an image brings

ROCK_RIDGE = ["xorriso", "-as", "mkisofs"]
ODD_NAME = b"red \x1b[31m and\na line \xff\xe9"
ODD_SHOWN = "red ?[31m and?a line ??"


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What goes into ``posix.iso``."""
    place = plant_posix(tmp_path_factory.mktemp("looking") / "tree")
    (place / "big").mkdir()
    for number, name in enumerate(("one", "two", "three")):
        (place / "big" / name).write_bytes(os.urandom(BIG - number))
    (place / "big/zeros").write_bytes(bytes(4 * MIB) + b"end")
    (place / "before the epoch").touch()
    os.utime(place / "before the epoch", (-86_400, -86_400))
    return place


@pytest.fixture(scope="module")
def shelf(tree: Path) -> Path:
    """The directory that is served."""
    place = tree.with_name("shelf")
    place.mkdir()
    make(ROCK_RIDGE, tree, place / "posix.iso")
    odd = plant_bytes(tree.with_name("odd"))
    with open(os.path.join(os.fsencode(odd), ODD_NAME), "w") as file:
        file.write("odd\n")
    os.mkfifo(odd / "fifo\x1b[2J")
    make(ROCK_RIDGE, odd, place / "odd.iso")
    return place


@pytest.fixture
def server(shelf: Path) -> Iterator[Nginx]:
    """A server whose counts begin with the test."""
    with Nginx(shelf) as nginx:
        yield nginx


@pytest.fixture(params=["url", "file"])
def image(request: pytest.FixtureRequest, shelf: Path, server: Nginx) -> str:
    """``posix.iso``, on the server and as a local file."""
    return server.url("posix.iso") if request.param == "url" else str(shelf / "posix.iso")


class Looking:
    """The commands, with the test's own cache."""

    def __init__(self, lab: Lab) -> None:
        self._lab = lab
        self.cache = lab.cache
        self._env = environment(lab.home, TZ="Asia/Kolkata")

    def text(self, command: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self._lab.start(command, "--cache-dir", self.cache, *arguments, env=self._env)

    def well(self, command: str, *arguments: str | Path) -> str:
        """What a command prints that must succeed without a complaint."""
        done = self.text(command, *arguments)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    def badly(self, command: str, *arguments: str | Path, code: int = 1) -> str:
        """What a command complains of, in one line, that must fail."""
        done = self.text(command, *arguments)
        assert done.returncode == code, done.stderr
        assert done.stderr.startswith("lazyfs: ")
        assert done.stderr.count("\n") == 1, done.stderr
        return done.stderr

    def into(
        self, stdout: int, command: str, *arguments: str | Path | bytes, stderr: int | None = None
    ) -> subprocess.CompletedProcess[bytes]:
        """Bytes into ``stdout``, which is subprocess's or a file descriptor."""
        return subprocess.run(
            [*LAZYFS, command, "--cache-dir", self.cache, *arguments],
            env=self._env,
            cwd=self._lab.directory,
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=subprocess.PIPE if stderr is None else stderr,
            timeout=COMMAND_LIMIT,
            check=False,
        )

    def raw(self, command: str, *arguments: str | Path | bytes) -> bytes:
        done = self.into(subprocess.PIPE, command, *arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        return done.stdout

    def on_a_terminal(self, command: str, *arguments: str | Path | bytes) -> str:
        """All that a terminal gets to see, with its line ends undone."""
        ours, its = pty.openpty()
        try:
            self.into(its, command, *arguments, stderr=its)
        finally:
            os.close(its)
        shown = b""
        with contextlib.suppress(OSError), open(ours, "rb", buffering=0) as reader:
            while piece := reader.read(1 << 16):
                shown += piece
        return shown.decode().replace("\r\n", "\n")


@pytest.fixture
def looking(lab: Lab) -> Looking:
    return Looking(lab)


def statistics(file: Path) -> dict[str, int]:
    """What the daemon of a mount has done for an image."""
    content: dict[str, int] = json.loads(os.getxattr(file, "user.lazyfs.statistics"))
    return content


def block_bytes(size: int) -> int:
    """Bytes of the blocks in which a file of this size may lie at worst."""
    return (-(-size // BLOCK) + 1) * BLOCK


# ls


def test_ls_names_what_is_in_a_directory(image: str, looking: Looking, tree: Path) -> None:
    assert looking.well("ls", image).splitlines() == sorted(os.listdir(tree))
    assert looking.well("ls", image, "/casper/many/").splitlines() == sorted(
        os.listdir(tree / "casper/many")
    )
    assert looking.well("ls", image, "empty directory") == ""


def test_ls_of_a_file_names_it(image: str, looking: Looking) -> None:
    assert looking.well("ls", image, "/casper/filesystem.squashfs") == (
        "/casper/filesystem.squashfs\n"
    )
    assert len(looking.well("ls", image, "absolute").splitlines()) == 300


def test_ls_long_is_what_ls_shows_of_the_original(
    image: str, looking: Looking, lab: Lab, tree: Path
) -> None:
    """But for directories, whose sizes and links are each filesystem's own."""
    env = environment(lab.home, TZ="Asia/Kolkata")
    style = ["-ln", "--time-style=long-iso", "--quoting-style=literal"]
    done = run(["ls", *style, tree], env=env)
    expected = {" ".join(line.split()) for line in done.stdout.splitlines()[1:] if line[0] != "d"}
    shown = looking.well("ls", "-l", image).splitlines()
    assert {" ".join(line.split()) for line in shown if line[0] != "d"} == expected
    (casper,) = (line for line in shown if line.endswith(" casper"))
    assert casper.startswith("drwx--x--t ")
    assert len({line.index(":") for line in shown}) == 1, "columns stand below each other"


def test_ls_recursive_shows_every_directory(image: str, looking: Looking, tree: Path) -> None:
    shown = set()
    for paragraph in looking.well("ls", "-R", image).rstrip("\n").split("\n\n"):
        head, *names = paragraph.split("\n")
        assert head.startswith("/")
        assert head.endswith(":")
        assert names == sorted(names)
        shown |= {os.path.join(head[1:-1], name) for name in names}
    assert shown == {str(path.relative_to(tree)) for path in tree.rglob("*")}
    assert looking.well("ls", "-lR", image, "tools").endswith(" tools\n")


def test_ls_json_says_all_that_is_known(image: str, looking: Looking, tree: Path) -> None:
    rows = {row["path"]: row for row in json.loads(looking.well("ls", "-R", "--json", image))}
    assert set(rows) == {"", *of_directory(tree)}
    for path, seen in of_directory(tree).items():
        row = rows[path]
        assert row["type"] == seen.kind.name.lower().replace("_", " ")
        assert (int(row["mode"], 8), row["uid"], row["gid"]) == (seen.mode, *seen.owner)
        if row["type"] == "file":
            assert row["size"] == seen.size == sum(length for _, length in row["extents"])
    assert rows["dots"]["target"] == "./casper/../casper/./many"
    assert rows["before the epoch"]["mtime"] == "1969-12-31T00:00:00+00:00"
    (only,) = json.loads(looking.well("ls", "--json", image, "/tools"))
    assert (only["path"], only["mode"], only["uid"]) == ("tools", "4750", 1234 * IS_ROOT)


def test_a_path_that_is_absent_is_said_with_what_comes_close(image: str, looking: Looking) -> None:
    says = looking.badly("ls", image, "/Casper/filesystem.squashfs")
    assert says == (
        "lazyfs: /Casper/filesystem.squashfs is not in the image; did you mean casper?\n"
    )
    assert looking.badly("ls", image, "tools/below").startswith("lazyfs: tools/below is not in")


@pytest.mark.parametrize("words", [["ls"], ["cat", "a"], ["cp", "a", "b"]])
def test_what_is_no_iso_is_said(looking: Looking, words: list[str]) -> None:
    command, *paths = words
    says = looking.badly(command, __file__, *paths)
    assert "neither an ISO 9660 nor a UDF image" in says
    assert __file__ in says


def test_images_that_are_not_there_are_said(looking: Looking, server: Nginx) -> None:
    assert "absent.iso" in looking.badly("ls", server.url("absent.iso"))
    assert "No such file" in looking.badly("ls", "absent.iso")


# Names that are not plain text


def test_names_go_into_a_pipe_as_they_are(looking: Looking, shelf: Path) -> None:
    shown = looking.raw("ls", shelf / "odd.iso")
    assert ODD_NAME in shown
    assert b"not UTF-8: \xff\xe9\n" in shown
    assert b"\xfd -> \xff/\xfe\n" in looking.raw("ls", "-l", shelf / "odd.iso")
    assert ODD_NAME in looking.raw("ls", "-R", shelf / "odd.iso")
    assert json.loads(looking.raw("ls", "--json", shelf / "odd.iso"))
    assert looking.raw("cat", shelf / "odd.iso", ODD_NAME) == b"odd\n"


def test_names_are_harmless_on_a_terminal(looking: Looking, shelf: Path) -> None:
    for words in (["ls"], ["ls", "-l"], ["ls", "-R"]):
        shown = looking.on_a_terminal(*words, shelf / "odd.iso")
        assert ODD_SHOWN in shown
        assert "not UTF-8: ??" in shown
        assert "\x1b" not in shown
    assert "? -> ?/?" in looking.on_a_terminal("ls", "-l", shelf / "odd.iso")


def test_complaints_are_harmless_on_a_terminal(
    looking: Looking, shelf: Path, tmp_path: Path
) -> None:
    absent = ODD_NAME + b"x"
    shown = looking.on_a_terminal("ls", shelf / "odd.iso", absent)
    assert "is not in the image; did you mean red" in shown
    assert "\x1b" not in shown
    assert shown.count("\n") == 1
    shown = looking.on_a_terminal("cp", "-r", shelf / "odd.iso", "/fifo\x1b[2J", tmp_path)
    assert "is left out: it is a fifo" in shown
    assert "\x1b[2J" not in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_names_get_out_whatever_the_locale_says(
    looking: Looking, shelf: Path, lab: Lab, encoding: str
) -> None:
    """A pipe takes bytes: the locale is for those who look at them."""
    env = environment(lab.home, PYTHONIOENCODING=encoding)
    done = subprocess.run(
        [*LAZYFS, "ls", shelf / "posix.iso"], env=env, capture_output=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
    assert "grüße \N{SNOWMAN}.txt\n".encode() in done.stdout


# cat


def test_cat_writes_files_one_after_the_other(image: str, looking: Looking, tree: Path) -> None:
    names = ["/big/one", "tools", "relative", "size0.bin", "big/two"]
    expected = b"".join((tree / name.lstrip("/")).read_bytes() for name in names)
    assert looking.raw("cat", image, *names) == expected


def test_cat_writes_nothing_when_one_cannot_be_had(image: str, looking: Looking) -> None:
    for path, why in (("casper", "is not a regular file"), ("toolz", "did you mean tools?")):
        done = looking.text("cat", image, "tools", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert path in done.stderr
        assert why in done.stderr
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "words",
    [
        ["cat", "big/one"],
        ["ls"],
        ["ls", "-R"],
        ["ls", "-R", "--json"],
        ["info"],
        ["info", "--json"],
    ],
    ids=" ".join,
)
def test_who_closes_the_pipe_has_seen_enough(
    looking: Looking, shelf: Path, words: list[str]
) -> None:
    command, *rest = words
    reader, writer = os.pipe()
    os.close(reader)
    try:
        done = looking.into(writer, command, shelf / "posix.iso", *rest)
    finally:
        os.close(writer)
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize("words", [["cat", "big/one"], ["ls", "-R"], ["info"]], ids=" ".join)
def test_an_output_that_is_full_is_an_error(
    looking: Looking, shelf: Path, words: list[str]
) -> None:
    command, *rest = words
    with open("/dev/full", "wb") as full:
        done = looking.into(full.fileno(), command, shelf / "posix.iso", *rest)
    assert done.returncode == 1
    assert b"No space left on device" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_a_command_can_be_interrupted(lab: Lab, scripted: Scripted) -> None:
    """While the server says nothing."""
    asked, answer = threading.Event(), threading.Event()

    def silent(request: Request) -> Answer | None:
        if request.span != (0, 0):
            asked.set()
            answer.wait(30)
        return None

    scripted.behaviour = silent
    command = [*LAZYFS, "ls", "--cache-dir", str(lab.cache), scripted.url("image.raw")]
    with subprocess.Popen(
        command, env=environment(lab.home), stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    ) as process:
        try:
            assert asked.wait(20)
            process.send_signal(signal.SIGINT)
            _, said = process.communicate(timeout=20)
        finally:
            process.kill()
            answer.set()
    assert (process.returncode, said) == (130, b"")


# What it costs


def test_only_what_is_wanted_is_fetched(server: Nginx, looking: Looking, tree: Path) -> None:
    url = server.url("posix.iso")
    looking.well("ls", url)
    for_the_tree = server.body_bytes()
    assert for_the_tree <= 10 * BLOCK
    assert looking.raw("cat", url, "big/two") == (tree / "big/two").read_bytes()
    assert server.body_bytes() - for_the_tree <= block_bytes(BIG)


def test_the_second_look_asks_only_whether_the_image_is_still_the_same(
    server: Nginx, looking: Looking
) -> None:
    url = server.url("posix.iso")
    first = looking.well("ls", "-lR", url)
    before = server.body_bytes(), server.request_count()
    assert looking.well("ls", "-lR", url) == first
    assert (server.body_bytes() - before[0], server.request_count() - before[1]) == (OPENING, 1)


def test_what_was_fetched_once_stays(server: Nginx, looking: Looking, tmp_path: Path) -> None:
    url = server.url("posix.iso")
    first = looking.raw("cat", url, "big/one")
    before = server.body_bytes()
    assert looking.raw("cat", url, "big/one") == first
    looking.well("cp", url, "big/one", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == first
    assert server.body_bytes() - before == 2 * OPENING


def test_without_a_cache_nothing_is_fetched_twice(
    server: Nginx, lab: Lab, tmp_path_factory: pytest.TempPathFactory, shelf: Path
) -> None:
    """Also of a file that is larger than what is kept in memory."""
    size = 40 * MIB
    source = tmp_path_factory.mktemp("large")
    (source / "large").write_bytes(os.urandom(MIB) * 40)
    make(ROCK_RIDGE, source, shelf / "large.iso")
    try:
        command = [*LAZYFS, "cat", "--no-cache", server.url("large.iso"), "large"]
        done = subprocess.run(
            command, env=environment(lab.home), capture_output=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, b"")
        assert done.stdout == (source / "large").read_bytes()
        assert server.body_bytes() <= block_bytes(size) + 10 * BLOCK
        assert not (lab.home / ".cache").exists()
    finally:
        (shelf / "large.iso").unlink()


def test_what_was_seen_can_be_seen_without_the_server(
    server: Nginx, looking: Looking, tree: Path, tmp_path: Path
) -> None:
    url = server.url("posix.iso")
    listed = looking.well("ls", "-lR", url)
    looking.raw("cat", url, "big/one")
    server.stop()
    done = looking.text("ls", "-lR", url)
    assert (done.returncode, done.stdout) == (0, listed)
    assert "serving what is cached until the server is back" in done.stderr
    assert done.stderr.count("\n") == 1
    done = looking.text("cp", url, "big/one", tmp_path)
    assert done.returncode == 0
    assert (tmp_path / "one").read_bytes() == (tree / "big/one").read_bytes()


def test_a_file_that_is_not_cached_is_said_when_the_server_is_gone(
    server: Nginx, looking: Looking, tmp_path: Path
) -> None:
    url = server.url("posix.iso")
    looking.well("ls", url)
    server.stop()
    done = looking.text("cat", "--timeout", "1", url, "big/three")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert "posix.iso" in done.stderr.splitlines()[-1]
    done = looking.text("cp", "--timeout", "1", "-r", url, "big/three", tmp_path)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert list(tmp_path.glob("three")) == []


@pytest.mark.parametrize("spoil", ["damaged", "of another version"])
def test_a_remembered_catalog_is_not_trusted_blindly(
    server: Nginx, looking: Looking, shelf: Path, spoil: str, lab: Lab
) -> None:
    changing = shelf / "changing.iso"
    shutil.copyfile(shelf / "posix.iso", changing)
    url = server.url("changing.iso")
    try:
        first = looking.well("ls", "-R", url)
        (catalog_file,) = looking.cache.glob("*/catalog")
        if spoil == "damaged":
            catalog_file.write_bytes(catalog_file.read_bytes()[:-10] + b"0123456789")
            assert looking.well("ls", "-R", url) == first
        else:
            shutil.copyfile(shelf / "odd.iso", changing)
            done = looking.text("ls", url)
            assert done.returncode == 0
            assert "another version" in done.stderr
            assert "not UTF-8" in done.stdout
    finally:
        changing.unlink()


# While it is mounted


@pytest.mark.parametrize("options", [[], ["--browse"]], ids=["plain", "browse"])
def test_a_running_mount_is_asked_and_nothing_is_fetched_twice(
    server: Nginx, looking: Looking, lab: Lab, tree: Path, options: list[str], tmp_path: Path
) -> None:
    url = server.url("posix.iso")
    listed = looking.well("ls", "-lR", str(server.root / "posix.iso"))
    with lab.mounted(*options, url) as mounted:
        file = mounted.path / (".lazyfs-image" if options else "posix.iso")
        for _ in range(2):
            assert looking.well("ls", "-lR", url) == listed
            assert looking.raw("cat", url, "big/one") == (tree / "big/one").read_bytes()
            looking.well("cp", url, "big/one", tmp_path / "copy")
            assert (tmp_path / "copy").read_bytes() == (tree / "big/one").read_bytes()
            content = json.loads(looking.well("info", "--json", url))
            assert content["iso"]["label"] == "A_LABEL"
        eventually(lambda: not statistics(file)["under_way"], "nothing is fetched any more")
        figures = statistics(file)
        assert figures["fetched"] == figures["cached"]
        assert server.body_bytes() <= figures["cached"] + 10 * OPENING


def test_the_image_of_a_mount_can_be_named_as_a_file(
    server: Nginx, looking: Looking, lab: Lab, tree: Path
) -> None:
    with lab.mounted(server.url("posix.iso")) as mounted:
        assert "casper" in looking.well("ls", mounted.image)
        assert looking.raw("cat", mounted.image, "tools") == (tree / "tools").read_bytes()


def test_a_dead_mount_of_it_is_not_asked(server: Nginx, looking: Looking, lab: Lab) -> None:
    url = server.url("posix.iso")
    with lab.mounted(url, troubled=True) as mounted:
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
        assert "casper" in looking.well("ls", url)
        run_well(["fusermount3", "-u", "-z", mounted.path])


# cp


def test_cp_brings_everything_as_it_was(
    image: str, looking: Looking, tree: Path, tmp_path: Path
) -> None:
    """Devices and fifos are left out, and said."""
    done = looking.text("cp", "-r", "-p", image, "/", tmp_path / "all")
    assert done.returncode == 0
    complaints = done.stderr.splitlines()
    left_out = {"fifo", "null", "disk"} if IS_ROOT else {"fifo"}
    assert len(complaints) == len(left_out)
    assert all(any(f"/all/{name} is left out" in c for c in complaints) for name in left_out)
    found, expected = of_directory(tmp_path / "all"), of_directory(tree)
    for name in left_out:
        del expected[name]
    links = {path for path, seen in expected.items() if seen.target}
    assert {p: s for p, s in found.items() if p not in links} == {
        p: s for p, s in expected.items() if p not in links
    }
    assert {p: found[p].target for p in links} == {p: expected[p].target for p in links}


def test_cp_without_p_makes_new_files(image: str, looking: Looking, tmp_path: Path) -> None:
    looking.well("cp", image, "tools", "casper/filesystem.squashfs", tmp_path)
    made = (tmp_path / "tools").stat()
    assert stat.S_IMODE(made.st_mode) == 0o750 & ~_umask()
    assert made.st_uid == os.geteuid()
    assert made.st_mtime > 1_500_000_000, "not the time of the original"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_cp_gives_a_new_name_and_follows_links(
    image: str, looking: Looking, tree: Path, tmp_path: Path
) -> None:
    looking.well("cp", image, "/relative", tmp_path / "new name")
    expected = (tree / "casper/filesystem.squashfs").read_bytes()
    assert (tmp_path / "new name").read_bytes() == expected
    looking.well("cp", "-r", image, "relative", "dangling", tmp_path)
    assert os.readlink(tmp_path / "relative") == "casper/filesystem.squashfs"
    assert os.readlink(tmp_path / "dangling") == "no/such/../file"


def test_cp_leaves_zeros_as_holes(image: str, looking: Looking, tmp_path: Path) -> None:
    looking.well("cp", image, "big/zeros", tmp_path)
    made = tmp_path / "zeros"
    assert made.read_bytes() == bytes(4 * MIB) + b"end"
    assert made.stat().st_blocks * 512 <= MIB


def test_cp_that_is_used_wrongly_says_how(image: str, looking: Looking, tmp_path: Path) -> None:
    assert "lazyfs cp IMAGE PATH... DEST" in looking.badly("cp", image, "tools", code=2)
    assert "give -r" in looking.badly("cp", image, "casper", tmp_path, code=2)
    assert "is not a directory" in looking.badly(
        "cp", image, "tools", "relative", tmp_path / "new", code=2
    )
    assert "did you mean" in looking.badly("cp", image, "toolz", tmp_path)
    assert "tools" not in os.listdir(tmp_path)


def test_cp_does_not_leave_the_place_that_it_is_given(
    image: str, looking: Looking, tmp_path: Path
) -> None:
    target, outside = tmp_path / "target", tmp_path / "outside"
    target.mkdir()
    outside.mkdir()
    (target / "casper").symlink_to(outside)
    (target / "tools").symlink_to(outside / "tools")
    for name in ("casper", "tools"):
        says = looking.badly("cp", "-r", image, name, target)
        assert f"{target / name} is not copied: a symbolic link" in says
    assert os.listdir(outside) == []


def test_cp_onto_a_full_disk_is_an_error_and_leaves_no_half_file(
    image: str, looking: Looking, tmp_path: Path
) -> None:
    if not IS_ROOT:
        pytest.skip("only root can mount a small disk")
    disk = tmp_path / "disk"
    disk.mkdir()
    run_well(["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", disk])
    try:
        says = looking.badly("cp", "-r", image, "tools", "big", disk)
        assert "cannot be written: No space left on device" in says
        assert (disk / "tools").exists()
        assert not [path for path in (disk / "big").iterdir() if path.name != "zeros"]
    finally:
        run_well(["umount", disk])
    assert not is_mounted(disk)


def test_cp_on_a_terminal_shows_a_bar_and_clears_it_away(
    looking: Looking, shelf: Path, tree: Path, tmp_path: Path
) -> None:
    shown = looking.on_a_terminal("cp", "-r", shelf / "posix.iso", "big", tmp_path)
    assert "Traceback" not in shown
    assert (tmp_path / "big/one").read_bytes() == (tree / "big/one").read_bytes()


# info


def told(looking: Looking, image: str | Path) -> dict[str, object]:
    """What ``info --json`` says; the text must come too."""
    text = looking.well("info", image)
    assert f"image          {image}\n" in text
    content: dict[str, object] = json.loads(looking.well("info", "--json", image))
    assert content["image"] == str(image)
    return content


def test_info_of_an_iso(server: Nginx, looking: Looking, tree: Path) -> None:
    url = server.url("posix.iso")
    content = told(looking, url)
    iso = content["iso"]
    assert isinstance(iso, dict)
    everything = list(tree.rglob("*"))
    files = [p for p in everything if p.is_file() and not p.is_symlink()]
    directories = [p for p in everything if p.is_dir() and not p.is_symlink()]
    assert (iso["label"], iso["names"]) == ("A_LABEL", "Rock Ridge")
    assert (iso["files"], iso["directories"]) == (len(files), len(directories))
    assert content["kinds"] == ["ISO 9660"]
    assert content["size"] == (server.root / "posix.iso").stat().st_size
    assert content["etag"]
    assert content["last_modified"]
    cached = content["cached"]
    assert isinstance(cached, int)
    assert 0 < cached <= 10 * BLOCK
    text = looking.well("info", url)
    assert f"files          {len(files)} in {len(directories)} directories\n" in text
    before = server.body_bytes()
    looking.well("info", url)
    assert server.body_bytes() - before == OPENING


def test_info_of_an_iso_that_boots(looking: Looking, images: Images) -> None:
    iso = images.packaged("grub-rescue-pc", "usr/lib/grub-rescue/grub-rescue-cdrom.iso")
    content = told(looking, iso)
    assert isinstance(content["iso"], dict)
    assert "x86" in [boot["platform"] for boot in content["iso"]["boot"]]
    assert "boots on       x86" in looking.well("info", iso)


def test_info_of_filesystems(looking: Looking, images: Images) -> None:
    assert told(looking, images.squashfs())["kinds"] == ["squashfs"]
    assert told(looking, images.ext4())["kinds"] == ["ext4"]
    assert told(looking, images.erofs())["kinds"] == ["erofs"]


def disk_with(partition: int, more: bytes = b"") -> bytes:
    entry = bytes([0, 0, 2, 0, partition, 0, 0, 0]) + struct.pack("<LL", 2048, 2048)
    return (bytes(446) + entry + bytes(48) + b"\x55\xaa" + more).ljust(MIB, b"\0")


@pytest.mark.parametrize(
    ("content", "kinds", "table", "problem"),
    [
        (gzip.compress(b"text" * 1000), ["gzip"], None, None),
        (disk_with(0x83), [], "MBR", None),
        (disk_with(0xEE, b"EFI PART"), [], None, "its GPT is damaged, and so is the backup"),
        (b"just a text\n", [], None, None),
        (b"", [], None, None),
    ],
    ids=["gzip", "mbr", "gpt", "text", "empty"],
)
def test_info_of_anything_else(
    looking: Looking,
    scripted: Scripted,
    tmp_path: Path,
    content: bytes,
    kinds: list[str],
    table: str | None,
    problem: str | None,
) -> None:
    local = tmp_path / "anything"
    local.write_bytes(content)
    found = told(looking, local)
    assert found["kinds"] == kinds
    assert (found["partition_table"] or {}).get("kind") == table
    assert found.get("problem") == problem
    assert (found["size"], found["iso"]) == (len(content), None)
    assert f"({len(content)} bytes)" in looking.well("info", local)
    if content:
        scripted.files["/image.raw"].content = content
        over_http = told(looking, scripted.url("image.raw"))
        assert (over_http["kinds"], over_http.get("problem")) == (kinds, problem)
        assert over_http["etag"] == '"v1"'


def test_info_of_an_empty_file_on_a_server(looking: Looking, scripted: Scripted) -> None:
    scripted.files["/image.raw"].content = b""
    done = looking.text("info", scripted.url("image.raw"))
    assert "Traceback" not in done.stderr
    assert done.returncode == 0 or done.stderr.count("\n") == 1


def test_info_of_a_damaged_iso_says_what_is_wrong(
    looking: Looking, shelf: Path, tmp_path: Path
) -> None:
    damaged = tmp_path / "damaged.iso"
    shutil.copyfile(shelf / "posix.iso", damaged)
    with open(damaged, "r+b") as file:
        file.seek(16 * 2048 + 128)  # the size of a block
        file.write(b"\xff\xff\xff\xff")
    content = told(looking, damaged)
    assert (content["kinds"], content["iso"]) == (["ISO 9660"], None)
    assert "blocks of 65535 bytes" in str(content["problem"])
    assert "problem        the image's volume has blocks of 65535" in looking.well("info", damaged)


def test_a_login_is_not_shown(looking: Looking, server: Nginx) -> None:
    url = server.url("posix.iso").replace("http://", "http://joe:sesame@")
    assert "sesame" not in looking.well("info", url)
    assert "sesame" not in looking.well("info", "--json", url)
    assert "sesame" not in looking.badly("ls", url.replace("posix", "absent"))

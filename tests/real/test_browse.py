"""--browse: the tree in an image as a mounted filesystem."""

import errno
import json
import os
import random
import signal
import stat
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from iso.flavours import FLAVOURS, IsoImages, make, plant_bytes, plant_posix
from iso.handmade import ROOT, image, record
from iso.views import of_directory

from .images import MIB, Images
from .mounts import (
    IS_ROOT,
    LAZYFS,
    Lab,
    is_mounted,
    mount_line,
    run,
    run_well,
)
from .servers import Nginx, Scripted
from .waiting import eventually

NOBODY = 65534
HIDDEN = ".lazyfs-image"
BLOCK = 32 << 10

LISTED_WITHIN = 0.5  # seconds for the names of 10,000 entries


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = plant_posix(tmp_path_factory.mktemp("browse") / "tree")
    (place / "large").write_bytes(os.urandom(3 * MIB + 5))
    (place / "before the epoch").touch()
    os.utime(place / "before the epoch", (-86_400, -86_400))
    return place


@pytest.fixture(scope="module")
def shelf(tree: Path) -> Path:
    place = tree.with_name("shelf")
    place.mkdir()
    for name, flavour in (
        ("posix.iso", "xorriso-rr"),
        ("joliet.iso", "xorriso-joliet"),
        ("udf.iso", "genisoimage-udf"),
    ):
        make(FLAVOURS[flavour][1], tree, place / name)
    make(FLAVOURS["xorriso-rr"][1], plant_bytes(tree.with_name("odd")), place / "odd.iso")
    return place


@pytest.fixture
def server(shelf: Path) -> Iterator[Nginx]:
    with Nginx(shelf) as nginx:
        yield nginx


def test_the_tree_is_what_went_into_the_image(server: Nginx, lab: Lab, tree: Path) -> None:
    """Kinds, modes, owners, times, sizes, links, devices and content."""
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        assert of_directory(mounted.path) == of_directory(tree)


def test_hard_links_and_usage_are_those_of_the_image(server: Nginx, lab: Lab, tree: Path) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        assert (mounted.path / "tools").stat().st_nlink == 2
        large = (mounted.path / "large").stat()
        assert large.st_blocks == -(-large.st_size // 512)
        total = os.statvfs(mounted.path)
        size = (server.root / "posix.iso").stat().st_size
        assert total.f_blocks * total.f_frsize >= size
        assert (total.f_bfree, total.f_bavail) == (0, 0)


@pytest.mark.parametrize("name", ["joliet.iso", "udf.iso"])
def test_any_flavour_can_be_browsed(server: Nginx, lab: Lab, tree: Path, name: str) -> None:
    expected = {
        path: seen.content_only()
        for path, seen in of_directory(tree).items()
        if path.startswith("casper/many")
    }
    with lab.mounted("--browse", server.url(name)) as mounted:
        found = of_directory(mounted.path / "casper/many")
    assert {f"casper/many/{path}": seen.content_only() for path, seen in found.items()} == {
        path: seen for path, seen in expected.items() if path != "casper/many"
    }


def test_a_listing_is_what_ls_shows(server: Nginx, lab: Lab) -> None:
    url = server.url("posix.iso")
    with lab.mounted("--browse", url) as mounted:
        done = lab.start("ls", "--cache-dir", lab.cache, url)
        assert done.stdout.splitlines() == sorted(os.listdir(mounted.path))
        assert os.listdir(mounted.path / "empty directory") == []


def test_names_are_bytes(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("odd.iso")) as mounted:
        place = os.fsencode(mounted.path)
        assert set(os.listdir(place)) == {b"not UTF-8: \xff\xe9", b"\xfd"}
        with open(place + b"/not UTF-8: \xff\xe9", "rb") as file:
            assert file.read() == b"bytes\n"
        assert os.readlink(place + b"/\xfd") == b"\xff/\xfe"


def test_what_is_not_there_is_not_there(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        for path in ("absent", "casper/absent", f"casper/{HIDDEN}", "Casper"):
            assert not (mounted.path / path).exists()
        with pytest.raises(NotADirectoryError):
            (mounted.path / "tools/below").stat()
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted.path / "new").touch()
        with pytest.raises(OSError, match="Read-only file system"):
            (mounted.path / "large").open("r+b")


def test_find_comes_to_an_end(server: Nginx, lab: Lab, tree: Path) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        shown = run_well(["find", mounted.path, "-ls"])
        assert len(shown.splitlines()) == len(list(tree.rglob("*"))) + 1
        assert HIDDEN not in shown
        seen = run_well(["find", mounted.path, "-printf", "%i\n"]).split()
        assert len(seen) == len(set(seen)), "no two things have one inode"


def test_several_readers_get_what_they_ask_for(server: Nginx, lab: Lab, tree: Path) -> None:
    paths = [p.relative_to(tree) for p in tree.rglob("*") if p.is_file() and not p.is_symlink()]
    wrong: list[Path] = []

    def read_all(seed: int) -> None:
        rng = random.Random(seed)
        for path in rng.sample(paths, len(paths)):
            expected = (tree / path).read_bytes()
            with open(mounted.path / path, "rb", buffering=0) as file:
                offset = rng.randrange(len(expected) + 1)
                if os.pread(file.fileno(), 70_000, offset) != expected[offset : offset + 70_000]:
                    wrong.append(path)
                if file.read(len(expected) + 10) != expected:
                    wrong.append(path)

    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        readers = [threading.Thread(target=read_all, args=(seed,)) for seed in range(6)]
        for reader in readers:
            reader.start()
        for reader in readers:
            reader.join(60)
        assert not wrong


def test_only_what_is_read_is_fetched(server: Nginx, lab: Lab, tree: Path) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        for_the_tree = server.body_bytes()
        assert for_the_tree <= 10 * BLOCK
        run_well(["find", mounted.path, "-ls"])
        assert server.body_bytes() == for_the_tree
        assert (mounted.path / "tools").read_bytes() == (tree / "tools").read_bytes()
        assert server.body_bytes() - for_the_tree <= 2 * BLOCK


# The image itself


def test_the_image_can_be_read_though_it_is_not_listed(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        assert HIDDEN not in os.listdir(mounted.path)
        hidden = mounted.path / HIDDEN
        status = hidden.stat()
        assert stat.S_IMODE(status.st_mode) == 0o400
        assert (status.st_uid, status.st_gid) == (os.getuid(), os.getgid())
        assert hidden.read_bytes() == (server.root / "posix.iso").read_bytes()
        told = json.loads(os.getxattr(hidden, "user.lazyfs.statistics"))
        assert told["size"] == status.st_size
        assert os.getxattr(hidden, "user.lazyfs.url").decode() == server.url("posix.iso")
        assert os.listxattr(mounted.path / "tools") == []


@pytest.mark.skipif(not IS_ROOT, reason="only root can become another user")
def test_others_see_the_tree_by_its_modes_and_not_the_image(
    server: Nginx, lab: Lab, public_directory: Path, tree: Path
) -> None:
    at = public_directory / "mnt"
    at.mkdir()
    with lab.mounted("--browse", "--allow-other", server.url("posix.iso"), at=at) as mounted:
        listed = run(["ls", mounted.path], user=NOBODY)
        assert listed.stdout.splitlines() == run(["ls", tree]).stdout.splitlines()
        readable = run(["cat", mounted.path / "size2048.bin"], user=NOBODY)
        assert readable.returncode == 0
        for path in (HIDDEN, "disk"):
            done = run(["cat", mounted.path / path], user=NOBODY)
            assert done.returncode == 1
            assert "Permission denied" in done.stderr
        closed = run(["ls", mounted.path / "casper"], user=NOBODY)  # its mode is 1711
        assert "Permission denied" in closed.stderr
        asked = run(["getfattr", "-d", mounted.path / HIDDEN], user=NOBODY)
        assert "user.lazyfs" not in asked.stdout


@pytest.mark.skipif(not IS_ROOT, reason="only root can make the image's owners differ")
def test_who_browses_alone_may_read_all_of_it(
    server: Nginx, lab: Lab, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """What is in the image came over his own connection."""
    source = tmp_path_factory.mktemp("closed")
    (source / "closed").mkdir()
    (source / "closed/secret").write_text("for root\n")
    (source / "closed/secret").chmod(0o000)
    (source / "closed").chmod(0o700)
    make(FLAVOURS["xorriso-rr"][1], source, server.root / "closed.iso")
    with lab.mounted("--browse", server.url("closed.iso")) as mounted:
        assert "default_permissions" not in mount_line(mounted.path)
        command = ["setpriv", "--bounding-set", "-all", "--inh-caps", "-all"]
        done = run([*command, "cat", mounted.path / "closed/secret"])
        assert (done.returncode, done.stdout) == (0, "for root\n")


def test_devices_and_set_id_of_an_image_have_no_effect(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        options = mount_line(mounted.path).split(" ")[3].split(",")
        assert {"ro", "nosuid", "nodev"} <= set(options)
        if IS_ROOT:
            with pytest.raises(PermissionError):
                (mounted.path / "null").open("rb")


# Trouble


def test_a_file_that_cannot_be_read_is_an_io_error_and_the_others_are_not(
    scripted: Scripted, lab: Lab
) -> None:
    """One that lies behind the end of the image, as in a download that was cut off."""
    entries = [record(b"GOOD.TXT;1", 40, 5), record(b"LOST.TXT;1", 5000, 5)]
    content = image({ROOT: entries})
    scripted.files["/image.raw"].content = content
    with lab.mounted("--browse", scripted.url("image.raw"), troubled=True) as mounted:
        assert sorted(os.listdir(mounted.path)) == ["good.txt", "lost.txt"]
        assert len((mounted.path / "good.txt").read_bytes()) == 5
        for _ in range(2):
            with pytest.raises(OSError, match="Input/output error") as caught:
                (mounted.path / "lost.txt").read_bytes()
            assert caught.value.errno == errno.EIO
        assert len((mounted.path / "good.txt").read_bytes()) == 5


def test_what_is_no_iso_is_said_before_it_is_mounted(scripted: Scripted, lab: Lab) -> None:
    at = lab.mountpoint()
    url = scripted.url("image.raw")
    done = lab.start("--browse", "--cache-dir", lab.cache, url, at)
    assert done.returncode == 1
    assert "neither an ISO 9660 nor a UDF image" in done.stderr
    assert url in done.stderr
    assert done.stderr.count("\n") == 1
    assert not is_mounted(at)


def test_browsing_needs_a_directory_and_one_image(scripted: Scripted, lab: Lab) -> None:
    file = lab.directory / "file"
    file.touch()
    one, two = scripted.url("image.raw"), scripted.url("image.raw?2")
    done = lab.start("--browse", one, file)
    assert (done.returncode, "cannot show a tree" in done.stderr) == (2, True)
    done = lab.start("--browse", "--name", "a", one, two, lab.mountpoint())
    assert (done.returncode, "--browse is for one image" in done.stderr) == (2, True)


def test_a_tree_can_be_browsed_without_the_server(server: Nginx, lab: Lab, tree: Path) -> None:
    url = server.url("posix.iso")
    with lab.mounted("--browse", "--readahead", "0", url) as mounted:
        first = {p for p in mounted.path.rglob("*") if "casper" not in p.parts}
        assert (mounted.path / "large").read_bytes() == (tree / "large").read_bytes()
        at = mounted.path
    server.stop()
    with lab.mounted("--browse", "--timeout", "1", url, at=at, troubled=True) as mounted:
        assert "serving what is cached until the server is back" in mounted.said
        assert {p for p in mounted.path.rglob("*") if "casper" not in p.parts} == first
        assert (mounted.path / "large").read_bytes() == (tree / "large").read_bytes()
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / "size100000.bin").read_bytes()
        server.start()
        eventually(lambda: _can_be_read(mounted.path / "size100000.bin"), "the server is back")
        content = (mounted.path / "size100000.bin").read_bytes()
        assert content == (tree / "size100000.bin").read_bytes()


def _can_be_read(path: Path) -> bool:
    try:
        return bool(path.read_bytes())
    except OSError:
        return False


# The end of it


def test_sigterm_unmounts_it(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        assert os.listdir(mounted.path)
        mounted.signal(signal.SIGTERM)
        mounted.wait_until_ended()
        assert not is_mounted(mounted.path)


def test_it_is_unmounted_as_any_mount(server: Nginx, lab: Lab) -> None:
    with lab.mounted("--browse", server.url("posix.iso")) as mounted:
        run_well([*LAZYFS, "umount", mounted.path])
        mounted.wait_until_ended()
        assert not is_mounted(mounted.path)


def test_it_can_be_mounted_by_mount(server: Nginx, lab: Lab) -> None:
    with lab.mounted("-o", "browse,ro,noatime", server.url("posix.iso")) as mounted:
        assert (mounted.path / "casper").is_dir()


# Many files


@pytest.fixture(scope="module")
def crowd(images: Images, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image with 10,000 files in one directory."""
    place = tmp_path_factory.mktemp("crowd")
    (place / "tree/all").mkdir(parents=True)
    for number in range(10_000):
        (place / f"tree/all/a file with a name, number {number:05d}.txt").touch()
    make(FLAVOURS["xorriso-rr"][1], place / "tree", place / "crowd.iso")
    return place / "crowd.iso"


def test_ten_thousand_names_are_listed_at_once(lab: Lab, crowd: Path) -> None:
    with Nginx(crowd.parent) as nginx, lab.mounted("--browse", nginx.url(crowd.name)) as mounted:
        started = time.monotonic()
        names = os.listdir(mounted.path / "all")
        took = time.monotonic() - started
        assert len(set(names)) == len(names) == 10_000
        started = time.monotonic()
        statuses = [entry.stat() for entry in os.scandir(mounted.path / "all")]
        with_stat = time.monotonic() - started
        assert all(stat.S_ISREG(status.st_mode) for status in statuses)
        print(f"10,000 names: {took:.3f} s, and with stat(2) of each {with_stat:.3f} s")
        assert took < LISTED_WITHIN


def test_ten_thousand_files_in_many_directories(lab: Lab, images: Images) -> None:
    iso = IsoImages(images.root).many_files()
    with Nginx(iso.parent) as nginx, lab.mounted("--browse", nginx.url(iso.name)) as mounted:
        found = run_well(["find", mounted.path, "-type", "f"]).splitlines()
        assert len(found) == 10_000
        path = mounted.path / "pool/main/39/package399/9999.deb"
        assert path.read_bytes() == b"9999" * 999
        assert mounted.peak_memory() < 200 * MIB

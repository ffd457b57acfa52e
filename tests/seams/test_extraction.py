"""Files out of an image onto the local disk: what is made, and what is never touched."""

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import RecordingDevice, noise

from lazyfs.core.errors import ImageError, OutputError, ReadTimeout, UsageError
from lazyfs.formats.filecontent import STEP
from lazyfs.formats.tree import HOLE, Extent, Kind, Node, Tree, Volume
from lazyfs.formats.treebuilder import MAX_DEPTH, Builder
from lazyfs.images.extraction import Copier, CopyOptions

IMAGE = noise(8 << 20)
NOWHERE = "/nonexistent/lazyfs"

ExpectLog = Callable[..., None]


class Failing(RecordingDevice):
    """A Device that cannot be read from ``bad`` on."""

    bad = 1 << 20

    async def read(self, offset: int, length: int) -> bytes:
        if offset + length > self.bad:
            raise ReadTimeout("no data within 1 second")
        return await super().read(offset, length)


def tree_of(content: dict[str, Node]) -> Tree:
    """A tree with these nodes at these paths; directories come before what is in them."""
    builder = Builder(Volume(image_size=len(IMAGE)))
    made = {"": builder.root}
    for path, node in content.items():
        where, _, name = path.rpartition("/")
        added = builder.add(made[where], node._replace(name=name), path.count("/") + 1)
        assert added is not None
        made[path] = added
    return builder.tree("Rock Ridge")


def file_of(*extents: Extent, mode: int = 0o644, mtime: int = 0) -> Node:
    size = sum(extent.length for extent in extents)
    return Node("", Kind.FILE, mode, size=size, extents=extents, mtime=mtime)


def directory(mode: int = 0o755, mtime: int = 0) -> Node:
    return Node("", Kind.DIRECTORY, mode, mtime=mtime)


def link_to(target: str) -> Node:
    return Node("", Kind.SYMLINK, 0o777, target=target)


def copier(content: dict[str, Node], *, recursive: bool = False, preserve: bool = False) -> Copier:
    device = RecordingDevice(IMAGE)
    return Copier(device, tree_of(content), CopyOptions(recursive, preserve))


SMALL, LARGE = Extent(100, 5000), Extent(1 << 20, 3 * STEP + 7)
PLAIN = {
    "boot": directory(),
    "boot/kernel": file_of(LARGE),
    "boot/empty": file_of(),
    "boot/inner": directory(),
    "boot/inner/config": file_of(SMALL),
    "readme": file_of(SMALL),
    "to boot": link_to("boot"),
    "to readme": link_to("readme"),
    "dangling": link_to("no/such/file"),
}


def bytes_of(*extents: Extent) -> bytes:
    return b"".join(IMAGE[offset : offset + length] for offset, length in extents)


# Where things go


async def test_a_file_goes_into_a_directory_under_its_name(tmp_path: Path) -> None:
    await copier(PLAIN).copy(["/boot/kernel", "readme"], tmp_path)
    assert sorted(os.listdir(tmp_path)) == ["kernel", "readme"]
    assert (tmp_path / "kernel").read_bytes() == bytes_of(LARGE)
    assert (tmp_path / "readme").read_bytes() == bytes_of(SMALL)


async def test_a_file_gets_a_new_name_where_there_is_no_directory(tmp_path: Path) -> None:
    await copier(PLAIN).copy(["readme"], tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == bytes_of(SMALL)


async def test_a_directory_goes_with_all_that_is_in_it(tmp_path: Path) -> None:
    await copier(PLAIN, recursive=True).copy(["boot/"], tmp_path)
    await copier(PLAIN, recursive=True).copy(["boot"], tmp_path / "renamed")
    for made in (tmp_path / "boot", tmp_path / "renamed"):
        assert (made / "kernel").read_bytes() == bytes_of(LARGE)
        assert (made / "empty").read_bytes() == b""
        assert (made / "inner/config").read_bytes() == bytes_of(SMALL)


@pytest.mark.parametrize("path", ["/", "", ".", "boot/.."])
async def test_the_root_brings_its_content_and_no_directory(tmp_path: Path, path: str) -> None:
    await copier(PLAIN, recursive=True).copy([path], tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted({name.split("/")[0] for name in PLAIN})


async def test_the_root_gets_a_name_where_there_is_no_directory(tmp_path: Path) -> None:
    await copier(PLAIN, recursive=True).copy(["/"], tmp_path / "all")
    assert (tmp_path / "all/boot/inner/config").read_bytes() == bytes_of(SMALL)


async def test_several_things_need_a_directory(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="new is not a directory; make it first: mkdir"):
        await copier(PLAIN).copy(["readme", "boot/kernel"], tmp_path / "new")
    assert os.listdir(tmp_path) == []


async def test_directories_need_a_word_for_it(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="boot is a directory; give -r"):
        await copier(PLAIN).copy(["readme", "boot"], tmp_path)
    assert os.listdir(tmp_path) == []


async def test_nothing_is_copied_when_something_is_absent(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="reedme is not in the image; did you mean readme"):
        await copier(PLAIN).copy(["boot/kernel", "reedme"], tmp_path)
    assert os.listdir(tmp_path) == []


async def test_links_are_followed_alone_and_kept_in_a_tree(tmp_path: Path) -> None:
    await copier(PLAIN).copy(["to readme"], tmp_path)
    assert (tmp_path / "to readme").read_bytes() == bytes_of(SMALL)
    assert not (tmp_path / "to readme").is_symlink()
    again = copier(PLAIN, recursive=True)
    await again.copy(["to boot", "dangling"], tmp_path)
    assert os.readlink(tmp_path / "to boot") == "boot"
    assert os.readlink(tmp_path / "dangling") == "no/such/file"


async def test_the_deepest_tree_can_be_copied(tmp_path: Path) -> None:
    path, content = "", {}
    for _ in range(MAX_DEPTH - 1):
        path = f"{path}/d".lstrip("/")
        content[path] = directory()
    content[f"{path}/f"] = file_of(SMALL)
    await copier(content, recursive=True).copy(["/"], tmp_path)
    assert (tmp_path / path / "f").read_bytes() == bytes_of(SMALL)


# How much it will be


def test_the_size_is_known_before(tmp_path: Path) -> None:
    assert copier(PLAIN).size_of(["readme", "to readme"]) == 2 * SMALL.length
    all_of_it = copier(PLAIN, recursive=True).size_of(["/"])
    assert all_of_it == LARGE.length + 2 * SMALL.length


def test_a_link_that_stays_a_link_has_no_size() -> None:
    assert copier(PLAIN, recursive=True).size_of(["to boot", "dangling", "to readme"]) == 0


async def test_what_was_written_is_told_piece_by_piece(tmp_path: Path) -> None:
    told: list[int] = []
    device = RecordingDevice(IMAGE)
    await Copier(device, tree_of(PLAIN), CopyOptions(), told.append).copy(["boot/kernel"], tmp_path)
    assert told == [STEP, STEP, STEP, 7]


# What is kept


async def test_modes_and_times_are_kept_on_request(tmp_path: Path) -> None:
    content = {
        "dir": directory(0o2711, 1_000_000_000),
        "dir/set-id": file_of(SMALL, mode=0o4755, mtime=-86_400),
        "dir/read-only": file_of(SMALL, mode=0o444, mtime=2_000_000_000),
    }
    await copier(content, recursive=True, preserve=True).copy(["dir"], tmp_path)
    for path, node in content.items():
        made = (tmp_path / path).stat()
        assert (stat.S_IMODE(made.st_mode), made.st_mtime) == (node.mode, node.mtime)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give files away")
async def test_owners_are_kept_by_root(tmp_path: Path) -> None:
    content = {"dir": directory()._replace(uid=7, gid=8)}
    content["dir/file"] = file_of(SMALL, mode=0o4755)._replace(uid=1234, gid=65534)
    content["dir/link"] = link_to("file")._replace(uid=1234, gid=65534)
    await copier(content, recursive=True, preserve=True).copy(["dir"], tmp_path)
    for path, node in content.items():
        made = (tmp_path / path).lstat()
        assert (path, made.st_uid, made.st_gid) == (path, node.uid, node.gid)
    assert (tmp_path / "dir/file").stat().st_mode & 0o7777 == 0o4755


async def test_without_it_files_are_new_and_ours(tmp_path: Path) -> None:
    content = {"set-id": file_of(SMALL, mode=0o6755, mtime=5)}
    content["read-only"] = file_of(SMALL, mode=0o444)
    before = os.umask(0o027)
    try:
        await copier(content).copy(["set-id", "read-only"], tmp_path)
    finally:
        os.umask(before)
    made = (tmp_path / "set-id").stat()
    assert stat.S_IMODE(made.st_mode) == 0o750
    assert made.st_mtime > 5
    assert made.st_uid == os.geteuid()
    assert stat.S_IMODE((tmp_path / "read-only").stat().st_mode) == 0o640


async def test_holes_stay_holes(tmp_path: Path) -> None:
    content = {"sparse": file_of(Extent(HOLE, 8 * STEP), SMALL, Extent(HOLE, 3 * STEP))}
    await copier(content).copy(["sparse"], tmp_path)
    made = tmp_path / "sparse"
    assert made.read_bytes() == bytes(8 * STEP) + bytes_of(SMALL) + bytes(3 * STEP)
    assert made.stat().st_blocks * 512 <= 2 * STEP


# What is there already


async def test_a_file_that_is_there_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "readme").write_bytes(bytes(1 << 20))
    (tmp_path / "boot").mkdir()
    (tmp_path / "boot/mine").write_text("mine")
    await copier(PLAIN, recursive=True).copy(["/"], tmp_path)
    assert (tmp_path / "readme").read_bytes() == bytes_of(SMALL)
    assert (tmp_path / "boot/mine").read_text() == "mine"
    await copier(PLAIN, recursive=True).copy(["/"], tmp_path)
    assert os.readlink(tmp_path / "to boot") == "boot"


@pytest.mark.parametrize("path", ["readme", "boot", "to boot"])
async def test_a_link_that_was_planted_is_not_followed(
    tmp_path: Path, path: str, expected_log: ExpectLog
) -> None:
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    (outside / "file").write_text("precious")
    (inside / path).symlink_to(outside if path == "boot" else outside / "file")
    options = copier(PLAIN, recursive=True)
    if path == "to boot":
        await options.copy([path], inside)
        assert os.readlink(inside / path) == "boot"
    else:
        expected_log(f"ERROR: {inside / path} is not copied: a symbolic link")
        await options.copy([path], inside)
        assert options.failed == 1
    assert os.listdir(outside) == ["file"]
    assert (outside / "file").read_text() == "precious"


async def test_an_image_cannot_plant_a_link_to_go_through_it_later(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    expected_log("ERROR: .*inside/x is not copied: a symbolic link")
    outside, inside = tmp_path / "outside", tmp_path / "inside"
    outside.mkdir()
    inside.mkdir()
    content = {
        "a": directory(),
        "a/x": link_to(str(outside)),
        "b": directory(),
        "b/x": directory(),
        "b/x/evil": file_of(SMALL),
    }
    await copier(content, recursive=True).copy(["a/x", "b/x"], inside)
    assert os.listdir(outside) == []


async def test_an_image_cannot_write_through_a_link_to_a_file(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    expected_log("ERROR: .*inside/x is not copied: a symbolic link")
    precious = tmp_path / "precious"
    precious.write_text("precious")
    inside = tmp_path / "inside"
    inside.mkdir()
    content = {
        "a": directory(),
        "a/x": link_to("../precious"),
        "b": directory(),
        "b/x": file_of(SMALL),
    }
    await copier(content, recursive=True).copy(["a/x", "b/x"], inside)
    assert precious.read_text() == "precious"


@pytest.mark.parametrize("has_reader", [False, True])
async def test_a_fifo_in_the_way_is_an_error_and_no_wait(
    tmp_path: Path, has_reader: bool, expected_log: ExpectLog
) -> None:
    expected_log(f"ERROR: {tmp_path}/readme is not copied: .* in the way")
    os.mkfifo(tmp_path / "readme")
    reader = os.open(tmp_path / "readme", os.O_RDONLY | os.O_NONBLOCK) if has_reader else -1
    try:
        await copier(PLAIN).copy(["readme"], tmp_path)
    finally:
        if has_reader:
            os.close(reader)
    assert stat.S_ISFIFO((tmp_path / "readme").stat().st_mode)


async def test_a_directory_in_the_way_of_a_file_is_an_error(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    expected_log("ERROR: .*/readme is not copied: Is a directory")
    (tmp_path / "readme").mkdir()
    copying = copier(PLAIN)
    await copying.copy(["readme"], tmp_path)
    assert copying.failed == 1


async def test_a_file_in_the_way_of_a_directory_is_an_error(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    expected_log("ERROR: .*/boot is not copied: .* in the way")
    (tmp_path / "boot").write_text("mine")
    await copier(PLAIN, recursive=True).copy(["boot"], tmp_path)
    assert (tmp_path / "boot").read_text() == "mine"


async def test_a_place_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=f"{NOWHERE}.* cannot be written: No such file"):
        await copier(PLAIN).copy(["readme"], Path(NOWHERE, "new"))


# What cannot be read, or written


async def test_what_cannot_be_read_is_said_and_the_rest_is_copied(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    expected_log(r"ERROR: .*/d/packed is not copied: .*is compressed \(zisofs\)")
    expected_log(r"ERROR: .*/d/outside is not copied: .*it lies outside of the image")
    content = {
        "d": directory(),
        "d/packed": file_of(SMALL)._replace(compressed="zisofs"),
        "d/outside": file_of(Extent(len(IMAGE) - 10, 20)),
        "d/good": file_of(SMALL),
    }
    copying = copier(content, recursive=True)
    await copying.copy(["d"], tmp_path)
    assert copying.failed == 2
    assert os.listdir(tmp_path / "d") == ["good"]
    assert (tmp_path / "d/good").read_bytes() == bytes_of(SMALL)


async def test_a_read_that_fails_leaves_no_half_file(tmp_path: Path) -> None:
    (tmp_path / "kernel").write_text("an older one")
    copying = Copier(Failing(IMAGE), tree_of(PLAIN), CopyOptions(recursive=True))
    Failing.bad = LARGE.offset + 2 * STEP
    with pytest.raises(ReadTimeout, match="no data within 1 second"):
        await copying.copy(["boot/kernel"], tmp_path)
    assert os.listdir(tmp_path) == []


async def test_devices_fifos_and_sockets_are_left_out_and_said(
    tmp_path: Path, expected_log: ExpectLog
) -> None:
    kinds = (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE, Kind.FIFO, Kind.SOCKET)
    for kind in kinds:
        word = kind.name.lower().replace("_", " ")
        expected_log(f"WARNING: .*/{kind.name} is left out: it is a {word}")
    copying = copier({k.name: Node("", k, device=(1, 3)) for k in kinds}, recursive=True)
    await copying.copy(["/"], tmp_path)
    assert os.listdir(tmp_path) == []
    assert copying.failed == 0


@pytest.mark.parametrize("failure", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
async def test_a_disk_that_refuses_is_an_error_and_leaves_no_half_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failure: int
) -> None:
    written: list[int] = []
    pwrite = os.pwrite

    def until_full(fd: int, data: bytes, offset: int) -> int:
        if offset >= STEP:
            raise OSError(failure, os.strerror(failure))
        written.append(len(data))
        return pwrite(fd, data[:1000], offset)

    monkeypatch.setattr(os, "pwrite", until_full)
    with pytest.raises(OutputError, match=f"kernel cannot be written: {os.strerror(failure)}"):
        await copier(PLAIN, recursive=True).copy(["boot"], tmp_path)
    assert len(written) > 1000
    assert not (tmp_path / "boot/kernel").exists()

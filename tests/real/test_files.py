"""The image as a file: what stat, du, ls, getfattr and df say, and who may do what."""

import errno
import os
import stat
from pathlib import Path

import pytest

from lazyfs.sources.http import FIRST_BYTES

from .images import MIB, Images
from .mounts import Lab, ReadFailed, is_mounted, mount_line, read, run_well, same_content
from .servers import MTIME, Nginx, Scripted
from .waiting import eventually


def test_attributes(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert os.listdir(mounted.path) == ["image.raw"]
        found = mounted.image.stat()
        assert stat.S_ISREG(found.st_mode)
        assert stat.S_IMODE(found.st_mode) == 0o444
        assert found.st_size == len(content)
        assert found.st_mtime == MTIME
        assert found.st_nlink == 1
        assert (found.st_uid, found.st_gid) == (os.getuid(), os.getgid())
        assert stat.S_ISDIR(mounted.path.stat().st_mode)


def test_an_image_without_last_modified_has_an_old_date(lab: Lab, scripted: Scripted) -> None:
    scripted.files["/image.raw"].last_modified = None
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.stat().st_mtime == 0


def test_du_shows_the_whole_and_what_is_cached(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    with lab.mounted("--block-size", "64K", scripted.url("image.raw")) as mounted:
        assert _du(mounted.image, "--apparent-size") == len(content)
        assert _du(mounted.image) == FIRST_BYTES
        read(mounted.image, 2 * MIB, 4096)
        one_more = FIRST_BYTES + (64 << 10)
        eventually(lambda: _du(mounted.image) == one_more, "du shows another block")
        assert mounted.cached() == one_more
        read(mounted.image, len(content) - 10, 10)
        assert mounted.cached() == one_more + 100, "the last block is a short one"
        eventually(lambda: _du(mounted.image) == one_more + 512, "du shows both")
        assert mounted.image.stat().st_size == len(content)


def _du(path: Path, *options: str) -> int:
    return int(run_well(["du", "--block-size=1", *options, path]).split("\t")[0])


def test_extended_attributes(lab: Lab, scripted: Scripted) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        names = os.listxattr(mounted.image)
        assert sorted(names) == [
            f"user.lazyfs.{n}" for n in ("cached", "identity", "statistics", "url", "view")
        ]
        assert os.getxattr(mounted.image, "user.lazyfs.url") == url.encode()
        assert mounted.cached() == FIRST_BYTES
        with pytest.raises(OSError, match=os.strerror(errno.ENODATA)):
            os.getxattr(mounted.image, "user.other")
        assert os.listxattr(mounted.path) == []


def test_statfs(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        found = os.statvfs(mounted.path)
        assert found.f_blocks * found.f_frsize >= len(content)
        assert (found.f_blocks - 1) * found.f_frsize < len(content)
        assert found.f_bavail == found.f_bfree == 0
        assert found.f_namemax == 255
        assert found.f_flag & os.ST_RDONLY


def test_nothing_can_be_written(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        attempts = (
            lambda: os.open(mounted.image, os.O_WRONLY),
            lambda: os.open(mounted.image, os.O_RDWR),
            lambda: os.open(mounted.image, os.O_RDONLY | os.O_TRUNC),
            lambda: os.open(mounted.path / "new", os.O_WRONLY | os.O_CREAT),
            lambda: os.truncate(mounted.image, 0),
            lambda: os.unlink(mounted.image),
            lambda: os.rename(mounted.image, mounted.path / "other"),
            lambda: os.mkdir(mounted.path / "directory"),
            lambda: os.chmod(mounted.image, 0o666),
            lambda: os.utime(mounted.image),
            lambda: os.setxattr(mounted.image, "user.lazyfs.url", b"x"),
        )
        refused = []
        for attempt in attempts:
            with pytest.raises(OSError) as refusal:
                attempt()
            refused.append(refusal.value.errno)
        assert set(refused) <= {errno.EROFS, errno.EACCES}
        assert os.listdir(mounted.path) == ["image.raw"]


def test_what_is_not_there(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        with pytest.raises(FileNotFoundError):
            (mounted.path / "other.raw").stat()
        with pytest.raises(NotADirectoryError):
            (mounted.image / "below").stat()


def test_reads_at_and_beyond_the_end(lab: Lab, scripted: Scripted, content: bytes) -> None:
    size = len(content)
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert read(mounted.image, size - 5, 100) == content[-5:]
        assert read(mounted.image, size, 100) == b""
        assert read(mounted.image, size + 4096, 100) == b""


def test_several_images_in_one_mount(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """Two of one host and one of another; ``--name`` goes to the first."""
    with Scripted(**{"image.raw": content[::-1]}) as other:
        scripted.files["/more/b.raw"] = type(scripted.files["/image.raw"])(content[:5000])
        wanted = [scripted.url("image.raw"), other.url("image.raw"), scripted.url("more/b.raw")]
        with lab.mounted("--name", "first", *wanted) as mounted:
            assert sorted(os.listdir(mounted.path)) == ["b.raw", "first", "image.raw"]
            assert (mounted.path / "first").read_bytes() == content
            assert (mounted.path / "image.raw").read_bytes() == content[::-1]
            assert (mounted.path / "b.raw").read_bytes() == content[:5000]


def test_two_large_images_of_one_host_at_once(lab: Lab, images: Images, nginx: Nginx) -> None:
    one, other = images.random(), images.ext4()
    with lab.mounted(nginx.url(one.name), nginx.url(other.name)) as mounted:
        assert same_content(mounted.path / one.name, one)
        assert same_content(mounted.path / other.name, other)


@pytest.mark.parametrize("text", ["a b", "grüße", "a,b", "back\\slash", "100%"])
def test_names_of_mount_points_and_images(
    lab: Lab, scripted: Scripted, content: bytes, text: str
) -> None:
    at = lab.directory / text
    at.mkdir()
    with lab.mounted("--name", text, scripted.url("image.raw"), at=at) as mounted:
        assert os.listdir(at) == [text]
        assert mounted.image.read_bytes() == content
        mounted.signal(15)
        mounted.wait_until_ended()
        assert os.listdir(at) == []


def test_the_mount_table(lab: Lab, scripted: Scripted) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        source, where, kind, options, *_ = mount_line(mounted.path).split(" ")
        assert source == url
        assert where == str(mounted.path)
        assert kind == "fuse.lazyfs"
        assert {"ro", "nosuid", "nodev"} <= set(options.split(","))
    assert not is_mounted(mounted.path)


def test_a_failed_read_says_so(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """And takes down neither the mount nor the other reads."""
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        read(mounted.image, 0, 10)
        del scripted.files["/image.raw"]
        with pytest.raises(ReadFailed) as failure:
            read(mounted.image, 3 * MIB, 10)
        assert failure.value.errno == errno.EIO
        assert read(mounted.image, 0, 10) == content[:10]
        assert "no such file on the server (status 404)" in mounted.messages()

"""Files that are replaced as a whole: nobody's link is followed, and no device is replaced."""

import errno
import os
import stat
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.system import atomicfile
from lazyfs.system.atomicfile import target_of, write_own, write_whole

need_root = pytest.mark.skipif(os.geteuid() != 0, reason="other owners and devices need root")
OTHER = 12345  # a uid


@pytest.mark.parametrize("write", [write_own, write_whole])
def test_a_planted_temporary_file_is_not_written_to(
    tmp_path: Path,
    write: Callable[[Path, bytes], None],
) -> None:
    """Such a link used to lead root's write astray."""
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out.new").symlink_to(victim)
    write(tmp_path / "out", b"content")
    assert victim.read_text() == "precious"
    assert (tmp_path / "out").read_bytes() == b"content"
    assert sorted(os.listdir(tmp_path)) == ["out", "out.new", "victim"]


def test_write_own_replaces_a_link(tmp_path: Path) -> None:
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (tmp_path / "out").symlink_to(victim)
    write_own(tmp_path / "out", b"content")
    assert not (tmp_path / "out").is_symlink()
    assert victim.read_text() == "precious"


def test_write_whole_keeps_links_and_writes_to_their_end(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    target = tmp_path / "real/target"
    (tmp_path / "out").symlink_to("between")
    (tmp_path / "between").symlink_to(target)
    for content in (b"new", b"old"):
        write_whole(tmp_path / "out", content)
        assert (tmp_path / "out").is_symlink()
        assert target.read_bytes() == content
        assert os.listdir(tmp_path / "real") == ["target"]


def test_a_circle_of_links_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "out").symlink_to("out")
    with pytest.raises(OSError, match="Too many levels") as caught:
        write_whole(tmp_path / "out", b"x")
    assert caught.value.errno == errno.ELOOP


@need_root
def test_owner_and_mode_are_kept(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.write_text("old")
    os.chown(out, OTHER, OTHER)
    out.chmod(0o640)
    before = out.stat().st_ino
    write_whole(out, b"new")
    found = out.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (OTHER, OTHER, 0o640)
    assert found.st_ino != before
    assert out.read_bytes() == b"new"


def test_what_may_not_be_replaced_is_written_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    out.write_text("old and long")

    def refuse(fd: int, uid: int, gid: int) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    before = out.stat().st_ino
    write_whole(out, b"new")
    assert out.stat().st_ino == before
    assert out.read_bytes() == b"new"
    assert os.listdir(tmp_path) == ["out"]


@need_root
def test_a_device_is_written_to_and_stays(tmp_path: Path) -> None:
    null = tmp_path / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    write_whole(null, b"content")
    assert null.is_char_device()
    full = tmp_path / "full"
    os.mknod(full, stat.S_IFCHR | 0o666, os.makedev(1, 7))
    with pytest.raises(OSError, match="No space left"):
        write_whole(full, b"content")


def test_a_fifo_is_written_to_and_stays(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    with pytest.raises(OSError, match="No such device or address"):
        write_whole(fifo, b"nobody reads this")
    content = b"x" * (1 << 20)
    got = []
    thread = threading.Thread(target=lambda: got.append(fifo.read_bytes()))
    thread.start()
    for _ in range(1000):
        try:
            write_whole(fifo, content)
            break
        except OSError:  # the reader is not there yet
            time.sleep(0.01)
    thread.join(10)
    assert got == [content]
    assert fifo.is_fifo()


def test_a_fifo_that_nobody_empties_is_not_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atomicfile, "_PATIENCE", 0.05)
    os.mkfifo(tmp_path / "fifo")
    reading = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    with pytest.raises(TimeoutError, match="nobody reads it"):
        write_whole(tmp_path / "fifo", b"x" * (1 << 20))
    os.close(reading)


def test_what_is_open_has_no_path_of_its_own(tmp_path: Path) -> None:
    """/dev/stdout is such a link."""
    out = tmp_path / "out"
    with out.open("w") as file:
        out.unlink()
        write_whole(Path(f"/proc/self/fd/{file.fileno()}"), b"content")
        assert os.fstat(file.fileno()).st_size == len(b"content")
    assert os.listdir(tmp_path) == []


@need_root
def test_in_a_shared_directory_links_of_others_are_refused(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o1777)
    victim = tmp_path / "victim"
    victim.write_text("precious")
    link = shared / "out"
    link.symlink_to(victim)
    assert target_of(link) == victim
    os.chown(link, OTHER, OTHER, follow_symlinks=False)
    with pytest.raises(PermissionError, match="somebody else's link is there"):
        write_whole(link, b"content")
    assert victim.read_text() == "precious"


def test_nothing_is_left_behind_by_a_failure(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(IsADirectoryError):
        write_own(tmp_path / "out", b"content")
    with pytest.raises(IsADirectoryError):
        write_whole(tmp_path / "out", b"content")
    assert os.listdir(tmp_path) == ["out"]


def test_long_names_leave_room_for_the_temporary_one(tmp_path: Path) -> None:
    name = "é" * 127
    write_own(tmp_path / name, b"content")
    assert os.listdir(tmp_path) == [name]

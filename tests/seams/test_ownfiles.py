"""Whose files and directories can be relied on."""

import errno
import os
import stat
from pathlib import Path

import pytest

from lazyfs.system import ownfiles
from lazyfs.system.ownfiles import (
    check_directory,
    complaint,
    complaint_above,
    make_directory,
    open_own,
)

ME, OTHER = 1000, 1001
ALONE, OTHERS = "", "can be written to by others"
THEIRS = f"belongs to another user (uid {OTHER})"


def found(mode: int, user: int) -> os.stat_result:
    return os.stat_result((mode, 0, 0, 1, user, user, 0, 0, 0, 0))


@pytest.mark.parametrize("kind", [stat.S_IFREG, stat.S_IFDIR])
@pytest.mark.parametrize(
    ("mode", "user", "why"),
    [
        (0o600, ME, ALONE),
        (0o755, ME, ALONE),
        (0o755, 0, ALONE),
        (0o700, OTHER, THEIRS),
        (0o720, ME, OTHERS),
        (0o702, 0, OTHERS),
        (0o1777, 0, OTHERS),
    ],
)
def test_what_is_relied_on(kind: int, mode: int, user: int, why: str) -> None:
    assert complaint(found(kind | mode, user), ME) == why


@pytest.mark.parametrize(
    ("mode", "user", "why"),
    [
        (0o755, ME, ALONE),
        (0o775, 0, ALONE),
        (0o1777, 0, ALONE),
        (0o777, 0, "can be written to by everybody"),
        (0o755, OTHER, THEIRS),
        (0o1777, OTHER, THEIRS),
    ],
)
def test_what_may_be_above(mode: int, user: int, why: str) -> None:
    assert complaint_above(found(stat.S_IFDIR | mode, user), ME) == why


@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_directories_are_made_for_us_alone(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        make_directory(tmp_path / "a/b/c")
        make_directory(tmp_path / "a/b/c")
    finally:
        os.umask(before)
    for name in ("a", "a/b", "a/b/c"):
        assert (tmp_path / name).stat().st_mode & 0o777 == 0o700


def test_a_directory_may_be_named_by_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to("real")
    check_directory(tmp_path / "link")
    (tmp_path / "real").chmod(0o770)
    with pytest.raises(PermissionError, match="it can be written to by others"):
        check_directory(tmp_path / "link")


def test_a_directory_below_one_that_the_link_leads_to_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "open/real").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    (tmp_path / "link").symlink_to("open/real")
    with pytest.raises(PermissionError, match=r"it is not safe there: .*/open can be written to"):
        check_directory(tmp_path / "link")


def test_above_a_directory_owners_that_have_no_number_here_are_the_machines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in a user namespace, where / is not root's."""
    (tmp_path / "open/cache").mkdir(parents=True)
    (tmp_path / "open").chmod(0o777)
    monkeypatch.setattr(ownfiles, "_unmapped", os.geteuid)
    check_directory(tmp_path / "open/cache")


def test_no_file_is_opened_through_a_link_or_in_place_of_a_fifo(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("absent")
    os.mkfifo(tmp_path / "fifo")
    for name, why in (("link", "it is a symbolic link"), ("fifo", "it is no regular file")):
        with pytest.raises(PermissionError) as caught:
            open_own(tmp_path / name, os.O_RDWR | os.O_CREAT)
        assert (caught.value.errno, caught.value.strerror) == (errno.EPERM, why)
        assert caught.value.filename == str(tmp_path / name)
    assert not (tmp_path / "absent").exists()


def test_a_new_file_is_ours_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        os.close(open_own(tmp_path / "new", os.O_RDWR | os.O_CREAT))
    finally:
        os.umask(before)
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o600


def test_directory_that_is_sticky_is_accepted_as_a_new_tmpfs_is(tmp_path: Path) -> None:
    tmp_path.chmod(0o1777)
    check_directory(tmp_path)
    tmp_path.chmod(0o777)
    with pytest.raises(OSError, match="can be written to by others"):
        check_directory(tmp_path)

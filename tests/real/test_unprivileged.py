"""What a user without any rights can do, given access to /dev/fuse."""

import fcntl
import importlib.util
import os
import shlex
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from iso.handmade import ROOT, SUSP, image, posix, record

from .mounts import IS_ROOT, adopted, environment, is_mounted, run
from .servers import Scripted

NOBODY = 65534

_FUSE = Path("/dev/fuse")
_FOR_TESTS_ONLY = ("mypy*", "ruff*", "pip*", "setuptools*", "hypothesis*", "_pytest", "pytest*")
_PROBE = "import lazyfs.images.open, lazyfs.frontends.fuse"


class User:
    """The user nobody, with a home, a cache and mount points of its own."""

    def __init__(self, directory: Path, python: str, library: str) -> None:
        self.directory = directory
        self.home = self.make("home")
        self.command = [python, "-m", "lazyfs"]
        self.env = environment(self.home, PYTHONPATH=library, PYTHONDONTWRITEBYTECODE="1")

    def make(self, name: str) -> Path:
        """A directory that belongs to the user."""
        path = self.directory / name
        path.mkdir()
        os.chown(path, NOBODY, NOBODY)
        return path

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        return run(command, env=self.env, cwd=self.directory, user=NOBODY)

    def lazyfs(self, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return self.run(*self.command, *arguments)

    def lazyfs_where(self, change: str, *arguments: str | Path) -> str:
        """lazyfs in a mount table of its own to which root has made a change; its complaint."""
        words = shlex.join(str(word) for word in [*self.command, *arguments])
        script = (
            f"{change} && exec setpriv --reuid {NOBODY} --regid {NOBODY} --clear-groups {words}"
        )
        done = run(["unshare", "--mount", "sh", "-c", script], env=self.env, cwd=self.directory)
        assert done.returncode == 1, done.stderr
        assert done.stderr.count("\n") == 1
        return done.stderr


@pytest.fixture
def user(public_directory: Path) -> User:
    if not IS_ROOT:
        pytest.skip("only root can become another user")
    python = _python_for_all()
    for library in _libraries(public_directory):
        env = environment(public_directory, PYTHONPATH=library, PYTHONDONTWRITEBYTECODE="1")
        probe = run([python, "-c", _PROBE], env=env, user=NOBODY, cwd=public_directory)
        if probe.returncode == 0:
            return User(public_directory, python, library)
    pytest.fail(f"nobody cannot import lazyfs: {probe.stderr}")


def _python_for_all() -> str:
    """A Python of our version that other users may run: ours may lie in root's home."""
    ours = "{}.{}".format(*sys.version_info)
    question = "import sys; print('{}.{}'.format(*sys.version_info))"
    for python in (sys.executable, f"/usr/bin/python{ours}"):
        try:
            done = run([python, "-c", question], user=NOBODY, cwd=Path("/"))
        except PermissionError:
            continue
        except FileNotFoundError:
            continue
        if done.returncode == 0 and done.stdout.strip() == ours:
            return python
    pytest.skip(f"there is no Python {ours} that other users may run (Debian package python3)")


def _libraries(public_directory: Path) -> Iterator[str]:
    """Values for PYTHONPATH: lazyfs and what it needs where they are, then copied."""
    places = (_place_of("lazyfs"), _place_of("trio"))
    yield os.pathsep.join(map(str, places))
    copy = public_directory / "library"
    shutil.copytree(places[1], copy, ignore=shutil.ignore_patterns(*_FOR_TESTS_ONLY))
    shutil.copytree(places[0] / "lazyfs", copy / "lazyfs", dirs_exist_ok=True)
    yield str(copy)


def _place_of(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parents[1]


@pytest.fixture
def open_fuse() -> Iterator[None]:
    """/dev/fuse opened to all for the time of a test, as most systems have it for good."""
    with open(Path(tempfile.gettempdir()) / "lazyfs-tests-fuse.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        before = stat.S_IMODE(_FUSE.stat().st_mode)
        _FUSE.chmod(0o666)
        try:
            yield
        finally:
            _FUSE.chmod(before)


@pytest.mark.usefixtures("open_fuse")
def test_mount_read_unmount(user: User, scripted: Scripted, content: bytes) -> None:
    original = user.directory / "original"
    original.write_bytes(content)
    at, cache = user.make("mnt"), user.home / ".cache/lazyfs"
    log = user.home / "log"
    done = user.lazyfs("--log-file", log, scripted.url("image.raw"), at)
    assert (done.returncode, done.stderr) == (0, "")
    with adopted(at, cache, log) as mounted:
        assert Path(f"/proc/{mounted.pid}").stat().st_uid == NOBODY
        assert user.run("cmp", at / "image.raw", original).returncode == 0
        listed = user.run("stat", "--format=%u %a %s", at / "image.raw").stdout
        assert listed == f"{NOBODY} 444 {len(content)}\n"
        assert cache.is_dir(), "the cache is in the user's home"
        with pytest.raises(PermissionError):
            (at / "image.raw").read_bytes()  # not even root may, without --allow-root
        done = user.lazyfs("umount", at)
        assert (done.returncode, done.stderr) == (0, "")
        mounted.wait_until_ended()
        assert mounted.complaints() == []
    assert not is_mounted(at)


@pytest.mark.usefixtures("open_fuse")
def test_a_file_as_mount_point(user: User, scripted: Scripted, content: bytes) -> None:
    at = user.make("files") / "disk.raw"
    at.touch()
    os.chown(at, NOBODY, NOBODY)
    log = user.home / "log"
    assert user.lazyfs("--log-file", log, scripted.url("image.raw"), at).returncode == 0
    with adopted(at, user.home, log) as mounted:
        size = user.run("stat", "--format=%s", at).stdout
        assert int(size) == len(content)
        mounted.signal(signal.SIGTERM)
        mounted.wait_until_ended()
    assert at.stat().st_size == 0


@pytest.mark.usefixtures("open_fuse")
def test_a_mount_point_of_somebody_else(user: User, scripted: Scripted) -> None:
    at = user.directory / "mine"
    at.mkdir()
    done = user.lazyfs("--no-cache", scripted.url("image.raw"), at)
    assert done.returncode == 1
    assert "no write access to mountpoint" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not is_mounted(at)


@pytest.mark.usefixtures("open_fuse")
@pytest.mark.parametrize("option", ["--allow-other", "--allow-root"])
def test_access_for_others_needs_the_administrators_leave(
    user: User, scripted: Scripted, option: str
) -> None:
    """That is ``user_allow_other`` in /etc/fuse.conf."""
    empty = user.directory / "fuse.conf"
    empty.touch()
    change = f"mount --bind {empty} /etc/fuse.conf"
    arguments = ("--no-cache", option, scripted.url("image.raw"), user.make("mnt"))
    said = user.lazyfs_where(change, *arguments)
    assert "user_allow_other" in said
    assert "/etc/fuse.conf" in said


def test_without_access_to_fuse(user: User, scripted: Scripted) -> None:
    closed = user.directory / "fuse"
    closed.touch(0o600)
    change = f"mount --bind {closed} /dev/fuse"
    said = user.lazyfs_where(change, scripted.url("image.raw"), user.make("mnt"))
    assert "/dev/fuse may not be opened" in said
    assert scripted.requests == []


@pytest.mark.usefixtures("open_fuse")
def test_browsing(user: User, scripted: Scripted) -> None:
    """All of the image, whoever owns what in it; and a command finds the mount."""
    scripted.files["/image.raw"].content = image(
        {ROOT: [record(b"SECRET.;1", 30, 9, system_use=posix(0o100400, "secret"))]},
        blocks={30: b"for root\n"},
        root_use=SUSP + posix(0o40700),
    )
    at, cache, log = user.make("mnt"), user.home / ".cache/lazyfs", user.home / "log"
    url = scripted.url("image.raw")
    done = user.lazyfs("--browse", "--log-file", log, url, at)
    assert (done.returncode, done.stderr) == (0, "")
    with adopted(at, cache, log) as mounted:
        assert user.run("stat", "--format=%u %a", at / "secret").stdout == "0 400\n"
        assert user.run("cat", at / "secret").stdout == "for root\n"
        done = user.lazyfs("cat", url, "secret")
        assert (done.returncode, done.stdout, done.stderr) == (0, "for root\n", "")
        assert user.lazyfs("umount", at).returncode == 0
        mounted.wait_until_ended()
        assert mounted.complaints() == []

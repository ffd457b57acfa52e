"""What other processes and other users do, or leave undone, harms no mount."""

import ast
import contextlib
import os
import re
import shlex
import signal
import socket
import stat
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import lazyfs

from .images import MIB
from .mounts import IS_ROOT, LAZYFS, Lab, adopted, daemon_of, environment, is_mounted, run
from .servers import Request, Scripted
from .waiting import eventually

AT_ONCE = 1.0  # seconds


def need_root() -> None:
    if not IS_ROOT:
        pytest.skip("mount namespaces and other users need root")


# A log that nobody reads

NAMESPACE = """\
set -e
mount -t tmpfs none "$1/dev"
for node in null zero full random urandom tty fuse; do cp -a /dev/$node "$1/dev/"; done
ln -s "$1/syslog" "$1/dev/log"
mount --bind "$1/dev" /dev
echo ready
exec sleep 600
"""


@contextlib.contextmanager
def namespace(lab: Lab) -> Iterator[list[str]]:
    """A mount namespace with a /dev/log of its own, ``syslog`` in the lab: a command's prefix."""
    need_root()
    (lab.directory / "dev").mkdir()
    holder = subprocess.Popen(
        ["unshare", "--mount", "sh", "-c", NAMESPACE, "sh", lab.directory], stdout=subprocess.PIPE
    )
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"ready\n"
        yield ["nsenter", "--mount", "--target", str(holder.pid)]
    finally:
        holder.kill()
        holder.communicate()


@contextlib.contextmanager
def silent_syslog(place: Path, kind: socket.SocketKind) -> Iterator[None]:
    """A syslog that reads nothing, and takes no more."""
    with contextlib.ExitStack() as closing:
        receiver = closing.enter_context(socket.socket(socket.AF_UNIX, kind))
        receiver.bind(os.fspath(place))
        if kind == socket.SOCK_STREAM:
            receiver.listen(0)
        with contextlib.suppress(BlockingIOError):
            for _ in range(10_000):
                sender = closing.enter_context(socket.socket(socket.AF_UNIX, kind))
                sender.setblocking(False)
                sender.connect(os.fspath(place))
                if kind == socket.SOCK_DGRAM:
                    sender.send(b"x")
        yield


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("kind", [socket.SOCK_DGRAM, socket.SOCK_STREAM])
def test_a_syslog_that_does_not_read_hangs_nothing(
    lab: Lab, scripted: Scripted, content: bytes, kind: socket.SocketKind
) -> None:
    at, env = lab.mountpoint(), environment(lab.home)
    with namespace(lab) as inside, silent_syslog(lab.directory / "syslog", kind):
        words = ["-v", "-v", "--cache-dir", lab.cache, scripted.url("image.raw"), at]
        began = time.monotonic()
        done = run([*inside, *LAZYFS, *words], env=env, limit=20)
        assert done.returncode == 0, done.stderr
        assert time.monotonic() - began < 5
        pid = daemon_of(at)
        try:
            for start in range(1, 4):
                skipped = f"skip={start * MIB}"
                words = [f"if={at}/image.raw", "bs=4096", "count=1", skipped, "iflag=skip_bytes"]
                began = time.monotonic()
                run([*inside, "dd", *words, f"of={lab.directory}/got"], limit=20)
                assert time.monotonic() - began < AT_ONCE
                got = (lab.directory / "got").read_bytes()
                assert got == content[start * MIB : start * MIB + 4096]
            began = time.monotonic()
            status = run([*inside, *LAZYFS, "status", at], env=env, limit=20)
            assert "image.raw" in status.stdout
            assert time.monotonic() - began < AT_ONCE + 1  # it is a program that has to start
            os.kill(pid, signal.SIGTERM)
            eventually(lambda: ended(pid), "the daemon ends", AT_ONCE)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def test_a_pipe_that_nobody_reads_hangs_nothing(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    at, (reader, writer) = lab.mountpoint(), os.pipe()
    os.set_blocking(writer, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writer, b"x" * 4096)
    os.set_blocking(writer, True)
    words = ["-f", "-v", "-v", "--cache-dir", lab.cache, scripted.url("image.raw"), at]
    daemon = subprocess.Popen([*LAZYFS, *words], env=environment(lab.home), stderr=writer)
    try:
        eventually(lambda: is_mounted(at), "it is mounted", 20)
        got = run(["cmp", at / "image.raw", "-"], limit=20)  # any read at all ends
        assert got.returncode == 1
        assert lab.start("status", at).returncode == 0
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait(AT_ONCE) == 0
    finally:
        daemon.kill()
        daemon.wait()
        os.close(reader)
        os.close(writer)
        if is_mounted(at):
            run(["umount", "-f", at], limit=20)


# Files that a user names


def test_a_device_named_as_output_stays_one(lab: Lab, scripted: Scripted) -> None:
    """Under another path, so that a defect costs no machine its /dev/null."""
    need_root()
    null = lab.directory / "null"
    os.mknod(null, stat.S_IFCHR | 0o666, os.makedev(1, 3))
    with lab.mounted("--record", str(null), scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
        assert lab.start("metrics", "--output", null).returncode == 0
        assert lab.start("map", "--svg", null, mounted.path).returncode == 0
        mounted.umount()
    assert null.is_char_device()
    profile = lab.directory / "profile"
    profile.write_text("lazyfs profile 1\nsize 5\n\n")
    assert lab.start("profile", "merge", "--output", null, profile).returncode == 0
    assert null.is_char_device()
    words = ["serve", "--cache-dir", lab.cache, "--pidfile", null, "--run", "true"]
    assert lab.start(*words, scripted.url("image.raw")).returncode == 0
    assert null.is_char_device()


def test_a_pid_file_may_be_a_link(lab: Lab, scripted: Scripted) -> None:
    link, target = lab.directory / "pid", lab.directory / "target"
    link.symlink_to(target)
    words = ["serve", "--cache-dir", lab.cache, "--pidfile", link, "--run", f"cp {target} seen"]
    assert lab.start(*words, scripted.url("image.raw")).returncode == 0
    assert (lab.directory / "seen").read_text().strip().isdigit()
    assert link.is_symlink()
    assert not target.exists()


def test_a_pid_file_of_somebody_else_stays(lab: Lab, scripted: Scripted) -> None:
    file = lab.directory / "pid"
    words = ["serve", "--cache-dir", lab.cache, "--pidfile", file, "--run", f"echo 1 >{file}"]
    assert lab.start(*words, scripted.url("image.raw")).returncode == 0
    assert file.read_text() == "1\n"


# A cache where others have been

OTHER = 54321  # a uid
KEY = "image.raw-0123456789abcdef"
CURE = "; name another place with --cache-dir, or use --no-cache\n"


def own(path: Path, user: int = OTHER) -> None:
    """Give a directory and all in it to a user."""
    for place in (path, *path.rglob("*")):
        os.chown(place, user, user, follow_symlinks=False)


def test_root_uses_no_cache_of_another_user(lab: Lab, scripted: Scripted) -> None:
    need_root()
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
    own(lab.cache)
    asked = len(scripted.requests)
    for words in (
        [scripted.url("image.raw"), lab.mountpoint()],
        ["serve", "--run", "true", scripted.url("image.raw")],
        ["ls", scripted.url("image.raw")],
        ["cache", "list"],
    ):
        done = lab.start(*words, "--cache-dir", lab.cache)
        assert done.returncode == 1
        why = f"{lab.cache} cannot be used: it belongs to another user (uid {OTHER}); name another"
        assert why in done.stderr
    assert len(scripted.requests) == asked


def test_root_uses_no_cache_below_a_directory_of_another_user(lab: Lab, scripted: Scripted) -> None:
    """As with sudo(8) that keeps HOME: the user could exchange what root has made."""
    need_root()
    own(lab.home)
    done = lab.start(scripted.url("image.raw"), lab.mountpoint())
    place = lab.home / ".cache/lazyfs"
    assert done.stderr == (
        f"lazyfs: the cache directory {place} cannot be used: it is not safe there: {lab.home} "
        f"belongs to another user (uid {OTHER}); name another with --cache-dir, or use --no-cache\n"
    )


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_cache_directory_that_others_may_write_to_is_refused(
    lab: Lab, scripted: Scripted, mode: int
) -> None:
    lab.cache.mkdir()
    lab.cache.chmod(mode)
    url, at = scripted.url("image.raw"), lab.mountpoint()
    done = lab.start("--cache-dir", lab.cache, url, at)
    assert done.returncode == 1
    assert done.stderr == (
        f"lazyfs: the cache directory {lab.cache} cannot be used: it can be written to by others; "
        "name another with --cache-dir, or use --no-cache\n"
    )
    lab.cache.chmod(0o755)
    with lab.mounted(url, at=at) as mounted:
        assert mounted.image.stat().st_size > 0


def test_a_cache_below_a_shared_directory_is_as_safe_as_that(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    shared = lab.directory / "shared"
    shared.mkdir()
    url = scripted.url("image.raw")
    shared.chmod(0o1777)  # like /tmp
    with lab.mounted(url, cache=shared / "cache") as mounted:
        assert mounted.image.read_bytes() == content
    shared.chmod(0o777)
    done = lab.start("--cache-dir", shared / "cache", url, lab.mountpoint())
    assert done.returncode == 1
    assert f"it is not safe there: {shared} can be written to by everybody; name" in done.stderr


FILES = ["data", "sums", "bitmap", "lock", "claim", "meta.json", "catalog"]


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kind", ["link", "of another", "open to others", "fifo"])
def test_what_was_planted_in_a_cache_is_neither_written_nor_believed(
    lab: Lab, scripted: Scripted, name: str, kind: str
) -> None:
    need_root()
    url, victim = scripted.url("image.raw"), lab.directory / "victim"
    with lab.mounted(url) as mounted:
        mounted.image.read_bytes()
    (place,) = lab.cache.iterdir()
    planted = place / name
    victim.write_text("precious")
    if kind in ("link", "fifo"):
        planted.unlink(missing_ok=True)
        planted.symlink_to(victim) if kind == "link" else os.mkfifo(planted)
    else:
        planted.touch()
        os.chown(planted, OTHER if kind == "of another" else 0, 0)
        planted.chmod(0o600 if kind == "of another" else 0o602)
    words = ["--cache-dir", lab.cache, "--cache-size", "1G", url, lab.mountpoint()]
    done = lab.start(*words)
    assert done.returncode == 1
    why = {
        "link": "is a symbolic link",
        "fifo": "is no regular file",
        "of another": f"belongs to another user (uid {OTHER})",
        "open to others": "can be written to by others",
    }
    assert done.stderr == f"lazyfs: the cache file {planted} cannot be used: it {why[kind]}{CURE}"
    assert victim.read_text() == "precious"
    for command in ("list", "verify"):
        lab.start("cache", command, "--cache-dir", lab.cache)
        assert victim.read_text() == "precious"


@pytest.mark.parametrize("name", ["image", "bitmap"])
def test_files_that_a_user_named_are_looked_at_too(lab: Lab, scripted: Scripted, name: str) -> None:
    victim = lab.directory / "victim"
    victim.touch()
    (lab.directory / name).symlink_to(victim)
    words = ["--cache", "image", "--bitmap", "bitmap", scripted.url("image.raw")]
    done = lab.start(*words, lab.mountpoint())
    assert done.stderr == (
        f"lazyfs: the cache file {lab.directory / name} cannot be used: it is a symbolic link{CURE}"
    )
    assert victim.stat().st_size == 0


@pytest.mark.parametrize("kind", ["link", "open to others"])
def test_the_log_in_a_cache_directory_is_ours(lab: Lab, scripted: Scripted, kind: str) -> None:
    if Path("/dev/log").exists():
        pytest.skip("this system has a syslog")
    victim, log = lab.directory / "victim", lab.cache / "lazyfs.log"
    victim.write_text("precious")
    lab.cache.mkdir()
    if kind == "link":
        log.symlink_to(victim)
    else:
        lab.cache.chmod(0o777)
    words = ["--cache-dir", lab.cache, scripted.url("image.raw"), lab.mountpoint()]
    for more in (["--no-cache"], []):
        done = lab.start(*more, *words)
        assert done.returncode == 1
        assert "it is a symbolic link" if kind == "link" else "by others" in done.stderr
    assert victim.read_text() == "precious"


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o022, 0o077])
def test_new_directories_are_private_whatever_the_umask(
    lab: Lab, scripted: Scripted, umask: int
) -> None:
    url = scripted.url("image.raw")
    limited = ["--cache-size", "100M"]
    for number, words in enumerate((["info"], ["serve", *limited, "--run", "true"])):
        home = lab.directory / f"home{number}"
        home.mkdir(mode=0o700)
        done = subprocess.run(
            [*LAZYFS, *words, url], env=environment(home), umask=umask, check=False,
            stdout=subprocess.DEVNULL, timeout=60,
        )  # fmt: skip
        assert done.returncode == 0
        made = [*home.rglob("*")]
        assert home / ".cache/lazyfs" in made
        for place in made:
            assert place.stat().st_mode & 0o777 == (0o700 if place.is_dir() else 0o600), place


# Programs in the current directory


def python_starts(file: Path) -> Iterator[ast.List]:
    """The command lines that begin with the running Python."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.List) and "sys.executable" in ast.unparse(node):
            yield node


def test_each_python_that_is_started_is_told_not_to_look_there() -> None:
    root = Path(lazyfs.__file__).parent
    found = [ast.unparse(c) for file in root.rglob("*.py") for c in python_starts(file)]
    assert found
    assert [command for command in found if "'-P'" not in command] == []


@pytest.mark.parametrize("command", ["demo", "mount", "serve", "ls"])
def test_nothing_is_imported_from_the_current_directory(
    lab: Lab, scripted: Scripted, command: str
) -> None:
    for name in ("lazyfs", "trio", "json", "rich", "httpx", "tomllib", "pycdlib", "sitecustomize"):
        (lab.directory / name).mkdir()
        planted = f"open({str(lab.directory / 'imported')!r}, 'w')"
        (lab.directory / name / "__init__.py").write_text(planted)
    url = scripted.url("image.raw")
    if command == "mount":
        with lab.mounted(url) as mounted:
            mounted.image.read_bytes()
    elif command == "serve":
        done = lab.start("serve", "--cache-dir", lab.cache, "--run", "true", url)
        assert done.returncode == 0
    else:
        done = lab.start(*(["demo"] if command == "demo" else ["ls", "--no-cache", url]))
        assert done.returncode == (command != "demo"), done.stderr
    assert not (lab.directory / "imported").exists()


# Odd beginnings


@pytest.mark.parametrize("closed", ["<&- >&- 2>&-", "<&-", ">&-", "2>&-"])
def test_closed_standard_descriptors_harm_no_mount(
    lab: Lab, scripted: Scripted, content: bytes, closed: str
) -> None:
    at, log = lab.mountpoint(), lab.directory / "log"
    words = ["--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    command = shlex.join(map(str, [*LAZYFS, *words]))
    assert run(["sh", "-c", f"{command} {closed}"], env=environment(lab.home)).returncode == 0
    with adopted(at, lab.cache, log) as mounted:
        assert mounted.image.read_bytes() == content
        for standard in range(3):
            assert os.readlink(f"/proc/{mounted.pid}/fd/{standard}") == "/dev/null"
    assert mounted.complaints() == []


def test_commands_work_with_closed_standard_descriptors(lab: Lab) -> None:
    command = shlex.join([*LAZYFS, "config"])
    done = run(["sh", "-c", f"{command} <&- >&- 2>&-"], env=environment(lab.home))
    assert done.returncode == 0


def test_a_starter_that_is_killed_leaves_no_traceback(lab: Lab, scripted: Scripted) -> None:
    """The mount comes about: nobody is there to be told, and nobody is there to unmount it."""
    at, log = lab.mountpoint(), lab.directory / "log"
    asked, release = threading.Event(), threading.Event()

    def behaviour(_: Request) -> None:
        asked.set()
        release.wait(20)

    scripted.behaviour = behaviour
    words = ["--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    starter = subprocess.Popen([*LAZYFS, *words], env=environment(lab.home))
    assert asked.wait(20)
    starter.kill()
    starter.wait()
    release.set()
    eventually(lambda: log.exists() and "is mounted on" in log.read_text(), "it is mounted")
    with adopted(at, lab.cache, log) as mounted:
        assert mounted.image.stat().st_size > 0
    assert mounted.complaints() == []


def test_a_daemon_may_open_as_many_files_as_it_is_allowed_to(lab: Lab, scripted: Scripted) -> None:
    at, log = lab.mountpoint(), lab.directory / "log"
    words = ["--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    command = shlex.join(map(str, [*LAZYFS, *words]))
    limited = f"ulimit -S -n 256; ulimit -H -n 2000; {command}"
    assert run(["sh", "-c", limited], env=environment(lab.home)).returncode == 0
    with adopted(at, lab.cache, log) as mounted:
        limits = Path(f"/proc/{mounted.pid}/limits").read_text()
        assert re.search(r"^Max open files +2000 +2000 ", limits, re.MULTILINE)


# Signals and log files


@pytest.mark.parametrize("name", ["SIGUSR1", "SIGUSR2", "SIGALRM", "SIGVTALRM", "SIGPROF"])
def test_a_stray_signal_kills_no_mount(
    lab: Lab, scripted: Scripted, content: bytes, name: str
) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        mounted.signal(signal.Signals[name])
        assert mounted.image.read_bytes() == content
        assert not mounted.has_ended()


@pytest.mark.parametrize("foreground", [True, False])
def test_hanging_up_ends_a_mount_in_order(lab: Lab, scripted: Scripted, foreground: bool) -> None:
    at, log = lab.mountpoint(), lab.directory / "log"
    words = ["--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    options = ["-f"] if foreground else []
    with subprocess.Popen([*LAZYFS, *options, *words], env=environment(lab.home)) as starter:
        eventually(lambda: is_mounted(at) and log.exists() and log.read_text() != "", "it runs")
        assert foreground or starter.wait(20) == 0
        with adopted(at, lab.cache, log) as mounted:
            mounted.signal(signal.SIGHUP)
            mounted.wait_until_ended()
        assert not is_mounted(at)
        assert starter.wait(20) == 0
    assert "ending on SIGHUP" in log.read_text()


def test_nohup_keeps_a_mount(lab: Lab, scripted: Scripted) -> None:
    at, log = lab.mountpoint(), lab.directory / "log"
    words = ["--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at]
    nohup = ["nohup", *LAZYFS, "-f", *words]
    with subprocess.Popen(nohup, env=environment(lab.home), stderr=subprocess.DEVNULL) as starter:
        eventually(lambda: is_mounted(at) and log.exists() and log.read_text() != "", "it runs")
        with adopted(at, lab.cache, log) as mounted:
            mounted.signal(signal.SIGHUP)
            assert mounted.image.stat().st_size > 0
            assert not mounted.has_ended(0.2)
            mounted.signal(signal.SIGTERM)
            mounted.wait_until_ended()
        assert starter.wait(20) == 0


def test_reload_opens_the_log_file_anew(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        before = mounted.log.rename(mounted.log.with_suffix(".1"))
        assert lab.start("reload", mounted.path).returncode == 0
        eventually(mounted.log.exists, "the log is opened anew")
        mounted.umount()
        assert "is unmounted" in mounted.log.read_text()
        assert "is unmounted" not in before.read_text()

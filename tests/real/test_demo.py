"""``lazyfs demo`` as its users meet it: as root, as anybody else, interrupted, and ill-equipped."""

import contextlib
import http.client
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from lazyfs.cli.tour.server import Traffic, serve
from lazyfs.system.loopdevice import loops_below

from .mounts import COMMAND_LIMIT, environment, need_loop, need_tool
from .waiting import eventually

_DEMO = [sys.executable, "-m", "lazyfs", "demo"]
_NOBODY = 65534
# Where the interpreter lies (a home directory, it may be) need not be open to everybody: this
# capability lets nobody find it, and gives no other right.
_AS_NOBODY = [
    "setpriv",
    f"--reuid={_NOBODY}",
    f"--regid={_NOBODY}",
    "--clear-groups",
    "--inh-caps=+dac_read_search",
    "--ambient-caps=+dac_read_search",
]


@pytest.fixture(autouse=True)
def _need_mksquashfs() -> None:
    need_tool("mksquashfs", "squashfs-tools")


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """Where the demo makes its directory; in the end nothing may be left of it anywhere."""
    place = tmp_path / "scratch"
    place.mkdir()
    place.chmod(0o1777)
    yield place
    assert list(place.iterdir()) == []
    assert str(place) not in Path("/proc/self/mountinfo").read_text()
    eventually(lambda: not loops_below(place), "no loop device is left")
    eventually(lambda: _processes_about(place) == [], "no process is left")


def _processes_about(place: Path) -> list[bytes]:
    """The command lines that name ``place``: a daemon's has its mount point."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            command = entry.read_bytes()
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
        if os.fsencode(place) in command:
            found.append(command)
    return found


def _environment(scratch: Path, **more: str) -> dict[str, str]:
    return environment(scratch, TMPDIR=str(scratch), PYTHONDONTWRITEBYTECODE="1", **more)


def _run(command: Sequence[str], env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env=env,
        capture_output=True,
        text=True,
        encoding="utf-8",
        check=False,
        timeout=COMMAND_LIMIT,
    )


def _check_report(report: str) -> None:
    """One screen; a small part of the image travelled, and it says what the cache holds of it."""
    lines = report.splitlines()
    assert len(lines) <= 24
    assert max(map(len, lines)) <= 80
    assert "all checksums are right" in report
    assert "nothing is left behind" in report
    assert re.search(r"^ +the image has +\d\d\.\d MiB$", report, re.MULTILINE)
    share = re.search(r"travelled +\d+\.\d MiB, (\d+\.\d)% of it", report)
    assert share
    assert 0.5 < float(share[1]) < 33
    requests = re.search(r"in +(\d+) requests, \d+\.\d seconds", report)
    assert requests
    assert 1 < int(requests[1]) < 200
    assert re.search(r"du shows +\d+\.\d MiB in the cache", report)
    assert "lazyfs https://" in lines[-2]
    assert "mount -o loop,ro " in lines[-1]


def test_root_loop_mounts_the_squashfs(scratch: Path) -> None:
    need_loop()
    done = _run(_DEMO, _environment(scratch))
    assert (done.returncode, done.stderr) == (0, "")
    assert "loop-mounted that squashfs" in done.stdout
    assert "\x1b" not in done.stdout
    _check_report(done.stdout)


# A mount namespace of its own: there /dev/fuse can be opened to everybody without opening it on
# the machine. What the demo leaves mounted would end with the namespace, so it is looked for there.
_WITH_OPEN_FUSE = """
set -e
mknod "$1/fuse" c 10 229
chmod 666 "$1/fuse"
mount --bind "$1/fuse" /dev/fuse
shift
"$@"
if grep "$TMPDIR" /proc/self/mountinfo; then exit 99; fi
"""


def test_anybody_else_reads_the_iso_through_the_mount(tmp_path: Path, scratch: Path) -> None:
    if os.geteuid() == 0:
        need_tool("setpriv", "util-linux")
        tmp_path.chmod(0o755)
        apart = ["unshare", "--mount", "sh", "-c", _WITH_OPEN_FUSE, "-", str(tmp_path)]
        command = [*apart, *_AS_NOBODY, *_DEMO]
        _open_the_way(scratch)
    else:
        command = _DEMO
    done = _run(command, _environment(scratch))
    assert (done.returncode, done.stderr) == (0, "")
    assert "loop-mounted" not in done.stdout
    assert re.search(r"found \d+ files in the ISO", done.stdout)
    _check_report(done.stdout)


def _open_the_way(place: Path) -> None:
    """Let everybody pass through pytest's own directories, which are its user's alone."""
    for directory in place.parents:
        if directory.stat().st_mode & 0o001 == 0:
            directory.chmod(directory.stat().st_mode | 0o001)


@pytest.mark.parametrize(
    ("after", "number"),
    [
        ("serving it", signal.SIGINT),
        ("serving it", signal.SIGTERM),
        ("mounted that URL", signal.SIGHUP),
        ("found ", signal.SIGINT),
        ("loop-mounted", signal.SIGINT),
    ],
)
def test_an_interrupted_demo_leaves_nothing_behind(
    scratch: Path, after: str, number: signal.Signals
) -> None:
    need_loop()
    with subprocess.Popen(
        _DEMO,
        env=_environment(scratch),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
    ) as demo:
        assert demo.stdout is not None
        assert any(after in line for line in demo.stdout)
        demo.send_signal(number)
        demo.send_signal(number)  # the clean-up is not to be hurried
        rest, complaint = demo.communicate(timeout=COMMAND_LIMIT)
    assert complaint == ""
    # It may have been at its end already.
    assert demo.returncode in (130, 0 if "left behind" in rest else 130)


def test_a_closed_pipe_leaves_nothing_behind(scratch: Path) -> None:
    need_loop()
    with subprocess.Popen(
        _DEMO, env=_environment(scratch), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as demo:
        assert demo.stdout is not None
        assert any("serving it" in line for line in demo.stdout)
        demo.stdout.close()
        demo.stdout = None
        _, complaint = demo.communicate(timeout=COMMAND_LIMIT)
    assert demo.returncode == 1
    assert "Traceback" not in complaint


def test_a_full_disk_is_told_without_a_traceback(scratch: Path) -> None:
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            _DEMO,
            env=_environment(scratch),
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
            timeout=COMMAND_LIMIT,
        )
    assert done.returncode != 0
    told = done.stderr.splitlines()[0]  # Python itself complains of its stdout after that
    assert re.fullmatch(
        "lazyfs: the demo cannot go on: .*No space left on device; make room .*", told
    )
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("missing", "package"), [("mksquashfs", "squashfs-tools"), ("fusermount3", "fuse3")]
)
def test_a_missing_program_is_named_with_its_package(
    tmp_path: Path, scratch: Path, missing: str, package: str
) -> None:
    only = tmp_path / "bin"
    only.mkdir()
    for name in {"mksquashfs", "fusermount3"} - {missing}:
        (only / name).symlink_to(need_tool(name, package))
    done = _run(_DEMO, {**_environment(scratch), "PATH": str(only)})
    assert done.returncode == 1
    assert done.stdout == ""
    expected = f"lazyfs: {missing} is not installed; install the package {package}\n"
    assert done.stderr == expected


def test_a_terminal_that_knows_no_unicode_gets_plain_text(scratch: Path) -> None:
    done = _run(_DEMO, _environment(scratch, PYTHONIOENCODING="ascii"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.isascii()
    assert "ok made an ISO" in done.stdout


def test_a_narrow_terminal_is_kept_to(scratch: Path) -> None:
    done = _run(_DEMO, _environment(scratch, COLUMNS="48"))
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 48


def test_help_shows_an_example_and_makes_nothing(scratch: Path) -> None:
    done = _run([*_DEMO, "--help"], _environment(scratch))
    assert done.returncode == 0
    assert "example:\n  lazyfs demo" in done.stdout


def test_it_takes_no_arguments(scratch: Path) -> None:
    done = _run([*_DEMO, "more"], _environment(scratch))
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("lazyfs: unrecognized arguments: more")


# Its server


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[http.client.HTTPConnection, Traffic]]:
    """A connection to the demo's server, which has the ten digits as ``/ten``."""
    file = tmp_path / "ten"
    file.write_bytes(b"0123456789")
    with serve(file) as (url, traffic):
        assert url.endswith("/ten")
        connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=COMMAND_LIMIT)
        with contextlib.closing(connection):
            yield connection, traffic


def _ask(
    connection: http.client.HTTPConnection, method: str = "GET", path: str = "/ten", **fields: str
) -> tuple[int, http.client.HTTPMessage, bytes]:
    """One request on the connection; ``If_Range`` in ``fields`` is the header field If-Range."""
    headers = {name.replace("_", "-"): value for name, value in fields.items()}
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers, answer.read()


@pytest.mark.parametrize(
    ("wanted", "status", "content_range", "body"),
    [
        ("bytes=0-0", 206, "bytes 0-0/10", b"0"),
        ("bytes=3-5", 206, "bytes 3-5/10", b"345"),
        ("bytes=7-", 206, "bytes 7-9/10", b"789"),
        ("bytes=8-99", 206, "bytes 8-9/10", b"89"),
        ("bytes=-3", 206, "bytes 7-9/10", b"789"),
        ("bytes=-99", 206, "bytes 0-9/10", b"0123456789"),
        ("bytes=10-", 416, "bytes */10", b""),
        ("bytes=-0", 416, "bytes */10", b""),
        ("bytes=5-3", 200, None, b"0123456789"),
        ("bytes=-", 200, None, b"0123456789"),
        ("bytes=0-1,3-4", 200, None, b"0123456789"),
        ("lines=0-1", 200, None, b"0123456789"),
    ],
)
def test_ranges(
    served: tuple[http.client.HTTPConnection, Traffic],
    wanted: str,
    status: int,
    content_range: str | None,
    body: bytes,
) -> None:
    connection, traffic = served
    answer = _ask(connection, Range=wanted)
    assert (answer[0], answer[1]["Content-Range"], answer[2]) == (status, content_range, body)
    assert answer[1]["Content-Length"] == str(len(body))
    assert (traffic.requests, traffic.sent) == (1, len(body))


def test_validators_and_conditions(served: tuple[http.client.HTTPConnection, Traffic]) -> None:
    connection, _ = served
    _, headers, _ = _ask(connection)
    etag, date = headers["ETag"], headers["Last-Modified"]
    assert re.fullmatch('"[^"]+"', etag)
    old = "Thu, 01 Jan 1970 00:00:00 GMT"
    first = {"Range": "bytes=0-0"}
    assert _ask(connection, If_None_Match=f'"x", W/{etag}')[0] == 304
    assert _ask(connection, If_None_Match='"x"', If_Modified_Since=date)[0] == 200
    assert _ask(connection, If_Modified_Since=date)[0] == 304
    assert _ask(connection, If_Modified_Since=old)[0] == 200
    assert _ask(connection, If_Match='"x"')[0] == 412
    assert _ask(connection, If_Match=etag, **first)[0] == 206
    assert _ask(connection, If_Match=f"W/{etag}")[0] == 412
    assert _ask(connection, If_Unmodified_Since=old)[0] == 412
    assert _ask(connection, If_Unmodified_Since=date, **first)[0] == 206
    assert _ask(connection, If_Range=etag, **first)[0] == 206
    assert _ask(connection, If_Range=date, **first)[0] == 206
    assert _ask(connection, If_Range='"x"', **first)[0] == 200


def test_head_and_other_paths(served: tuple[http.client.HTTPConnection, Traffic]) -> None:
    connection, traffic = served
    status, headers, body = _ask(connection, "HEAD", Range="bytes=0-0")
    assert (status, headers["Content-Length"], body) == (200, "10", b"")
    assert _ask(connection, path="/else")[0] == 404
    assert (traffic.requests, traffic.sent) == (2, 0)

"""What the shell sees: exit codes, one line for each error, and where the log goes."""

import json
import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from .images import MIB, Images
from .mounts import (
    IS_ROOT,
    LAZYFS,
    Lab,
    adopted,
    environment,
    is_mounted,
    read,
    run,
    same_content,
)
from .servers import Answer, Nginx, Scripted, free_port
from .waiting import eventually


def complaint(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a failed command wrote to stderr."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.startswith("lazyfs: ")
    assert done.stderr.endswith("\n")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


def test_the_image_is_readable_as_soon_as_the_command_returns(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    at = lab.mountpoint()
    log = lab.directory / "log"
    done = lab.start("--cache-dir", lab.cache, "--log-file", log, scripted.url("image.raw"), at)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with adopted(at, lab.cache, log) as mounted:
        assert mounted.image.read_bytes() == content


def test_relative_paths_mean_the_directory_of_the_caller(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    at = lab.mountpoint()
    words: list[str | Path] = [
        "--cache-dir",
        "here",
        "--log-file",
        "the.log",
        scripted.url("image.raw"),
        at.name,
    ]
    assert lab.start(*words).returncode == 0
    with adopted(at, lab.directory / "here", lab.directory / "the.log") as mounted:
        assert mounted.image.read_bytes() == content
        assert mounted.cache.is_dir()
        assert "is mounted on" in mounted.messages()


def test_the_cache_is_where_xdg_says(lab: Lab, scripted: Scripted) -> None:
    env = environment(lab.home, XDG_CACHE_HOME=str(lab.directory / "xdg"))
    at = lab.mountpoint()
    log = lab.directory / "log"
    assert lab.start("--log-file", log, scripted.url("image.raw"), at, env=env).returncode == 0
    with adopted(at, lab.directory / "xdg/lazyfs", log) as mounted:
        read(mounted.image, 0, 10)
        assert list(mounted.cache.glob("image.raw-*/meta.json"))
    assert os.listdir(lab.home) == []


# Errors before the image is readable: exit code 1


def test_nobody_listens(lab: Lab) -> None:
    url = f"http://127.0.0.1:{free_port()}/image.raw"
    said = complaint(lab.start("--cache-dir", lab.cache, url, lab.mountpoint()), 1)
    assert url in said
    assert "cannot connect to 127.0.0.1" in said
    assert "check the network and the URL" in said


def test_the_host_is_unknown(lab: Lab) -> None:
    said = complaint(lab.start("--no-cache", "http://host.invalid/x.iso", lab.mountpoint()), 1)
    assert "host.invalid" in said


REFUSALS = {
    "401": (Answer(401), "wants a login", "--netrc"),
    "403": (Answer(403), "access is forbidden", "check URL and login"),
    "404": (Answer(404), "no such file on the server", "check the URL"),
    "410": (Answer(410), "no such file on the server", "check the URL"),
    "416": (Answer(416, {"Content-Range": "bytes */0"}), "is empty", "check the URL"),
    "429": (Answer(429, {"Retry-After": "7"}), "status 429", "try again later"),
    "503": (Answer(503), "status 503", "try again later"),
    "no ranges": (Answer(200, {}, b"x" * 1000), "does not support range requests", "download"),
    "empty": (Answer(200), "is empty", "check the URL"),
    "no Content-Range": (Answer(206, {}, b"x"), "does not say which part", ""),
    "bad Content-Range": (
        Answer(206, {"Content-Range": "bytes 5-5/100"}, b"x"), "another range", ""),
    "no total": (Answer(206, {"Content-Range": "bytes 0-0/*"}, b"x"), "does not say", ""),
    "gzip": (
        Answer(206, {"Content-Range": "bytes 0-0/100", "Content-Encoding": "gzip"}, b"x"),
        "content coding 'gzip'", "switch compression off"),
    "multipart": (
        Answer(206, {"Content-Type": "multipart/byteranges; boundary=x"}, b"x"), "multipart", ""),
    "redirect to nowhere": (Answer(302), "redirects without saying where to", ""),
    "redirect to a file": (
        Answer(302, {"Location": "file:///etc/passwd"}), "redirects to something", ""),
    "redirect in a circle": (Answer(302, {"Location": "/image.raw"}), "redirects", "check the URL"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_answers_that_no_image_can_come_of(lab: Lab, scripted: Scripted, case: str) -> None:
    answer, cause, cure = REFUSALS[case]
    scripted.behaviour = lambda _: answer
    at = lab.mountpoint()
    url = scripted.url("image.raw")
    said = complaint(lab.start("--cache-dir", lab.cache, url, at), 1)
    assert url in said
    assert cause in said
    assert cure in said
    assert not is_mounted(at)


def test_what_is_asked_for_is_one_range_as_it_is(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        read(mounted.image, MIB, 10)
    for request in scripted.requests:
        assert request.span is not None
        assert request.headers["accept-encoding"] == "identity"
        assert request.headers["user-agent"].startswith("lazyfs/")
        assert "authorization" not in request.headers


def test_the_mount_point_is_missing(lab: Lab, scripted: Scripted) -> None:
    at = lab.directory / "nothing"
    said = complaint(lab.start(scripted.url("image.raw"), at), 1)
    assert f"{at} does not exist; mkdir {at}" in said
    assert scripted.requests == []


def test_one_of_several_urls_is_wrong(lab: Lab, scripted: Scripted) -> None:
    at = lab.mountpoint()
    urls = [scripted.url("image.raw"), scripted.url("missing.raw")]
    said = complaint(lab.start("--cache-dir", lab.cache, *urls, at), 1)
    assert "missing.raw: no such file" in said
    assert not is_mounted(at)


def test_the_cache_directory_cannot_be_made(lab: Lab, scripted: Scripted) -> None:
    (lab.directory / "file").touch()
    words: list[str | Path] = [
        "--cache-dir",
        lab.directory / "file",
        scripted.url("image.raw"),
        lab.mountpoint(),
    ]
    said = complaint(lab.start(*words), 1)
    assert "the cache directory" in said
    assert "--no-cache" in said


def test_the_log_file_cannot_be_made(lab: Lab, scripted: Scripted) -> None:
    (lab.directory / "file").touch()
    at = lab.mountpoint()
    words: list[str | Path] = [
        "--no-cache",
        "--log-file",
        lab.directory / "file/log",
        scripted.url("image.raw"),
        at,
    ]
    said = complaint(lab.start(*words), 1)
    assert "file/log" in said
    assert not is_mounted(at)


# Wrong usage: exit code 2

WRONG = {
    "no mount point": (["http://host/x"], "a URL and a mount point are needed"),
    "no URL": (["word", "other"], "neither a URL nor a command"),
    "unknown scheme": (["gopher://host/x", "MNT"], "not a kind of URL"),
    "unknown option": (["--nonsense", "http://host/x", "MNT"], "--nonsense"),
    "unknown mount option": (["-o", "nonsense", "http://host/x", "MNT"], "nonsense"),
    "block size": (["--block-size", "5000", "http://host/x", "MNT"], "power of two"),
    "connections": (["--connections", "0", "http://host/x", "MNT"], "from 1 to 64"),
    "timeout": (["--timeout", "soon", "http://host/x", "MNT"], "not a duration"),
    "header": (["--header", "nonsense", "http://host/x", "MNT"], "'Name: value'"),
    "bitmap alone": (["--bitmap", "b", "http://host/x", "MNT"], "go together"),
    "two of a name": (["http://host/x", "http://other/x", "MNT"], "two images would be called x"),
    "slash in a name": (["--name", "a/b", "http://host/x", "MNT"], "cannot be a file name"),
    "two URLs on a file": (["http://host/x", "http://host/y", "FILE"], "one image only"),
}


@pytest.mark.parametrize("case", WRONG)
def test_wrong_usage(lab: Lab, case: str) -> None:
    arguments, cause = WRONG[case]
    (lab.directory / "FILE").touch()
    (lab.directory / "MNT").mkdir()
    assert cause in complaint(lab.start(*arguments), 2)


# Logs


def test_the_log_in_json(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(
        "--log-format", "json", "-v", scripted.url("image.raw"), troubled=True
    ) as mounted:
        del scripted.files["/image.raw"]
        with pytest.raises(OSError, match="Input/output error"):
            mounted.image.read_bytes()
    entries = [json.loads(line) for line in mounted.messages().splitlines()]
    for entry in entries:
        assert set(entry) <= {"time", "level", "message", "error"}
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00", entry["time"])
    levels = {entry["level"] for entry in entries}
    assert {"info", "error"} <= levels <= {"debug", "info", "warning", "error"}
    assert any("status 404" in entry["message"] for entry in entries)


def test_a_quiet_log(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted("-q", scripted.url("image.raw")) as mounted:
        read(mounted.image, 0, 10)
    assert mounted.messages() == ""


def test_one_failure_is_one_line(lab: Lab, scripted: Scripted) -> None:
    """However often it is tried again."""
    with lab.mounted("--timeout", "3", scripted.url("image.raw"), troubled=True) as mounted:
        asked = len(scripted.requests)
        scripted.behaviour = lambda _: Answer(503)
        with pytest.raises(OSError, match="Input/output error"):
            mounted.image.read_bytes()
        assert len(scripted.requests) > asked + 3
        assert len(mounted.complaints()) <= 2


def test_an_error_in_the_foreground(lab: Lab, scripted: Scripted) -> None:
    said = complaint(lab.start("-f", "--no-cache", scripted.url("no.raw"), lab.mountpoint()), 1)
    assert "no such file on the server" in said


def test_foreground_logs_to_stderr(lab: Lab, scripted: Scripted, content: bytes) -> None:
    at = lab.mountpoint()
    command = [*LAZYFS, "-f", "--no-cache", scripted.url("image.raw"), str(at)]
    with subprocess.Popen(
        command, env=environment(lab.home), text=True, stderr=subprocess.PIPE
    ) as process:
        try:
            eventually(lambda: is_mounted(at), "it is mounted")
            assert (at / "image.raw").read_bytes() == content
            process.terminate()
            _, log = process.communicate(timeout=20)
        finally:
            process.kill()
    assert process.returncode == 0
    lines = log.splitlines()
    assert lines[0] == f"lazyfs: {scripted.url('image.raw')} is mounted on {at}"
    assert all(line.startswith("lazyfs: ") for line in lines)


# mount(8)


# It gives its helpers no PATH: the shell's own is what counts, and /usr/local/bin is on that.


@pytest.fixture
def installed(lab: Lab) -> list[str | Path]:
    """The start of a command that sees lazyfs in /usr/local/bin, in a mount table of its own."""
    if not IS_ROOT:
        pytest.skip("mount(8) needs root")
    programs = lab.directory / "bin"
    programs.mkdir()
    (programs / "lazyfs").write_text(f'#!/bin/sh\nexec {shlex.join(LAZYFS)} "$@"\n')
    (programs / "lazyfs").chmod(0o755)
    script = 'mount --bind "$1" /usr/local/bin && shift && eval "$*"'
    return ["unshare", "--mount", "sh", "-ec", script, "sh", programs]


def test_mount_helper(
    lab: Lab, images: Images, nginx: Nginx, installed: list[str | Path], public_directory: Path
) -> None:
    """``mount -t fuse.lazyfs URL DIRECTORY -o OPTIONS``."""
    image = images.erofs()
    at = public_directory / "mnt"
    at.mkdir()
    options = f"ro,allow_other,cache_dir={lab.cache},log_file={lab.directory}/log,block_size=128K"
    done = run(
        [
            *installed,
            f"mount -t fuse.lazyfs {nginx.url(image.name)} {at} -o {options};",
            f"cmp {at}/{image.name} {image};",
            f"setpriv --reuid 65534 --clear-groups head -c 1 {at}/{image.name} > /dev/null;",
            f"grep ' {at} fuse.lazyfs ro,.*allow_other' /proc/self/mounts;",
            f"umount {at}",
        ]
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert nginx.url(image.name) in done.stdout
    (meta,) = lab.cache.glob("*/meta.json")
    assert json.loads(meta.read_text())["block_size"] == 128 << 10


def test_mount_helper_fails_with_the_reason(
    lab: Lab, scripted: Scripted, installed: list[str | Path]
) -> None:
    at = lab.mountpoint()
    done = run([*installed, f"mount -t fuse.lazyfs {scripted.url('no.raw')} {at} -o ro"])
    assert done.returncode != 0
    assert "no such file on the server" in done.stderr


def test_mount_with_the_path_of_lazyfs(lab: Lab, images: Images, nginx: Nginx) -> None:
    """``mount -t fuse PROGRAM#URL DIRECTORY``, for where it is not installed for all."""
    if not IS_ROOT:
        pytest.skip("mount(8) needs root")
    if len(LAZYFS) > 1:
        pytest.skip("lazyfs is not installed as a program")
    image = images.erofs()
    at = lab.mountpoint()
    log = lab.directory / "log"
    device = f"{LAZYFS[0]}#{nginx.url(image.name)}"
    options = f"ro,cache_dir={lab.cache},log_file={log}"
    done = run(["mount", "-t", "fuse", device, at, "-o", options])
    assert (done.returncode, done.stderr) == (0, "")
    with adopted(at, lab.cache, log) as mounted:
        assert same_content(mounted.image, image)


def test_version_and_help_need_nothing(lab: Lab) -> None:
    for option in ("--version", "--help"):
        done = lab.start(option)
        assert (done.returncode, done.stderr) == (0, "")
        assert "lazyfs" in done.stdout

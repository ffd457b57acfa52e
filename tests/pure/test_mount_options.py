"""What is typed, and what it means. (The parsing is pure; the module is cli/mount.py.)"""

import logging
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.mount import parse
from lazyfs.cli.servers import USER_AGENT
from lazyfs.core.errors import UsageError

URL = "https://host/a.iso"
SECRET = "Hunter2Hunter2"


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFS_CONFIG", "")


def of(options: Any, path: str) -> Any:
    """The value at a dotted path, like ``http.connections``."""
    for name in path.split("."):
        options = options.images[0].server if name == "server" else getattr(options, name)
    return options


def test_the_defaults(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    options = parse([URL, "/m"])
    assert [(i.url, i.name) for i in options.images] == [(URL, "a.iso")]
    assert options.mountpoint == Path("/m")
    assert options.cache.directory == tmp_path / "lazyfs"
    assert (options.cache.files, options.cache.memory_only) == (None, False)
    assert options.cache.block_size is None
    assert (options.timeout, options.foreground, options.fuse) == (60.0, False, ())
    assert (options.images[0].server.connections, options.images[0].server.user_agent) == (
        4,
        USER_AGENT,
    )
    assert not options.images[0].server.insecure
    assert not options.images[0].server.insecure_redirects
    assert (options.log.level, options.log.file, options.log.json) == (logging.INFO, None, False)


VALUES = [
    ("--cache-dir=/c", "cache.directory", Path("/c")),
    ("--no-cache", "cache.memory_only", True),
    ("--block-size=128K", "cache.block_size", 128 << 10),
    ("--connections=1", "server.connections", 1),
    ("--connections=64", "server.connections", 64),
    ("--timeout=0", "timeout", 0.0),
    ("--timeout=2m", "timeout", 120.0),
    ("--timeout=2", "server.stall", 2.0 / 3),
    ("--timeout=0", "server.stall", 15.0),
    ("--header=X-A: b", "server.headers", (("X-A", "b"),)),
    ("--header=X-A:b:c", "server.headers", (("X-A", "b:c"),)),
    ("--header=X-A:", "server.headers", (("X-A", ""),)),
    ("--netrc", "server.netrc", True),
    ("--user-agent=me/1", "server.user_agent", "me/1"),
    ("--proxy=http://p:1", "server.proxy", "http://p:1"),
    ("--cacert=/c.pem", "server.cacert", Path("/c.pem")),
    ("--insecure", "server.insecure", True),
    ("--insecure-redirects", "server.insecure_redirects", True),
    ("--allow-other", "fuse", ("allow_other",)),
    ("--allow-root", "fuse", ("allow_root",)),
    ("--verbose", "log.level", logging.DEBUG),
    ("--quiet", "log.level", logging.ERROR),
    ("--log-file=/l", "log.file", Path("/l")),
    ("--log-format=json", "log.json", True),
    ("--foreground", "foreground", True),
    ("--name=x.img", "images", None),
]


@pytest.mark.parametrize(("option", "path", "value"), VALUES)
def test_every_option_in_every_spelling(option: str, path: str, value: Any) -> None:
    name, equals, rest = option.removeprefix("--").partition("=")
    as_mount_option = name.replace("-", "_") + equals + rest
    spellings = [
        [option, URL, "/m"],
        [URL, option, "/m"],
        [URL, "/m", *option.split("=", 1)],
        ["-o", as_mount_option, URL, "/m"],
        [URL, "/m", "-o", as_mount_option],
        [URL, "/m", "-o" + as_mount_option],
        [URL, "/m", "-o", f"ro,{as_mount_option},nofail"],
    ]
    for arguments in spellings:
        options = parse(arguments)
        if path == "images":
            assert options.images[0].name == "x.img"
        else:
            assert of(options, path) == value
        assert options.images[0].url == URL
        assert options.mountpoint == Path("/m")


@pytest.mark.parametrize(
    ("given", "passed_on"),
    [
        ("ro,allow_other", ("allow_other",)),
        ("allow_root,noatime", ("allow_root", "noatime")),
        ("nosuid,nodev,noexec", ("nodev", "noexec", "nosuid")),
        ("allow_other,allow_other", ("allow_other",)),
        ("auto_unmount", ("auto_unmount",)),
        ("rw,defaults,noauto,user,_netdev,nofail,relatime", ()),
        ("x-systemd.requires=net.target,x-gvfs-hide,comment=hello,X-mount.mkdir", ()),
        ("", ()),
        (",,ro,,", ()),
    ],
)
def test_mount_options_are_passed_on_or_ignored(given: str, passed_on: tuple[str, ...]) -> None:
    assert parse([URL, "/m", "-o", given]).fuse == passed_on


@pytest.mark.parametrize(
    "arguments", [["-fo", "allow_other"], ["-vo", "allow_other"], ["-foallow_other"]]
)
def test_mount_options_in_a_cluster_of_letters_count(arguments: list[str]) -> None:
    assert parse([*arguments, URL, "/m"]).fuse == ("allow_other",)


@pytest.mark.parametrize(
    ("given", "value"),
    [
        (r"header=X-A: b\,c", "b,c"),
        (r"header=X-A: b\,c\,d,ro", "b,c,d"),
        (r"ro,header=X-A: \,b", ",b"),
        ("header=X-A: a=b=c", "a=b=c"),
        ("header=X-A: with_underscore", "with_underscore"),
        (r"header=X-A: b\\,ro", "b\\"),  # an escaped backslash, then a comma, as libfuse has it
    ],
)
def test_escapes_in_mount_options(given: str, value: str) -> None:
    assert parse([URL, "/m", "-o", given]).images[0].server.headers == (("X-A", value),)


def test_flags_of_mount_are_taken_as_they_come() -> None:
    options = parse([URL, "/m", "-s", "-v", "-n", "-o", "ro,timeout=5"])
    assert (options.timeout, options.log.level) == (5.0, logging.DEBUG)


def test_headers_repeat_in_order() -> None:
    options = parse([URL, "/m", "--header", "A: 1", "-o", "header=B: 2", "--header", "A: 3"])
    assert options.images[0].server.headers == (("A", "1"), ("B", "2"), ("A", "3"))


def test_two_named_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    options = parse([URL, "/m", "--bitmap", "b", "--cache", "/d/c"])
    assert options.cache.files == (tmp_path / "b", Path("/d/c"))


def test_relative_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to("real")
    options = parse([URL, "link", "--cache-dir", "c", "--log-file", "l"])
    assert options.mountpoint == tmp_path / "real"
    assert options.cache.directory == tmp_path / "c"
    assert options.log.file == tmp_path / "l"


def test_a_relative_cacert_survives_going_to_the_background(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert parse([URL, "/m", "--cacert", "c.pem"]).images[0].server.cacert == tmp_path / "c.pem"


@pytest.mark.parametrize(
    ("wanted", "names", "called"),
    [
        (["https://h/a", "https://h/b"], [], ["a", "b"]),
        (["https://h/a", "https://h/b"], ["x"], ["x", "b"]),
        (["https://h/a", "https://other/a"], ["x", "y"], ["x", "y"]),
        (["https://h/a", "https://other/a"], ["x"], ["x", "a"]),
        (["https://h/a"], ["b c.iso"], ["b c.iso"]),
        (["https://h/a"], ["n" * 255], ["n" * 255]),
        (["https://h/"], [], ["h"]),
    ],
)
def test_names(wanted: list[str], names: list[str], called: list[str]) -> None:
    options = parse([*wanted, "/m", *(f"--name={name}" for name in names)])
    assert [image.url for image in options.images] == wanted
    assert [image.name for image in options.images] == called


WRONG = [
    [],
    [URL],
    ["/m"],
    ["/a", "/m"],
    [URL, "/m", "/n"],
    ["host/a.iso", "/m"],
    ["ftp://host/a.iso", "/m"],
    ["https://", "/m"],
    ["https://host/a b", "/m"],
    [URL, "https://host/b.iso"],  # the mount point was forgotten
    [URL, "/m", "--nonsense"],
    [URL, "/m", "--cache"],
    [URL, "/m", "--cache", "c"],
    [URL, "/m", "--bitmap", "b"],
    [URL, "https://host/b.iso", "/m", "--bitmap", "b", "--cache", "c"],
    [URL, "/m", "--bitmap", "same", "--cache", "same"],
    [URL, "/m", "--block-size", "5K"],
    [URL, "/m", "--block-size", "2M"],
    [URL, "/m", "--block-size", "big"],
    [URL, "/m", "--connections", "0"],
    [URL, "/m", "--connections", "65"],
    [URL, "/m", "--connections", "-1"],
    [URL, "/m", "--connections", "four"],
    [URL, "/m", "--connections", "\u00b2"],
    [URL, "/m", "--timeout", "soon"],
    [URL, "/m", "--timeout=-1"],
    [URL, "/m", "--header", "no colon"],
    [URL, "/m", "--header", "bad name: x"],
    [URL, "/m", "--header", ": x"],
    [URL, "/m", "--header", "X: a\nY: b"],
    [URL, "/m", "--header", "X: a\rb"],
    [URL, "/m", "--header", "X: a\0b"],
    [URL, "/m", "--user-agent", "a\nb: c"],
    [URL, "/m", "--log-format", "xml"],
    [URL, "/m", "--name="],
    [URL, "/m", "--name=."],
    [URL, "/m", "--name=.."],
    [URL, "/m", "--name=a/b"],
    [URL, "/m", "--name=" + "n" * 256],
    [URL, "/m", "--name=a", "--name=b"],
    [URL, URL, "/m"],
    [URL, "https://host/b.iso", "/m", "--name=b.iso"],
    [URL, "/m", "-o", "nonsense"],
    [URL, "/m", "-o", "nonsense=1"],
    [URL, "/m", "-o", "no_cache=1"],
    [URL, "/m", "-o", "cache_dir"],
    ["-o", "cache_dir", URL, "https://host/b.iso", "/m"],  # must not swallow the URL
    [URL, "/m", "-o"],
    [URL, "/m", "--conn", "4"],  # no abbreviations
]


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_wrong_usage_is_one_error_with_a_cure(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(arguments)
    assert caught.value.exit_code == 2
    assert caught.value.message
    assert caught.value.cure
    assert "\n" not in str(caught.value)
    assert "invalid convert value" not in str(caught.value)  # argparse, talking to itself
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    "arguments",
    [
        [f"https://user:{SECRET}@host:x/a", "/m"],
        [f"https://user:{SECRET}/x@host/a", "/m"],
        [f"ftp://user:{SECRET}@host/a", "/m"],
        [f"user:{SECRET}@host/a", "/m"],
        [URL, f"https://user:{SECRET}@host/b"],
        [f"https://user:{SECRET}@host/a"],
        [f"https://user:{SECRET}@host/a", f"https://{SECRET}@host/a", "/m"],
        [URL, "/m", "--header", SECRET],
        [URL, "/m", "--header", f"bad name: {SECRET}"],
        [URL, "/m", "-o", f"hedaer=Authorization: Bearer {SECRET}"],
        ["-o", f"hedaer=Authorization: Bearer {SECRET}", URL, "/m"],
        [URL, "/m", "-o", f"header=A: b, {SECRET}"],  # the comma should have been escaped
        [URL, "/m", f"--password={SECRET}"],
    ],
    ids=lambda arguments: " ".join(arguments).replace(SECRET, "SECRET"),
)
def test_no_secret_is_in_a_message(arguments: list[str]) -> None:
    try:
        said = str(parse(arguments).mountpoint)
    except UsageError as error:
        said = str(error)
    assert SECRET not in said


@pytest.mark.parametrize(("flag", "says"), [("--version", "lazyfs "), ("--help", "MOUNTPOINT")])
def test_version_and_help(flag: str, says: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([flag])
    assert caught.value.code == 0
    assert says in capsys.readouterr().out


@pytest.mark.parametrize("name", ["Range", "accept-encoding", "Connection", "If-Range"])
def test_header_fields_that_belong_to_lazyfs_are_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"--header cannot set {name}: it belongs to lazyfs"):
        parse(["--header", f"{name}: x", "https://host/a.iso", "/m"])


def test_a_host_of_ones_own_may_be_named() -> None:
    options = parse(["--header", "Host: other", "https://host/a.iso", "/m"])
    assert options.images[0].server.headers == (("Host", "other"),)

"""What configuration files say, and what the command line says otherwise."""

import contextlib
import logging
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.cli import config as command
from lazyfs.cli import configfile
from lazyfs.cli.configured import settable
from lazyfs.cli.ls import _parser as ls_parser
from lazyfs.cli.main import main
from lazyfs.cli.mount import parse
from lazyfs.core.errors import UsageError
from lazyfs.core.options import EACH_REQUEST, MountOptions

URL = "https://images.example/a.iso"
OTHER = "https://other.example/b.iso"
SECRET = "hunter2-hunter2"


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Path]:
    """Puts a text into the user's file; the system's is empty."""
    monkeypatch.delenv(configfile.INSTEAD, raising=False)
    monkeypatch.setattr(configfile, "SYSTEM", tmp_path / "system")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "lazyfs").mkdir()

    def put(text: str) -> Path:
        file = tmp_path / "lazyfs/config"
        file.write_text(text)
        return file

    return put


def mount(*words: str) -> MountOptions:
    return parse([URL, OTHER, "/m", *words])


def test_what_is_not_said_is_looked_up(write: Callable[[str], Path]) -> None:
    write('cache-size = "1G"\ntimeout = 5\nnetrc = true\nallow-other = true\n')
    options = mount()
    assert (options.cache.limit, options.timeout) == (1 << 30, 5.0)
    assert options.images[0].server.netrc
    assert options.fuse == ("allow_other",)
    said = mount("--cache-size", "2G", "--timeout", "60")
    assert (said.cache.limit, said.timeout) == (2 << 30, 60.0)


def test_what_is_counted_is_true_in_a_file(write: Callable[[str], Path]) -> None:
    assert mount().log.level == logging.INFO
    assert mount("-vv").log.level == EACH_REQUEST
    write("verbose = true")
    assert mount().log.level == logging.DEBUG
    assert mount("-vv").log.level == EACH_REQUEST


def test_the_users_file_goes_before_the_systems(
    write: Callable[[str], Path], tmp_path: Path
) -> None:
    (tmp_path / "system").write_text('timeout = 7\nconnections = 9\n[host."a"]\nnetrc = true')
    write("timeout = 8")
    assert (mount().timeout, mount().images[0].server.connections) == (8.0, 9)
    assert configfile.load(configfile.files()).hosts["a"]["netrc"].file == tmp_path / "system"


def test_a_host_has_a_section_of_its_own(write: Callable[[str], Path]) -> None:
    write(
        'connections = 2\nheader = ["A: general", "B: general"]\n'
        '[host."*.example"]\nconnections = 3\nproxy = "http://p:1"\n'
        '[host."Images.example"]\nconnections = 4\nheader = ["a: own"]\n'
    )
    first, second = (image.server for image in mount("--header", "C: said").images)
    assert (first.connections, first.proxy) == (4, "http://p:1")
    assert first.headers == (("B", "general"), ("a", "own"), ("C", "said"))
    assert (second.connections, second.proxy) == (3, "http://p:1")
    assert second.headers == (("A", "general"), ("B", "general"), ("C", "said"))
    assert [image.server.connections for image in mount("--connections=5").images] == [5, 5]
    assert mount("--header", "A: said").images[0].server.headers[-1] == ("A", "said")


@pytest.mark.parametrize(
    ("text", "words", "what"),
    [
        ('rate = "1M/s"', [], "rate"),
        ('cache-size = "1G"', ["--no-cache"], "cache.limit"),
        ('cache-size = "1G"', ["--bitmap=/b", "--cache=/c"], "cache.limit"),
    ],
)
def test_what_does_not_fit_what_is_said_is_left_out(
    write: Callable[[str], Path], text: str, words: list[str], what: str
) -> None:
    write(text)
    options: object = parse([URL, "/m", *words])
    for name in what.split("."):
        options = getattr(options, name)
    assert options is None
    write("fill = true")
    assert parse([URL, "/m", "--no-cache"]).fill is False


@pytest.mark.parametrize("where", ["", '[host."a"]\n'])
@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("connectoins = 4", "connectoins is no option; did you mean connections"),
        ('record = "x"', "record is"),
        ("netrc = 1", "netrc is not true or false"),
        ('header = "A: b"', "header is not a list"),
        (f'header = ["{SECRET}"]', "header: a --header is no header field"),
        ("connections = 0", "connections: '0' connections cannot be used"),
        ("connections = [1]", "connections is not a text"),
        ("proxy = 1979-05-27", "proxy is not a text"),
        (f'proxy = "{SECRET}', "is not TOML"),
    ],
)
def test_what_cannot_be_used_is_said_with_its_file(
    write: Callable[[str], Path], where: str, text: str, complaint: str
) -> None:
    file = write(where + text)
    with pytest.raises(UsageError, match=complaint) as caught:
        mount()
    assert str(caught.value).startswith(str(file))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ('on-change = "ignore"', "on-change has no such value; give refetch or fail"),
        ("host = 3", '"host" is no option'),
        ("host.a = 3", '"host.a" is no section'),
        ("[hosts]", "there is no section 'hosts'"),
        ('[host."a"]\ntimeout = 3', "timeout is not for a host alone"),
        ('[host."a"]\nfill = true', "fill is not for a host alone"),
    ],
)
def test_what_is_in_the_wrong_place(
    write: Callable[[str], Path], text: str, complaint: str
) -> None:
    write(text)
    with pytest.raises(UsageError, match=complaint):
        mount()


def test_another_file_can_be_named(
    write: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("timeout = 7")
    (tmp_path / "else").write_text("connections = 9")
    monkeypatch.setenv(configfile.INSTEAD, str(tmp_path / "else"))
    assert (mount().timeout, mount().images[0].server.connections) == (60.0, 9)
    monkeypatch.setenv(configfile.INSTEAD, "")
    assert (mount().timeout, mount().images[0].server.connections) == (60.0, 4)
    monkeypatch.setenv(configfile.INSTEAD, str(tmp_path))
    with pytest.raises(UsageError, match="cannot be read: Is a directory"):
        mount()


def test_a_command_leaves_alone_what_it_does_not_know(write: Callable[[str], Path]) -> None:
    from lazyfs.cli.common import stack_options
    from lazyfs.cli.configured import parse as parse_configured

    write('fill = true\ncache-size = "1G"')
    given = parse_configured(ls_parser(), [URL])
    assert stack_options(given, URL).cache.limit == 1 << 30


def test_it_is_shown_together_without_secrets(
    write: Callable[[str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(
        f'header = ["A: {SECRET}", "@/etc/token"]\nproxy = "http://u:{SECRET}@p:1"\n'
        "[host.a]\nnetrc = true\n"
    )
    assert main(["config"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith(f"# {configfile.SYSTEM} does not exist\n# {file}\n")
    assert 'header = ["A: ...", "@/etc/token"]\nproxy = "http://' in shown
    assert shown.endswith(f'\n[host."a"]\n# {file}\nnetrc = true\n')
    assert SECRET not in shown


def test_the_example_of_its_help_can_be_used(write: Callable[[str], Path]) -> None:
    _, _, example = command._EXAMPLE.partition("\n")
    write(example)
    assert mount().cache.limit == 20 << 30


def test_the_options_of_a_run_and_of_a_host() -> None:
    general, by_host = settable()
    assert {"cache-dir", "timeout", "fill", "verbose", "header"} <= general.keys()
    assert not {"record", "foreground", "help", "cache", "profile"} & general.keys()
    assert {"header", "header-command", "netrc", "proxy", "cacert", "connections"} <= by_host.keys()
    assert not {"timeout", "fill"} & by_host.keys()


@given(text=st.text(), section=st.text(max_size=10))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_stands_in_a_file_is_used_or_refused(
    write: Callable[[str], Path], text: str, section: str
) -> None:
    for content in (text, f"{section} = {text!r}", f"[host.{section!r}]\n{text}"):
        write(content.encode(errors="replace").decode())
        with contextlib.suppress(UsageError):
            mount()


# Files that somebody else can have written


def refusal(path: Path, why: str) -> str:
    return f"the configuration {path} cannot be trusted: it {why}"


@pytest.mark.parametrize("mode", [0o666, 0o664, 0o646])
def test_a_file_that_others_may_write_to_is_refused(
    write: Callable[[str], Path], mode: int
) -> None:
    file = write("timeout = 5\n")
    file.chmod(mode)
    with pytest.raises(UsageError) as caught:
        mount()
    assert caught.value.message == refusal(file, "can be written to by others")
    assert caught.value.cure == (
        "make it your own (chown, chmod go-w), or name another with LAZYFS_CONFIG"
    )
    file.chmod(0o644)
    assert mount().timeout == 5


@pytest.mark.skipif(os.geteuid() != 0, reason="other owners need root")
def test_a_file_of_somebody_else_is_refused(write: Callable[[str], Path]) -> None:
    file = write('header-command = "touch /tmp/owned"\n')
    os.chown(file, 54321, 54321)
    with pytest.raises(UsageError) as caught:
        mount()
    assert caught.value.message == refusal(file, "belongs to another user (uid 54321)")


@pytest.mark.parametrize("kind", ["fifo", "device", "endless"])
def test_what_is_no_regular_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    file = tmp_path / "config"
    if kind == "fifo":
        os.mkfifo(file)
    file = {"fifo": file, "device": Path("/dev/null"), "endless": Path("/dev/zero")}[kind]
    monkeypatch.setenv("LAZYFS_CONFIG", str(file))
    with pytest.raises(UsageError) as caught:
        mount()
    assert caught.value.message == f"the configuration {file} is no regular file"
    assert caught.value.cure == "name another with LAZYFS_CONFIG"


def test_a_file_that_is_too_long_is_refused(write: Callable[[str], Path]) -> None:
    file = write("#" * (1 << 20))
    mount()
    file.write_text("#" * (1 << 20) + "\n")
    with pytest.raises(UsageError, match="is too long for a configuration") as caught:
        mount()
    assert caught.value.cure == "name another with LAZYFS_CONFIG"


def test_a_link_to_ones_own_file_is_followed(write: Callable[[str], Path], tmp_path: Path) -> None:
    write("timeout = 5\n").rename(tmp_path / "kept elsewhere")
    (tmp_path / "lazyfs/config").symlink_to(tmp_path / "kept elsewhere")
    assert mount().timeout == 5


@pytest.mark.parametrize(
    "message", ["XDG_CONFIG_HOME is no absolute path", "HOME is no absolute path"]
)
def test_a_relative_home_is_refused(
    write: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    message: str,
) -> None:
    """It would be read from the directory that lazyfs is started in."""
    write("timeout = 5\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CONFIG_HOME")
    monkeypatch.setenv(message.split()[0], ".")
    with pytest.raises(UsageError) as caught:
        mount()
    assert caught.value.message == message
    assert caught.value.cure == "set it to one that begins with /"


def test_a_user_without_a_home_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    monkeypatch.delenv(configfile.INSTEAD, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)  # as for an unknown user
    assert configfile.files() == [configfile.SYSTEM]

"""What is answered to mistakes on the command line: what is wrong, and what to do.

(The parsing is pure; the modules are those of cli/.)
"""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from lazyfs.cli import main as cli
from lazyfs.core.address import origin, parse
from lazyfs.core.errors import DeviceError, LazyfsError, MountError, UsageError
from lazyfs.core.options import ServerOptions
from lazyfs.sources.headers import parse_header
from lazyfs.sources.nbdconnection import Endpoint
from lazyfs.sources.tls import client_context

A, B = "https://host/a.iso", "https://host/b.iso"
ABSENT = "No such file or directory"
NO_ROOT = "mount without loop, or use sudo"
LIKE_NBD = "write it like nbd://host/export or nbd+unix:///export?socket=PATH"

# Command lines, and what they are answered.
MISTAKES = r"""
$ lazyfs foo
'foo' is neither a URL nor a command; lazyfs --help shows the commands, and a URL begins like
https://
$ lazyfs statsu
'statsu' is neither a URL nor a command; did you mean status?
$ lazyfs https://host/a.iso
a URL and a mount point are needed; lazyfs URL MOUNTPOINT
$ lazyfs https://host/a.iso https://host/a.iso /m
https://host/a.iso is given twice; once is enough
$ lazyfs https://host/a.iso /a /m
'/a' is not a URL; the mount point comes last
$ lazyfs https://host/a.iso https://other/a.iso /m
two images would be called a.iso; give a --name for each URL
$ lazyfs --name=a --name=b https://host/a.iso /m
there are more names than URLs; give --name at most once for each URL
$ lazyfs --name=a/b https://host/a.iso /m
'a/b' cannot be a file name; give one without a slash
$ lazyfs ftp://host/a /m
ftp://host/a: ftp is not a kind of URL that lazyfs reads; give an http://, https:// or nbd:// URL
$ lazyfs https:///a /m
https:///a is not a URL; check its spelling and quoting
$ lazyfs --bitmap=b https://host/a.iso /m
--bitmap and --cache go together; give both files, or --cache-dir
$ lazyfs --bitmap=b --cache=c https://host/a.iso https://host/b.iso /m
--bitmap and --cache hold one image only; use --cache-dir
$ lazyfs --bitmap=/c --cache=/c https://host/a.iso /m
--bitmap cannot be /c, which --cache uses; name another
$ lazyfs --no-cache --cache-size=1G https://host/a.iso /m
--cache-size is for a cache directory; give --cache-dir with it
$ lazyfs --cache-size=1M https://host/a.iso /m
argument --cache-size: a cache of 1M is too small to be of use; give at least 16M
$ lazyfs --no-cache --fill https://host/a.iso /m
--fill needs a cache to fill; leave out --no-cache
$ lazyfs --rate=10M https://host/a.iso /m
--rate is for --fill; give both
$ lazyfs --fill --rate=fast https://host/a.iso /m
argument --rate: 'fast' is not a rate; write it like 10M/s
$ lazyfs --record=r https://host/a.iso https://host/b.iso /m
--record and --profile are for one image; mount images one by one
$ lazyfs --no-cache --preload=/x https://host/a.iso /m
--preload and --profile need a cache; leave out --no-cache
$ lazyfs --profile-any https://host/a.iso /m
--profile-any is for --profile; give both
$ lazyfs --connections=65 https://host/a.iso /m
argument --connections: '65' connections cannot be used; give a number from 1 to 64
$ lazyfs --browse https://host/a.iso https://host/b.iso /m
--browse is for one image; mount images one by one
$ lazyfs https://host/a.iso /m -o
-o needs mount options; write them like -o allow_other,timeout=5
$ lazyfs https://host/a.iso /m -o %
a mount option is unknown; see lazyfs --help; write a comma in a value as \,
$ lazyfs https://host/a.iso /m -o browes
mount option browes is unknown; did you mean browse?
$ lazyfs https://host/a.iso /m -o timeout
mount option timeout needs a value; see lazyfs --help
$ lazyfs https://host/a.iso /m -o browse=1
mount option browse takes no value; see lazyfs --help
$ lazyfs loop https://host/a.iso
one URL and a mount point are needed; lazyfs loop URL MOUNTPOINT
$ lazyfs loop https://host/a.iso https://host/b.iso /m
one URL and a mount point are needed; lazyfs loop URL MOUNTPOINT
$ lazyfs loop --repair --no-cache https://host/a.iso /m
--repair must know what was mounted; leave out --no-cache
$ lazyfs cp https://host/a.iso x
what to copy, and where to?; lazyfs cp IMAGE PATH... DEST
$ lazyfs preload /m
what to preload is not said; name files of the ISO, or give --profile
$ lazyfs metrics --every=5
--every is for a file; give --output FILE
$ lazyfs cache rm
which caches?; name them, or give --all
$ lazyfs serve https://host/a.iso
where to serve is not said; give --unix PATH or --tcp PORT
$ lazyfs serve -s --tcp=1 https://host/a.iso
-s serves stdin and nothing else; leave out --unix, --tcp and --run
$ lazyfs serve --tcp=1 --tls-verify-peer https://host/a.iso
--tls-verify-peer needs TLS; give --tls-certificates
$ lazyfs serve --tcp=1 --tls-psk=/k --tls-certificates=/c https://host/a.iso
keys or certificates, not both; leave one of them out
$ lazyfs serve --tcp=nbd https://host/a.iso
argument --tcp: 'nbd' is no place to listen on; write it like 10809 or [::1]:10809
$ lazyfs serve --tcp=1 --tls-certificates=/absent https://host/a.iso
the certificates in /absent cannot be used: No such file or directory; it needs server-cert.pem
and server-key.pem; for --tls-verify-peer ca-cert.pem too
"""


@pytest.fixture(autouse=True)
def _no_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAZYFS_CONFIG", "")


def said_to(*words: str | Path) -> str:
    """The message, and the cure, of a command line that is wrong."""
    with pytest.raises(UsageError) as caught:
        cli.run([str(word) for word in words])
    assert caught.value.exit_code == 2
    return str(caught.value)


def first_line(text: str) -> str:
    return text.partition("\n")[0]


@pytest.mark.parametrize("mistake", MISTAKES.split("\n$ lazyfs ")[1:], ids=first_line)
def test_a_mistake_is_answered_with_what_to_do(mistake: str) -> None:
    line, _, answer = mistake.partition("\n")
    assert said_to(*line.split()) == " ".join(answer.split())


@pytest.mark.parametrize(
    ("call", "answer"),
    [
        (
            lambda: Endpoint.of("nbd://host/x?export=y"),
            f"an NBD URL has no parameter 'export'; {LIKE_NBD}",
        ),
        (
            lambda: Endpoint.of("nbd://host/x?socket=/y"),
            f"an NBD URL names a socket where it should not, or not; {LIKE_NBD}",
        ),
        (
            lambda: origin("nbd://host/x"),
            "nbd://host/x is not a URL of HTTP; give an http:// or https:// URL",
        ),
        (lambda: parse("https://host:port/"), "... is not a URL; check its spelling"),
        (
            lambda: parse_header("Referer"),
            "a --header is no header field; write it as 'Name: value'",
        ),
        (
            lambda: client_context(ServerOptions(cacert=Path("/absent"))),
            f"/absent cannot be used as certificates: {ABSENT}; give a file in PEM format",
        ),
    ],
)
def test_what_cannot_be_used_is_answered_with_what_can(
    call: Callable[[], object], answer: str
) -> None:
    with pytest.raises(UsageError) as caught:
        call()
    assert str(caught.value) == answer


def test_without_a_home_a_cache_directory_must_be_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("os.path.expanduser", lambda path: path)

    def no_home(name: str) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr("platformdirs.user_cache_path", no_home)
    assert said_to(A, "/m") == "there is no home directory for a cache; give --cache-dir"


def test_what_is_for_one_run_is_in_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "config"
    monkeypatch.setenv("LAZYFS_CONFIG", str(file))
    for line, answer in {
        "foreground = true": "foreground is for one run; give it on the command line",
        'on-change = "maybe"': "on-change has no such value; give refetch or fail",
        "netrc = 1": "netrc is not true or false; write netrc = true",
        'header = "A: b"': 'header is not a list; write header = ["..."]',
        "cacert = []": 'cacert is not a text; write cacert = "..."',
    }.items():
        file.write_text(line)
        assert said_to(A, "/m") == f"{file}: {answer}"
    file.chmod(0)
    file.unlink()
    file.mkdir()
    assert said_to(A, "/m") == (
        f"{file} cannot be read: Is a directory; make it readable, or name another with "
        "LAZYFS_CONFIG"
    )


@pytest.mark.parametrize(
    ("line", "kind", "answer"),
    [
        (f"attach {A}", DeviceError, "only root can attach block devices; use sudo"),
        (f"loop {A} /", MountError, f"only root can set up loop devices; {NO_ROOT}"),
    ],
)
def test_what_is_for_root_is_said_to_be(
    line: str, kind: type[LazyfsError], answer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(kind) as caught:
        cli.run(line.split())
    assert str(caught.value) == answer


def test_a_mount_point_must_be_able_to_show_what_is_asked_for(tmp_path: Path) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    assert said_to(A, B, file) == f"{file} is a file and can show one image only; give a directory"
    assert (
        said_to("--browse", A, file) == f"{file} is a file and cannot show a tree; give a directory"
    )
    with pytest.raises(MountError) as caught:
        cli.run([A, str(pipe)])
    assert str(caught.value) == f"{pipe} is neither a directory nor a file; give a directory"
    with pytest.raises(MountError) as caught:
        cli.run([A, str(tmp_path / "absent")])
    absent = tmp_path / "absent"
    assert str(caught.value) == f"{absent} does not exist; mkdir {absent}"

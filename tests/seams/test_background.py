"""Who is told that a daemon is ready."""

import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.daemon.daemonize import Ready, run_daemon


def work(ready: Ready) -> int:
    ready()
    return 3


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    """The name of a service manager's socket, as it is in the environment; and the socket."""
    place = tmp_path / "notify"
    name, address = {
        "path": (str(place), str(place)),
        "abstract": (f"@{place}", f"\0{place}"),
    }[request.param]
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as own:
        own.bind(address)
        own.settimeout(5)
        yield name, own


def test_in_the_foreground_the_service_manager_is_told(
    manager: tuple[str, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    name, own = manager
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    assert run_daemon(work, foreground=True) == 3
    assert own.recv(100) == b"READY=1"


@pytest.mark.parametrize("place", [None, "", "vsock:2:1234"])
def test_where_there_is_none_that_we_know_nobody_is(
    place: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    if place is not None:
        monkeypatch.setenv("NOTIFY_SOCKET", place)
    assert run_daemon(work, foreground=True) == 3


def test_a_service_manager_that_is_not_there_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, expected_log: Callable[..., None]
) -> None:
    expected_log("systemd cannot be told that we are ready: No such file")
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    assert run_daemon(work, foreground=True) == 3


def test_a_daemon_leaves_the_process_group_of_who_starts_it_only_when_it_is_ready(
    tmp_path: Path,
) -> None:
    """At a mount point of systemd's automounter, none but systemd's own group may look."""
    said = tmp_path / "said"
    os.mkfifo(said)

    def work(ready: Ready) -> int:
        before = os.getpgrp()
        ready()
        said.write_text(f"{before} {os.getpgrp()} {os.getsid(0)} {os.getpid()}")
        return 0

    assert run_daemon(work, foreground=False) == 0
    before, after, session, itself = map(int, said.read_text().split())
    assert before == os.getpgrp()
    assert after == session == itself

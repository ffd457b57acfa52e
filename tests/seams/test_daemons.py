"""Daemons as a client sees them: found, and looked at before they are believed."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.core.errors import ControlError
from lazyfs.daemon import client
from lazyfs.daemon.client import Daemon, daemon_at, running
from lazyfs.protocols.control import LONGEST

IMAGE = {
    **dict.fromkeys(("name", "url", "trouble"), "x"),
    **dict.fromkeys(("size", "cached", "wanted", "hits", "misses", "fetched", "unused"), 1),
    **dict.fromkeys(("complete", "filling", "paused"), False),
    **dict.fromkeys(("prefetched", "requests", "failures", "damaged", "evicted"), 1),
    "round_trip": 0.02,
    "flow": 0.5,
    "trouble_for": 0,
    "seconds_left": None,
    "view": None,
    "under_way": 0,
    "slowest": [],
}
STATUS = {"pid": 1, "front_end": "fuse", "where": "/mnt/a", "places": ["/mnt/a"], "images": [IMAGE]}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where daemons are looked for."""
    monkeypatch.setattr(client, "_trusted", lambda: [tmp_path])
    monkeypatch.setattr(client, "_directories", lambda: [tmp_path])
    monkeypatch.setattr(client, "PATIENCE", 1.0)
    return tmp_path


@contextmanager
def daemon(path: Path, answer: Callable[[socket.socket], None]) -> Iterator[None]:
    """Something that listens where a daemon might."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(os.fspath(path))
        listener.listen()

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.recv(1000)
                    answer(connection)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def saying(status: Any) -> Callable[[socket.socket], None]:
    line = json.dumps({"lazyfs": 1, "ok": status}).encode() + b"\n"
    return lambda connection: connection.sendall(line)


def test_a_daemon_is_found_by_its_place_a_path_in_it_and_its_images(place: Path) -> None:
    with daemon(place / "5.sock", saying(STATUS)):
        assert [found.where for found in running()] == ["/mnt/a"]
        for name in ("/mnt/a", "/mnt/a/x.iso", "/mnt/../mnt/a"):
            assert daemon_at(name).where == "/mnt/a"
        for name in ("/mnt", "/mnt/ab", "https://host/x", "nbd://mnt/a"):
            with pytest.raises(ControlError, match="no lazyfs serves"):
                daemon_at(name)


def test_of_mounts_in_mounts_the_innermost_counts(place: Path) -> None:
    inner = {**STATUS, "where": "/mnt/a/b", "places": ["/mnt/a/b"]}
    with daemon(place / "5.sock", saying(STATUS)), daemon(place / "6.sock", saying(inner)):
        assert daemon_at("/mnt/a/b/c").where == "/mnt/a/b"
        assert daemon_at("/mnt/a/c").where == "/mnt/a"


def test_a_url_that_is_served_twice_names_no_daemon(place: Path) -> None:
    image = {**IMAGE, "url": "https://host/a.iso"}
    one = {**STATUS, "images": [image]}
    other = {**one, "where": "/mnt/b", "places": ["/mnt/b"]}
    with daemon(place / "5.sock", saying(one)), daemon(place / "6.sock", saying(other)):
        with pytest.raises(ControlError, match="more than once") as caught:
            daemon_at("https://host/a.iso")
        assert caught.value.cure == "say which: /mnt/a, /mnt/b"


LIES = [
    {},
    {**STATUS, "images": 3},
    {**STATUS, "images": [3]},
    {**STATUS, "images": [{}]},
    {**STATUS, "where": None},
    {**STATUS, "places": [5]},
    *({**STATUS, "images": [{**IMAGE, name: {}}]} for name in IMAGE),
]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: str(lie)[-60:])
def test_what_makes_no_sense_is_not_believed(
    place: Path, lie: Any, expected_log: Callable[..., None]
) -> None:
    expected_log("makes no sense")
    with daemon(place / "5.sock", saying(lie)):
        assert running() == []


def test_who_drips_is_not_waited_for_long(place: Path, expected_log: Callable[..., None]) -> None:
    expected_log("cannot be asked: timed out")

    def drip(connection: socket.socket) -> None:
        try:
            for _ in range(40):
                connection.sendall(b" ")
                time.sleep(0.1)
        except OSError:
            pass  # it had enough

    began = time.monotonic()
    with daemon(place / "5.sock", drip), daemon(place / "6.sock", saying(STATUS)):
        assert [found.where for found in running()] == ["/mnt/a"]
        assert time.monotonic() - began < 3


def test_an_answer_without_an_end_is_said(place: Path) -> None:
    def half(connection: socket.socket) -> None:
        connection.sendall(b"half")

    with daemon(place / "5.sock", half), pytest.raises(ControlError, match="has ended"):
        client.ask(place / "5.sock", "status")


def test_the_socket_of_a_dead_daemon_is_removed(place: Path) -> None:
    path = place / f"{1 << 30}.sock"  # no process has such a number
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    beginning = place / f"{os.getpid()}.sock"
    with socket.socket(socket.AF_UNIX) as refusing:
        refusing.bind(os.fspath(beginning))
        assert running() == []
        assert os.listdir(place) == [beginning.name]


def test_a_status_is_looked_at_each_time(place: Path) -> None:
    with daemon(place / "5.sock", saying({**STATUS, "images": 3})):
        known = Daemon(place / "5.sock", STATUS)
        with pytest.raises(ControlError, match="makes no sense"):
            known.ask("status")


def test_a_daemon_that_breaks_off_or_lies_is_said_to(place: Path) -> None:
    path = place / "5.sock"
    for line, what in ((b"half", "has ended"), (b"x" * LONGEST, "says more than can be taken")):
        with (
            daemon(path, lambda connection, line=line: connection.sendall(line)),  # type: ignore[misc]
            pytest.raises(ControlError) as caught,
        ):
            client.ask(path, "status")
        assert caught.value.message == f"the daemon at {path} {what}"
        assert caught.value.cure == "see what it says: journalctl -t lazyfs"
        path.unlink()
    known = Daemon(path, STATUS)
    with daemon(path, saying({})), pytest.raises(ControlError) as caught:
        known.ask("status")
    assert caught.value.message == "a daemon says of itself what makes no sense"

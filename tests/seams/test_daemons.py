"""Daemons as a client sees them: found, and looked at before they are believed."""

import contextlib
import json
import math
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from lazyfs.cli.main import main
from lazyfs.core.errors import ControlError
from lazyfs.daemon import client
from lazyfs.daemon.client import Daemon, daemon_at, running
from lazyfs.protocols.control import LONGEST, answering, refusing

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
def daemon(
    path: Path,
    answer: Callable[[socket.socket], None],
    by_line: Callable[[dict[str, Any]], Any] | None = None,
) -> Iterator[None]:
    """Something that listens where a daemon might.

    ``answer`` answers at once, whatever is asked; ``by_line`` what is asked.
    """
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
                    line = connection.recv(1000)
                    answer(connection)
                    if by_line is not None and line:
                        connection.sendall(answering(by_line(json.loads(line))))

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


LIES_ABOUT_READS = [3, {}, {"ago": 1, "offset": 0, "length": "x", "seconds": 1}]


@pytest.mark.parametrize("lie", LIES_ABOUT_READS, ids=str)
def test_slow_reads_that_make_no_sense_are_not_believed(
    place: Path, lie: Any, expected_log: Callable[..., None]
) -> None:
    expected_log("makes no sense")
    with daemon(place / "5.sock", saying({**STATUS, "images": [{**IMAGE, "slowest": [lie]}]})):
        assert running() == []


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf, 1e300, 1 << 64, -(1 << 64)])
@pytest.mark.parametrize("name", ["size", "flow", "seconds_left"])
def test_numbers_that_cannot_be_computed_with_are_not_believed(
    place: Path, name: str, number: float, expected_log: Callable[..., None]
) -> None:
    expected_log("no line of JSON")
    with daemon(place / "5.sock", saying({**STATUS, "images": [{**IMAGE, name: number}]})):
        assert running() == []


ANSWERS: dict[str, list[Any]] = {
    "map": [
        {},
        {"images": []},
        {"images": [{}]},
        {"images": [{"cells": [3]}]},
        {"images": [{"cells": [[0, 0]]}]},
        {"images": [{"cells": [[0, 0, "1"]]}]},
        {"images": [{"cells": [[0, 0, 2]]}]},
        {"images": [{"cells": [[0, 0, -1]]}]},
        {"images": [{"cells": []}, {"cells": []}]},
    ],
    "log": [{}, {"lines": 3}, {"lines": [3]}],
    "handover": [{}, {"devices": [{}]}, {"devices": [{"device": "/dev/loop0", "stays": 3}]}],
    "preload": [{}, {"bytes": "x"}],
}


@pytest.mark.parametrize(
    ("command", "answer"),
    [(command, answer) for command, answers in ANSWERS.items() for answer in answers],
)
def test_answers_to_other_commands_are_looked_at_too(
    place: Path, command: str, answer: Any
) -> None:
    known = Daemon(place / "5.sock", STATUS)
    with (
        daemon(place / "5.sock", saying(answer)),
        pytest.raises(ControlError, match="makes no sense"),
    ):
        known.cells("x", 3) if command == "map" else known.ask(command)


NASTY = "\x1b]0;owned\x07\x1b[31m\udcff\ud800\r\n"


@pytest.fixture
def nasty(place: Path) -> Iterator[None]:
    """A daemon whose words are not for a terminal."""
    image = {**IMAGE, "name": NASTY, "url": NASTY, "trouble": NASTY}
    view = {"chain": NASTY, "size": 1, "cached": 1}
    image |= {"view": view, "size": 2}
    status = {**STATUS, "where": NASTY, "front_end": NASTY, "images": [image]}

    def answer(line: dict[str, Any]) -> dict[str, Any]:
        return {
            "status": status,
            "map": {"images": [{"name": NASTY, "size": 1, "cells": [[1, 0, 0]]}]},
            "log": {"lines": [NASTY]},
            "handover": {"devices": [{"device": NASTY, "stays": NASTY}]},
            "preload": {"bytes": 1},
            "fill": {},
        }[line["do"]]

    with daemon(place / "5.sock", lambda connection: None, answer):
        yield


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["status", "/mnt/a"],
        ["status", "--json"],
        ["metrics"],
        ["map", "/mnt/a"],
        ["top", "/mnt/a"],
        ["handover", "/mnt/a"],
        ["preload", "/mnt/a", "*"],
        ["fill", "--wait", "/mnt/a"],
        ["__complete", "status", ""],
    ],
)
@pytest.mark.usefixtures("nasty")
def test_what_daemons_say_is_printed_without_escape_sequences(
    words: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    main(words)
    said = "".join(capfd.readouterr())
    assert said
    for character in "\x1b\x07\r\udcff\ud800":
        assert character not in said


def test_a_refusal_is_printed_without_escape_sequences(
    place: Path, expected_log: Callable[..., None]
) -> None:
    expected_log(r"WARNING: \?\]0;owned\?\?\[31m")
    line = refusing(NASTY, NASTY)
    with daemon(place / "5.sock", lambda connection: connection.sendall(line)):
        assert main(["status"]) == 1


def test_many_that_drip_are_not_waited_for_one_after_the_other(
    place: Path, expected_log: Callable[..., None]
) -> None:
    expected_log("cannot be asked")
    began = time.monotonic()
    with contextlib.ExitStack() as listening:
        for number in range(100, 140):
            silent = listening.enter_context(socket.socket(socket.AF_UNIX))
            silent.bind(os.fspath(place / f"{number}.sock"))
            silent.listen()
        with daemon(place / "5.sock", saying(STATUS)):
            assert [found.where for found in running()] == ["/mnt/a"]
    assert time.monotonic() - began < 2


# Places where others may have been


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o720])
def test_sockets_in_a_directory_of_others_are_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    monkeypatch.setattr(client, "_own_directory", lambda: tmp_path)
    tmp_path.chmod(mode)
    with daemon(tmp_path / "5.sock", saying(STATUS)):
        for ask in (running, lambda: daemon_at("/mnt/a")):
            with pytest.raises(ControlError) as caught:
                ask()
            assert caught.value.message == f"{tmp_path} is open to others"
            assert caught.value.cure == (
                "remove it, or set XDG_RUNTIME_DIR to a directory of your own"
            )


@pytest.mark.skipif(os.geteuid() != 0, reason="other owners need root")
def test_a_socket_of_another_user_is_not_asked(
    place: Path, expected_log: Callable[..., None]
) -> None:
    """As when it is a link out of a user's directory."""
    expected_log(r"cannot be asked: another user is there \(uid 0\)")
    asked: list[dict[str, Any]] = []
    os.chown(place, 54321, 54321)
    with daemon(place / "5.sock", lambda connection: None, lambda line: asked.append(line) or {}):
        assert running() == []
        with pytest.raises(ControlError, match="another user is there"):
            client.ask(place / "5.sock", "stop")
    assert asked == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root sees the daemons of others")
def test_root_looks_into_directories_of_users_that_are_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "_USERS", tmp_path / "user")
    monkeypatch.setattr(client, "_RUN", tmp_path / "run")
    for user in (54321, 54322, 54323):
        place = tmp_path / f"user/{user}"
        place.mkdir(parents=True)
        os.chown(place, user, user)
    good = tmp_path / "user/54321/lazyfs"
    good.mkdir()
    os.chown(good, 54321, 54321)
    (tmp_path / "user/54322/lazyfs").symlink_to(good)
    (tmp_path / "user/54323/lazyfs").mkdir()
    assert good in client._directories()
    assert {place.parent.name for place in client._directories()} & {"54322", "54323"} == set()


def test_a_relative_runtime_directory_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "run")
    assert client.own_socket().parent == Path(tempfile.gettempdir(), "lazyfs-54321")


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

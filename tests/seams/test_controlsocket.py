"""The control socket: who may ask, what is answered, and who does no harm."""

import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import trio
import trio.testing

from lazyfs.core.errors import ControlError, UsageError
from lazyfs.daemon.client import ask
from lazyfs.daemon.commands import Commands, FrontEnd
from lazyfs.daemon.controlsocket import ControlServer, listening_at
from lazyfs.protocols import control


async def echo(fields: dict[str, Any]) -> dict[str, Any]:
    return {"heard": fields}


async def refuse(fields: dict[str, Any]) -> dict[str, Any]:
    raise UsageError("this is no rate", "write it like 10M/s")


async def fail(fields: dict[str, Any]) -> dict[str, Any]:
    raise RuntimeError("a defect")


SERVER = ControlServer({"echo": echo, "refuse": refuse, "fail": fail})


@asynccontextmanager
async def serving(path: Path) -> AsyncIterator[None]:
    with listening_at(path) as listener:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(SERVER.listen, listener)
            yield
            nursery.cancel_scope.cancel()


async def asking(path: Path, command: str, **fields: Any) -> dict[str, Any]:
    return await trio.to_thread.run_sync(lambda: ask(path, command, **fields))


async def test_a_command_reaches_its_handler(tmp_path: Path) -> None:
    path = tmp_path / "run/1.sock"
    async with serving(path):
        assert await asking(path, "echo", image="a.iso") == {"heard": {"image": "a.iso"}}
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.parent.stat().st_mode & 0o777 == 0o700
    assert os.listdir(path.parent) == []


async def test_what_a_handler_refuses_the_client_is_told(tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    async with serving(path):
        with pytest.raises(ControlError, match="this is no rate") as caught:
            await asking(path, "refuse")
        assert caught.value.cure == "write it like 10M/s"
        with pytest.raises(ControlError, match="'sing' is no command here"):
            await asking(path, "sing")


async def test_a_defect_of_a_handler_ends_nothing(
    tmp_path: Path, expected_log: Callable[..., None]
) -> None:
    expected_log("failed in an unforeseen way")
    path = tmp_path / "1.sock"
    async with serving(path):
        with pytest.raises(ControlError, match="a defect"):
            await asking(path, "fail")
        assert await asking(path, "echo") == {"heard": {}}


async def test_a_client_may_ask_more_than_once() -> None:
    ours, its = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SERVER.attend, its)
        for number in range(3):
            await ours.send_all(control.asking("echo", {"n": number}))
            line = await ours.receive_some()
            assert control.answered(bytes(line)) == {"heard": {"n": number}}
        await ours.aclose()


@pytest.mark.parametrize("said", [b"", b"half a li", b"x" * (control.LONGEST + 5000)])
async def test_a_client_that_says_nothing_whole_is_sent_away(
    said: bytes, autojump_clock: trio.testing.MockClock
) -> None:
    ours, its = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SERVER.attend, its)
        await ours.send_all(said)
        assert await ours.receive_some() == b""


async def test_a_client_that_says_nonsense_is_told_so() -> None:
    ours, its = trio.testing.memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(SERVER.attend, its)
        await ours.send_all(b"hello\n")
        with pytest.raises(ControlError, match="no line of JSON"):
            control.answered(bytes(await ours.receive_some()))
        await ours.aclose()


async def test_a_dead_daemons_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    with pytest.raises(ControlError, match="cannot be asked"):
        await asking(path, "echo")
    async with serving(path):
        assert await asking(path, "echo") == {"heard": {}}


async def test_a_place_that_others_can_use_is_not(tmp_path: Path) -> None:
    place = tmp_path / "open"
    place.mkdir()
    place.chmod(0o777)
    with (
        pytest.raises(ControlError, match="is open to others"),
        listening_at(place / "1.sock"),
    ):
        pass
    assert os.listdir(place) == []


async def test_a_place_that_cannot_be_used_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(ControlError, match="cannot be made: File exists"),
        listening_at(tmp_path / "file/1.sock"),
    ):
        pass


async def test_a_daemon_that_ends_instead_of_answering_is_said(tmp_path: Path) -> None:
    path = tmp_path / "1.sock"
    with listening_at(path) as listener:
        async with trio.open_nursery() as nursery:

            async def hang_up() -> None:
                connection, _ = await trio.to_thread.run_sync(listener.accept)
                connection.recv(100)
                connection.close()

            nursery.start_soon(hang_up)
            with pytest.raises(ControlError, match=r"has ended|cannot be asked"):
                await asking(path, "echo")


async def test_why_there_is_no_control_socket_is_said(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ControlError) as caught, listening_at(file / "1.sock"):
        pass
    assert str(caught.value) == (
        f"the control socket {file / '1.sock'} cannot be made: File exists; see who may write there"
    )


# What a daemon refuses


class TwoImages:
    """As much of a stack as is asked of it before an order is refused."""

    images = (SimpleNamespace(name="a.iso"), SimpleNamespace(name="b.iso"))


async def _end() -> None:
    """There is nothing to end."""


@pytest.mark.parametrize(
    ("command", "fields", "said"),
    [
        (
            "map",
            {"cells": 0},
            "a map has 1 to 4096 cells; ask for a number of cells in between",
        ),
        (
            "preload",
            {"patterns": "/x"},
            (
                'what to preload is a list of patterns, or a profile\'s file; send "patterns" or '
                '"profile"'
            ),
        ),
        ("profile", {"file": 5}, 'a profile is written to a file; send "file": its path, or null'),
        ("profile", {"file": "p"}, "a profile is of one image; name the image"),
        ("fill", {"image": "c.iso"}, "there is no image 'c.iso' here; there are a.iso, b.iso"),
    ],
)
async def test_what_an_order_must_say_is_said(
    command: str, fields: dict[str, Any], said: str
) -> None:
    commands = Commands(FrontEnd("fuse", ("/mnt",), _end), TwoImages(), [])  # type: ignore[arg-type]
    with pytest.raises(ControlError) as caught:
        await commands.handlers()[command](fields)
    assert str(caught.value) == said

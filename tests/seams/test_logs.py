"""The log: it never waits, says what it had to leave out, and survives its rotation."""

import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lazyfs.core.options import CacheOptions, DaemonOptions, LogOptions, PreloadOptions
from lazyfs.daemon import logqueue, logs
from lazyfs.daemon.daemonize import tell_ready
from lazyfs.daemon.logqueue import Descriptor, LogFile, QueuedHandler, Syslog, priority

LIMIT = 10.0  # seconds for what is to happen at once


def eventually(condition: Callable[[], object], what: str) -> None:
    until = time.monotonic() + LIMIT
    while not condition():
        assert time.monotonic() < until, f"it did not happen that {what}"
        time.sleep(0.005)


class Sink:
    """A sink that takes lines while ``open`` is set, and fails while ``broken`` is."""

    def __init__(self) -> None:
        self.open = threading.Event()
        self.open.set()
        self.broken = False
        self.lines: list[str] = []

    def write(self, level: int, text: str) -> None:
        self.open.wait(LIMIT)
        if self.broken:
            raise OSError(5, "Input/output error")
        self.lines.append(text)

    def reopen(self) -> None:
        raise OSError(13, "Permission denied")

    def close(self) -> None:
        pass


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    yield sink
    sink.open.set()


@pytest.fixture
def said(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], None]]:
    """Logs a line at level INFO."""
    logger = logging.getLogger("lazyfs.test")
    monkeypatch.setattr(logger, "level", logging.INFO)
    yield logger.info
    for handler in logger.handlers[:]:
        logger.removeHandler(handler)
        handler.close()
        if isinstance(handler, QueuedHandler) and handler._thread:
            handler._thread.join(LIMIT)


def handler_on(sink: logqueue.Sink) -> QueuedHandler:
    handler = QueuedHandler(sink)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logging.getLogger("lazyfs.test").addHandler(handler)
    return handler


def within(seconds: float, action: Callable[[], object]) -> None:
    began = time.monotonic()
    action()
    assert time.monotonic() - began < seconds


def test_lines_come_in_order_and_are_there_after_a_flush(
    sink: Sink, said: Callable[[str], None]
) -> None:
    handler = handler_on(sink)
    for number in range(100):
        said(str(number))
    handler.flush()
    assert sink.lines == [str(number) for number in range(100)]


def test_a_sink_that_takes_nothing_delays_nobody(sink: Sink, said: Callable[[str], None]) -> None:
    handler = handler_on(sink)
    sink.open.clear()
    within(0.2, lambda: said("one"))
    within(1.0, handler.flush)
    within(0.2, handler.flush)  # what has taken too long already is not waited for again
    sink.open.set()
    eventually(lambda: sink.lines == ["one"], "the line is written")


def test_lines_that_found_no_room_are_counted_and_said_once(
    sink: Sink, said: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logqueue, "_MOST", 10)
    handler = handler_on(sink)
    sink.open.clear()
    said("first")
    eventually(lambda: not handler._waiting, "the sink was given the first line")
    for number in range(10):
        said(f"{number:05}")
    sink.open.set()
    handler.flush()
    said("later")
    handler.flush()
    missing = "8 lines are missing here, because this log took no more for a while"
    assert sink.lines == ["first", missing, "00008", "00009", "later"]


def test_lines_that_could_not_be_written_are_counted(
    sink: Sink, said: Callable[[str], None]
) -> None:
    handler = handler_on(sink)
    sink.broken = True
    said("lost")
    handler.flush()
    sink.broken = False
    said("written")
    handler.flush()
    missing = "1 line is missing here, because this log took no more for a while"
    assert sink.lines == [missing, "written"]


def test_a_log_that_cannot_be_opened_anew_says_so(sink: Sink, said: Callable[[str], None]) -> None:
    handler = handler_on(sink)
    handler.reopen()
    said("on we go")
    handler.flush()
    assert sink.lines == ["this log cannot be opened anew: Permission denied", "on we go"]


def full(place: Path) -> tuple[socket.socket, int]:
    """A socket for datagrams that takes no more of them; and how many it holds."""
    receiver = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    receiver.bind(os.fspath(place))
    receiver.settimeout(LIMIT)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
        sender.setblocking(False)
        sender.connect(os.fspath(place))
        held = 0
        while True:
            try:
                sender.send(b"x")
            except BlockingIOError:
                return receiver, held
            held += 1


def test_syslog_that_does_not_read_delays_nobody(
    tmp_path: Path, said: Callable[[str], None]
) -> None:
    receiver, held = full(tmp_path / "log")
    with receiver:
        handler = handler_on(Syslog(tmp_path / "log"))
        within(0.2, lambda: said("hello"))
        within(1.0, handler.flush)
        assert {receiver.recv(100) for _ in range(held)} == {b"x"}
        assert receiver.recv(100) == b"<30>hello\0"


def test_syslog_may_be_a_stream_and_may_be_restarted(
    tmp_path: Path, said: Callable[[str], None]
) -> None:
    place = tmp_path / "log"
    handler_on(Syslog(place))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX) as listener:
            listener.settimeout(LIMIT)
            listener.bind(os.fspath(place))
            listener.listen()
            said("hello")
            with listener.accept()[0] as connection:
                connection.settimeout(LIMIT)
                assert connection.recv(100) == b"<30>hello\0"
        place.unlink()


def test_syslog_of_datagrams_may_be_restarted(tmp_path: Path, said: Callable[[str], None]) -> None:
    place = tmp_path / "log"
    handler = handler_on(Syslog(place))
    for _ in range(2):
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
            receiver.settimeout(LIMIT)
            receiver.bind(os.fspath(place))
            said("hello")
            assert receiver.recv(100) == b"<30>hello\0"
        place.unlink()
    said("lost")
    handler.flush()


@pytest.mark.parametrize(
    ("level", "number"),
    [
        (logging.CRITICAL, 2),
        (logging.ERROR, 3),
        (logging.WARNING, 4),
        (logging.INFO, 6),
        (logging.DEBUG, 7),
        (5, 7),
    ],
)
def test_priorities_are_those_of_syslog(level: int, number: int) -> None:
    assert priority(level) == number


def test_a_pipe_that_nobody_reads_delays_nobody(said: Callable[[str], None]) -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    with open(reader, "rb", 0) as pipe:
        filled = os.write(writer, b"x" * (1 << 20))
        handler = handler_on(Descriptor(writer))
        within(0.2, lambda: said("hello"))
        within(1.0, handler.flush)
        assert len(pipe.read(filled)) == filled
        assert pipe.read(100) == b"hello\n"
        os.close(writer)


def test_a_log_file_is_opened_anew_after_its_rotation(
    tmp_path: Path, said: Callable[[str], None]
) -> None:
    file = tmp_path / "log"
    handler = handler_on(LogFile(file, named=True))
    said("before")
    handler.flush()
    file.rename(tmp_path / "log.1")
    handler.reopen()
    said("after")
    handler.flush()
    assert (tmp_path / "log.1").read_text() == "before\n"
    assert file.read_text() == "after\n"
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_fifo_without_a_reader_is_refused_as_log_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    daemon = DaemonOptions(
        images=(),
        cache=CacheOptions(tmp_path),
        timeout=1,
        preload=PreloadOptions(),
        log=LogOptions(logging.INFO, tmp_path / "fifo"),
    )
    with pytest.raises(logs.LogError, match="No such device or address"):
        logs.destination(daemon)


def test_a_service_manager_that_does_not_read_delays_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", os.fspath(tmp_path / "notify"))
    receiver, held = full(tmp_path / "notify")
    with receiver:
        within(0.5, tell_ready)
        assert {receiver.recv(100) for _ in range(held)} == {b"x"}
        assert receiver.recv(100) == b"READY=1"

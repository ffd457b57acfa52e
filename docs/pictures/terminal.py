"""A terminal of 80 columns and 24 lines, with a real program in it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import struct
import subprocess
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import pyte

COLUMNS, LINES = 80, 24


class Terminal:
    """What a program has drawn so far."""

    def __init__(self, master: int, process: subprocess.Popen[bytes]) -> None:
        self._master, self._process = master, process
        self._screen = pyte.Screen(COLUMNS, LINES)
        self._stream = pyte.ByteStream(self._screen)

    def rows(self) -> list[list[pyte.screens.Char]]:
        """The lines up to the last one that is not empty, each with all its characters."""
        lines = [[line[x] for x in range(COLUMNS)] for line in map(self._line, range(LINES))]
        while lines and not _text(lines[-1]).strip():
            lines.pop()
        return lines

    def text(self) -> str:
        """The same without colours."""
        return "\n".join(map(_text, self.rows()))

    def run_until(self, condition: Callable[[str], object], limit: float) -> None:
        """Let the program go on until its text is like that. Raises TimeoutError."""
        until = time.monotonic() + limit
        while not condition(self.text()):
            if not self._take(until - time.monotonic()):
                raise TimeoutError(f"this stays on the screen:\n{self.text()}")

    def run_to_its_end(self, limit: float) -> None:
        """Raises TimeoutError, and CalledProcessError if the program failed."""
        until = time.monotonic() + limit
        while self._take(until - time.monotonic()):
            pass
        status = self._process.wait(max(0.0, until - time.monotonic()))
        if status:
            raise subprocess.CalledProcessError(status, self._process.args, self.text())

    def _line(self, y: int) -> Mapping[int, pyte.screens.Char]:
        return self._screen.buffer[y]

    def _take(self, patience: float) -> bool:
        """Draw what the program writes next; False if nothing comes any more."""
        ready, _, _ = select.select([self._master], [], [], max(0.0, patience))
        written = b""
        if ready:
            with contextlib.suppress(OSError):  # EIO: nobody has the other end open
                written = os.read(self._master, 1 << 16)
        self._stream.feed(written)
        return bool(written)


@contextlib.contextmanager
def running(command: Sequence[str], environment: Mapping[str, str]) -> Iterator[Terminal]:
    """A terminal with this program in it; at the end the program is ended, if it still runs."""
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
    process = subprocess.Popen(
        command, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
        env={**environment, "TERM": "xterm-256color"},
    )  # fmt: skip
    os.close(slave)
    try:
        yield Terminal(master, process)
    finally:
        process.terminate()
        process.wait()
        os.close(master)


def _text(line: Sequence[pyte.screens.Char]) -> str:
    return "".join(character.data for character in line).rstrip()

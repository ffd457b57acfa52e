"""Runs in the guest: executes commands and reports the results, one JSON object per line.

A request is ``{"number", "command", "limit"}``. Commands run concurrently, each in its own session,
and are killed after their limit (seconds). The answer is ``{"number", "code", "out", "err"}``;
after the limit, ``code`` is null. An empty command ends the agent, and with it the guest.

It uses only the standard library, and little of it, since imports are slow in a guest.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from typing import IO, Any


class Agent:
    def __init__(self, line: IO[bytes]) -> None:
        self._line = line
        self._sending = threading.Lock()

    def run(self) -> None:
        self._say({"number": 0, "code": 0, "out": "ready", "err": ""})
        for text in self._line:
            wish = json.loads(text)
            if not wish["command"]:
                return
            threading.Thread(target=self._fulfil, args=(wish,), daemon=True).start()

    def _fulfil(self, wish: dict[str, Any]) -> None:
        # Into files: a leftover daemon may hold a pipe open for ever.
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            code = _run(wish["command"], wish["limit"], out, err)
            answer = {"number": wish["number"], "code": code}
            self._say({**answer, "out": _written(out), "err": _written(err)})

    def _say(self, answer: dict[str, Any]) -> None:
        with self._sending:
            self._line.write(json.dumps(answer).encode() + b"\n")
            self._line.flush()


def _run(command: list[str], limit: float, out: IO[bytes], err: IO[bytes]) -> int | None:
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
    except OSError as error:
        err.write(f"{command[0]}: {error.strerror}".encode())
        return 127
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return None  # without waiting, since it may hang in the kernel


def _written(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")


if __name__ == "__main__":
    with open(sys.argv[1], "r+b", buffering=0) as port:
        Agent(port).run()

"""A guest: a QEMU virtual machine with a Debian kernel and the host's files.

It has no disk. Its root is the host's, read-only, with a tmpfs as an overlay: the same Python and
lazyfs, at the same paths. The host's loopback is its 10.0.2.2. It receives commands over a virtio
port; its console is written to a file.

QEMU emulates the processor (TCG): /dev/kvm does not show whether KVM works, and it is not needed.
"""

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from real.mounts import need_tool

from . import initramfs
from .kernel import Kernel

HOST = "10.0.2.2"  # the host's loopback, in the guest

_COMMAND_LIMIT = 60.0  # seconds for any command that is not a long read
_LIFE_LIMIT = 1500.0  # seconds until it is killed, in case a test hangs
_ROOT = Path(__file__).parents[2]  # the lazyfs that these tests belong to
_PATH = "/usr/bin:/bin:/usr/sbin:/sbin"


@dataclass(frozen=True)
class Done:
    """A command's result; ``code`` is None if it did not end in time."""

    code: int | None
    out: str
    err: str


class Command:
    """A command that runs in the guest."""

    def __init__(self, words: Sequence[str], limit: float, answer: "Future[Done]") -> None:
        self._words = words
        self._limit = limit
        self._answer = answer

    @property
    def ended(self) -> bool:
        return self._answer.done()

    def wait(self) -> Done:
        """The result. The guest kills commands that take too long; this limit is for the guest."""
        done = self._answer.result(self._limit + 30)
        if done.code is None:
            pytest.fail(f"in the guest, {self._words} did not end within {self._limit:g} seconds")
        return done

    def succeed(self) -> str:
        """The output of the command, which must succeed."""
        done = self.wait()
        assert done.code == 0, f"in the guest, {self._words}: {done.err}{done.out}"
        return done.out


class Guest:
    boot_limit = 60.0  # seconds until it accepts commands
    down_limit = 30.0  # seconds until it has powered off

    def __init__(self, kernel: Kernel, directory: Path, memory: str = "2G") -> None:
        """Boot it; ``directory`` is for its console and QEMU's files."""
        self.console = directory / "console"
        self._answers: dict[int, Future[Done]] = {0: Future()}
        self._numbers = itertools.count(1)
        python = [os.path.realpath(sys.executable), "-I", "-S"]
        agent = [*python, str(Path(__file__).with_name("agent.py"))]
        archive = directory / "initramfs"
        archive.write_bytes(initramfs.build(kernel, agent))
        ours, its = socket.socketpair()
        with its:
            self._qemu = subprocess.Popen(
                self._command(kernel.image, archive, memory, its.fileno()),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                pass_fds=[its.fileno()],
            )
        self._line = ours
        self._life = threading.Timer(_LIFE_LIMIT, self._qemu.kill)
        self._life.start()
        self._listener = threading.Thread(target=self._listen)
        self._listener.start()
        try:
            self._answers[0].result(self.boot_limit)
        except BaseException:
            self.close()
            raise

    def _command(self, kernel: Path, archive: Path, memory: str, line: int) -> list[str]:
        share = "local,path=/,mount_tag=ours,security_model=none,readonly=on,multidevs=remap"
        return [
            need_tool("qemu-system-x86_64", "qemu-system-x86"),
            *("-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "qemu64", "-smp", "2"),
            *("-m", memory, "-nodefaults", "-display", "none", "-no-reboot"),
            *("-kernel", f"{kernel}", "-initrd", f"{archive}"),
            *("-append", "console=ttyS0 quiet loglevel=5 panic=-1 oops=panic"),
            *("-serial", f"file:{self.console}"),
            *("-virtfs", share),
            *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
            *("-device", "virtio-rng-pci", "-device", "virtio-serial-pci"),
            *("-chardev", f"socket,id=line,fd={line}", "-device", "virtserialport,chardev=line"),
        ]

    def _listen(self) -> None:
        """Receive answers until the guest is gone; then fail the pending commands."""
        with self._line.makefile("rb") as lines:
            try:
                for line in lines:
                    answer: dict[str, Any] = json.loads(line)
                    done = Done(answer["code"], answer["out"], answer["err"])
                    self._answers.pop(answer["number"]).set_result(done)
            except OSError:
                pass  # the connection breaks when the guest is killed
        gone = ConnectionError(f"the guest is gone:\n{self.messages()[-2000:]}")
        for waiting in list(self._answers.values()):
            waiting.set_exception(gone)

    def start(self, *words: str | Path, limit: float = _COMMAND_LIMIT) -> Command:
        """Start a command in the guest, without a shell and without our environment."""
        number = next(self._numbers)
        answer: Future[Done] = Future()
        self._answers[number] = answer
        command = ["/usr/bin/env", "-i", "HOME=/run", f"PATH={_PATH}", "LC_ALL=C.UTF-8"]
        command += [f"PYTHONPATH={_ROOT}", *(str(word) for word in words)]
        wish = {"number": number, "command": command, "limit": limit}
        self._line.sendall(json.dumps(wish).encode() + b"\n")
        return Command(command[6:], limit, answer)

    def run(self, *words: str | Path, limit: float = _COMMAND_LIMIT) -> Done:
        """Run a command to completion."""
        return self.start(*words, limit=limit).wait()

    def run_well(self, *words: str | Path, limit: float = _COMMAND_LIMIT) -> str:
        """Run a command that must succeed; returns its output."""
        return self.start(*words, limit=limit).succeed()

    def lazyfs(self, *arguments: str | Path, limit: float = _COMMAND_LIMIT) -> Command:
        return self.start(sys.executable, "-m", "lazyfs", *arguments, limit=limit)

    def eventually(self, *words: str | Path, what: str, within: float = 30.0) -> None:
        """Wait until a command succeeds in the guest; fail after ``within`` seconds."""
        until = time.monotonic() + within
        while self.run(*words).code != 0:
            assert time.monotonic() < until, f"within {within:g} s it did not happen that {what}"
            time.sleep(0.1)

    def messages(self) -> str:
        """The messages of its kernel and its init."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def shut_down(self) -> float:
        """Have the guest shut down; returns the seconds that it took."""
        started = time.monotonic()
        self._line.sendall(b'{"number": -1, "command": []}\n')
        try:
            self._qemu.wait(self.down_limit)
        except subprocess.TimeoutExpired:
            self.close()
            pytest.fail(f"the guest did not go down:\n{self.messages()[-2000:]}")
        self.close()
        return time.monotonic() - started

    def close(self) -> None:
        """Power it off by force."""
        self._life.cancel()
        self._qemu.send_signal(signal.SIGKILL)
        self._qemu.communicate(timeout=20)
        self._line.close()
        self._listener.join(20)

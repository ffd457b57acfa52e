"""Images attached as block devices in a guest, and operations on them."""

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .machine import Command, Done, Guest

_READER = Path(__file__).with_name("reader.py")
_READ_LIMIT = 150.0  # seconds to compare a whole image, or for a waiting reader
_TIDY = "for d in /dev/nbd?; do [ ! -e /sys/block/${d#/dev/}/pid ] || echo $d; done"


@dataclass
class Place:
    """A test's directory in the guest; its devices are detached at the end."""

    guest: Guest
    directory: str

    @classmethod
    @contextmanager
    def made(cls, guest: Guest, *, tidy: bool = True) -> "Iterator[Place]":
        """``tidy``: whether to clean up after a failed test."""
        place = cls(guest, guest.run_well("mktemp", "-d", "-p", "/run").strip())
        try:
            yield place
        finally:
            if tidy:
                place._tidy()

    def attach(self, *arguments: str, troubled: bool = False) -> "Attached":
        """``lazyfs attach ARGUMENTS``; returns the device."""
        done = self.try_attach(*arguments)
        assert done.code == 0, f"{done.err}{self.log()}"
        assert troubled or done.err == ""
        return Attached(self, done.out.strip())

    def try_attach(self, *arguments: str) -> Done:
        cache = ["--cache-dir", f"{self.directory}/cache", "--log-file", f"{self.directory}/log"]
        return self.guest.lazyfs("attach", *cache, *arguments).wait()

    def mount(self, device: str, kind: str) -> str:
        """Mount the filesystem on a device; returns the mount point."""
        at = f"{self.directory}/mnt"
        self.guest.run_well("modprobe", {"iso9660": "isofs"}.get(kind, kind))
        self.guest.run_well("mkdir", "-p", at)
        self.guest.run_well("mount", "-t", kind, "-o", "ro", device, at)
        return at

    def log(self) -> str:
        return self.guest.run("cat", f"{self.directory}/log").out

    def _tidy(self) -> None:
        """Unmount and detach what a failed test has left; remove the cache, which is in memory."""
        self.guest.run("sh", "-c", f"umount -l {self.directory}/mnt; touch {self.directory}/stop")
        for device in self.guest.run("sh", "-c", _TIDY).out.split():
            self.guest.lazyfs("detach", device).wait()
        self.guest.run("rm", "-rf", "--one-file-system", self.directory)


@dataclass
class Attached:
    """A device and its daemon."""

    place: Place
    device: str

    @property
    def guest(self) -> Guest:
        return self.place.guest

    def daemon(self) -> str:
        """The process id of its daemon, which must be the only one."""
        found = self.guest.run_well("pgrep", "-f", "^@?lazyfs attach ").split()
        assert len(found) == 1, f"one daemon should serve {self.device}, not {found}"
        return found[0]

    def mount(self, kind: str, part: str = "") -> str:
        """Mount the filesystem on it; returns the mount point."""
        return self.place.mount(f"{self.device}{part}", kind)

    def umount(self) -> None:
        self.guest.run_well("umount", f"{self.place.directory}/mnt")

    def detach(self) -> Done:
        return self.guest.lazyfs("detach", self.device).wait()

    def start_reading(self, file: Path) -> "Reading":
        """Read it at random places, in several threads, and compare with ``file``."""
        stop = f"{self.place.directory}/stop"
        self.guest.run_well("rm", "-f", stop, f"{stop}.reads")
        words = [sys.executable, "-I", "-S", _READER, self.device, file, stop]
        return Reading(self.guest, stop, self.guest.start(*words, limit=_READ_LIMIT))

    def is_same_as(self, directory: str, tree: Path) -> bool:
        """Whether every file below ``directory`` is equal to that in the host's ``tree``."""
        done = self.guest.run(
            "diff", "--recursive", "--no-dereference", directory, tree, limit=_READ_LIMIT
        )
        assert done.code in (0, 1), done.err
        return done.code == 0 and not done.out


@dataclass
class Reading:
    """Readers that run in the guest."""

    guest: Guest
    stop: str
    command: Command

    def wait_for_some(self) -> None:
        """Wait until 100 more reads have ended."""
        wanted = self._count() + 100
        until = time.monotonic() + _READ_LIMIT
        while self._count() < wanted:
            assert not self.command.ended, self.command.wait()
            assert time.monotonic() < until, "readers do not come on"

    def _count(self) -> int:
        return int(self.guest.run("cat", f"{self.stop}.reads").out or 0)

    def result(self) -> "Result":
        """Stop the readers; returns their result."""
        self.guest.run_well("touch", self.stop)
        return Result(**json.loads(self.command.succeed()))


@dataclass
class Result:
    """``longest``: the duration of the slowest read, in seconds."""

    reads: int
    failed: list[int]
    wrong: list[int]
    longest: float

    @property
    def all_right(self) -> bool:
        return self.reads > 0 and not self.failed and not self.wrong

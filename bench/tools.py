"""The tools that are compared: each shows the image behind a URL as a local file.

A tool is started in the foreground, in a room (an empty directory) of its own, and knows the path
at which the image will appear. To add one: a subclass of Tool here, and a line in `TOOLS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from bench import system
from bench.image import Image
from bench.server import NAME, Way
from bench.work import CONNECTIONS

Command = Sequence[str | Path]


class Tool:
    """A tool that mounts a directory in which the image appears."""

    name = "?"
    limit = False
    """Not a peer, but what could be reached at best."""
    mounts = True
    """Whether the image becomes a local file (else there is nothing to loop-mount)."""
    mounts_tree = False
    """Whether the filesystem in the image is mounted, and not the image shown as a file."""
    completes = False
    """Whether it fetches the whole image by itself, and then ends while the mount stays."""

    def __init__(self, way: Way, image: Image, room: Path, connections: int | None) -> None:
        """`connections` to the server: for tools that can be told, and do not set them here."""
        self.way, self.image, self.room, self.connections = way, image, room, connections
        self.mountpoint = room / "mnt"
        self.environment = dict(os.environ)
        self._processes: list[subprocess.Popen[str]] = []

    @classmethod
    def version(cls) -> str:
        """The version in words. Raises Failed where the tool is not installed."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """Where the image will appear: a path, or a URL."""
        return os.fspath(self.mountpoint / NAME)

    def start(self) -> None:
        """Start, without waiting until the image is there."""
        self.mountpoint.mkdir(exist_ok=True)
        self.launch(self.command())

    def command(self) -> Command:
        """The command that mounts and stays in the foreground."""
        raise NotImplementedError

    def peak_memory(self) -> int:
        """Bytes, of all its processes."""
        return system.peak_memory([process.pid for process in self._processes])

    def ended(self) -> bool:
        """Whether all its processes have ended."""
        return all(process.poll() is not None for process in self._processes)

    def last_message(self) -> str:
        """What the tool said last."""
        messages = self.room / "messages"
        lines = messages.read_text(errors="replace").split("\n") if messages.exists() else []
        return next(filter(None, reversed(lines)), "it said nothing")

    def release(self) -> None:
        """Free whoever hangs on a read."""
        self._unmount("--force")

    def stop(self) -> None:
        """Unmount and end all processes."""
        self._unmount()
        for process in reversed(self._processes):
            system.end(process)
        system.unmount(self.mountpoint)

    def launch(self, command: Command) -> None:
        """Start a process; what it says goes to a file in the room."""
        with (self.room / "messages").open("a") as messages:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=messages, stderr=messages, text=True,
                env=self.environment, cwd=self.room,
            )  # fmt: skip
        self._processes.append(process)

    def _unmount(self, *how: str) -> None:
        if system.is_mounted(self.mountpoint):
            with contextlib.suppress(system.Failed):
                system.run(["umount", *how, self.mountpoint])


class Lazyfs(Tool):
    """This project. Options beyond the defaults are given when it is made."""

    name = "lazyfs"
    options: tuple[str, ...] = ()

    @classmethod
    def version(cls) -> str:
        return system.run([*lazyfs_command(), "--version"]).strip()

    def command(self) -> Command:
        options: list[str | Path] = [
            "--foreground",
            "--cache-dir",
            self.room / "cache",
            *self.options,
        ]
        if self.connections:
            options += ["--connections", str(self.connections)]
        return [*lazyfs_command(), *options, self.way.url, self.mountpoint]


def lazyfs_command() -> list[str]:
    """The lazyfs beside this bench, run by the same Python."""
    return ["env", f"PYTHONPATH={Path(__file__).parent.parent}", sys.executable, "-m", "lazyfs"]


class LazyfsLoop(Lazyfs):
    """``lazyfs loop``, which mounts the filesystem itself."""

    name = "lazyfs-loop"
    mounts_tree = True

    @classmethod
    def version(cls) -> str:
        system.run([*lazyfs_command(), "loop", "--help"])
        return super().version()

    def command(self) -> Command:
        options: Command = ["--type", self.image.fstype, "--cache-dir", self.room / "cache"]
        where: Command = [self.way.url, self.mountpoint]
        return [*lazyfs_command(), "loop", "--foreground", *options, *self.options, *where]

    def release(self) -> None:
        """Whoever hangs on a read hangs on the daemon behind the loop device."""
        for process in self._processes:
            system.end(process)

    def stop(self) -> None:
        """Unmount; the daemon ends by itself, or is ended."""
        self._unmount()
        system.wait_until(self.ended, 5.0)
        super().stop()
        for device in system.loops_on(self.room):
            system.detach(device)


class LazyfsLoopFill(LazyfsLoop):
    """``lazyfs loop --fill``: in the end the mount stands on the complete local copy."""

    name = "lazyfs-loop-fill"
    options = ("--fill",)
    completes = True


class NbdkitCurl(Tool):
    """nbdkit's curl plugin in its plainest form: nbdfuse starts it, one connection."""

    name = "nbdkit"

    @classmethod
    def version(cls) -> str:
        return ", ".join(first_line([name, "--version"]) for name in ("nbdkit", "nbdfuse"))

    def command(self) -> Command:
        nbdkit = ["nbdkit", "--single", "--readonly", "--exit-with-parent", "curl", self.way.url]
        return ["nbdfuse", "--readonly", self.mountpoint / NAME, "--command", *nbdkit]


class NbdkitFiltered(NbdkitCurl):
    """nbdkit's curl plugin below a filter that keeps what was read, with several connections."""

    filter: tuple[str, ...] = ()
    parameters: tuple[str, ...] = ()

    def command(self) -> Command:
        socket = self.room / "nbd.sock"
        self.environment["TMPDIR"] = os.fspath(self.room)  # the filters keep their data there
        nbdkit: Command = ["nbdkit", "--foreground", "--readonly", "--unix", socket, *self.filter]
        self.launch([*nbdkit, "curl", self.way.url, *self.parameters])
        if not system.wait_until(socket.exists, 10):
            raise system.Failed("nbdkit does not start")
        connections = ["--connections", str(CONNECTIONS)]
        uri = f"nbd+unix:///?socket={socket}"
        return ["nbdfuse", "--readonly", *connections, self.mountpoint / NAME, uri]


class NbdkitCow(NbdkitFiltered):
    """... which copies what is read into an overlay."""

    name = "nbdkit-cow"
    filter = ("--filter=cow",)
    parameters = ("cow-on-read=true",)


class NbdkitCache(NbdkitFiltered):
    """... which caches what is read, in blocks of 256 KiB."""

    name = "nbdkit-cache"
    filter = ("--filter=cache",)
    parameters = ("cache=unsafe", "cache-on-read=true", "cache-min-block-size=256k")


class QemuStorageDaemon(Tool):
    """qemu's curl driver below a qcow2 overlay that is filled by reading, exported with FUSE."""

    name = "qemu"

    @classmethod
    def version(cls) -> str:
        return first_line(["qemu-storage-daemon", "--version"])

    @property
    def target(self) -> str:
        """The image appears on a file that exists, not in a directory."""
        return os.fspath(self.mountpoint)

    def start(self) -> None:
        """Make the overlay and start."""
        overlay = self.room / "overlay.qcow2"
        self.mountpoint.touch()
        system.run(["qemu-img", "create", "-q", "-f", "qcow2", overlay, str(self.image.size)])
        export = f"type=fuse,id=export,node-name=copy,mountpoint={self.mountpoint},writable=off"
        blocks = (
            f"driver=http,node-name=net,url={self.way.url},read-only=on",
            f"driver=qcow2,node-name=overlay,file.driver=file,file.filename={overlay},backing=net",
            "driver=copy-on-read,node-name=copy,file=overlay",
        )
        options = [option for block in blocks for option in ("--blockdev", block)]
        self.launch(["qemu-storage-daemon", *options, "--export", export])


class Rclone(Tool):
    """rclone mount with its full VFS cache."""

    name = "rclone"

    @classmethod
    def version(cls) -> str:
        return first_line(["rclone", "version"])

    def command(self) -> Command:
        cache: Command = ["--vfs-cache-mode", "full", "--cache-dir", self.room / "cache"]
        config: Command = ["--config", self.room / "no-config", "--http-url", self.way.root]
        return ["rclone", "mount", ":http:", self.mountpoint, "--read-only", *cache, *config]


class Httpdirfs(Tool):
    """httpdirfs with its cache."""

    name = "httpdirfs"

    @classmethod
    def version(cls) -> str:
        said = subprocess.run(["httpdirfs", "--version"], capture_output=True, text=True).stderr
        match = re.search(r"version (\S+)", said)
        return f"httpdirfs {match[1] if match else said[:40]}"

    def command(self) -> Command:
        (self.room / "cache").mkdir()
        cache: Command = ["--cache", "--cache-location", self.room / "cache"]
        return ["httpdirfs", "-f", "--no-range-check", *cache, self.way.root, self.mountpoint]


class Curl(Tool):
    """The limit of the link: curl, and keep-alive connections with one request after another."""

    name = "curl"
    limit = True
    mounts = False

    @classmethod
    def version(cls) -> str:
        return " ".join(system.run(["curl", "--version"]).split()[:2])

    @property
    def target(self) -> str:
        """What is there already."""
        return self.way.url

    def start(self) -> None:
        """Nothing to start."""


class Local(Tool):
    """The limit where the image has been downloaded: the plain file on the disk."""

    name = "local"
    limit = True

    @classmethod
    def version(cls) -> str:
        return f"Linux {os.uname().release}"

    @property
    def target(self) -> str:
        """What is there already."""
        return os.fspath(self.image.path)

    def start(self) -> None:
        """Nothing to start."""


class LazyfsFill(Lazyfs):
    """lazyfs with the background fill, where the version at hand has it."""

    name = "lazyfs-fill"
    options = ("--fill",)

    @classmethod
    def version(cls) -> str:
        if "--fill" not in system.run([*lazyfs_command(), "--help"]):
            raise system.Failed("this lazyfs has no --fill")
        return super().version()


TOOLS: dict[str, type[Tool]] = {
    tool.name: tool
    for tool in (Lazyfs, LazyfsFill, LazyfsLoop, LazyfsLoopFill, NbdkitCurl, NbdkitCow, NbdkitCache,
                 QemuStorageDaemon, Rclone, Httpdirfs, Curl, Local)
}  # fmt: skip


def first_line(command: Sequence[str]) -> str:
    """The first line that a program prints. Raises Failed."""
    return system.run(command).split("\n", 1)[0]


def variant(text: str) -> type[Tool]:
    """A lazyfs with other options, given as ``NAME=OPTION...``; for ``--variant``."""
    name, _, options = text.partition("=")
    return type("Variant", (Lazyfs,), {"name": name, "options": tuple(options.split())})

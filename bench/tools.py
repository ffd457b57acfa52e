"""The compared tools: each shows the image at a URL as a local file.

A tool is started in the foreground, in its own room (an empty directory), and knows the path at
which the image will appear. To add one: a subclass of Tool here, and a line in `TOOLS`.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from enum import StrEnum, auto
from pathlib import Path

from bench import iso, system
from bench.image import Image
from bench.server import NAME, Way
from bench.work import CONNECTIONS

Command = Sequence[str | Path]

NOT_FOLLOWED = re.compile("the profile is not used|nothing is preloaded|--preload .*: ")
"""Messages of lazyfs about a profile or a preload that it does not use."""


class Task(StrEnum):
    """The ability that a work requires of a tool."""

    READ = auto()
    """Bytes of the image, from a local file or a URL."""
    START = auto()
    """Showing the image as a local file."""
    JOB = auto()
    """The filesystem in the image: mounted already, or as a file that the kernel can mount."""
    HELLO = auto()
    """The same, with a root filesystem whose programs are started."""
    COMPLETE = auto()
    """The same, after all of the image was fetched."""
    TOLD = auto()
    """The same, with the reads announced before (a profile or a preload)."""
    LOOK = auto()
    """The content of an ISO: a listing, or one of its files."""
    SERVE = auto()
    """Bytes of the image, from an NBD server on a Unix socket."""


class Tool:
    """A tool that mounts a directory in which the image appears."""

    name = "?"
    limit = False
    """Whether it is not a peer, but shows the best possible value."""
    tasks = frozenset({Task.READ, Task.START, Task.JOB, Task.HELLO})
    """Its measured abilities."""
    mounts_tree = False
    """Whether it mounts the filesystem in the image, instead of showing the image as a file."""
    looks_by_itself = False
    """Whether it reads an ISO's content without a mount."""

    def __init__(self, way: Way, image: Image, room: Path, connections: int | None) -> None:
        """`connections`: to the server, for configurable tools that do not set them here."""
        self.way, self.image, self.room, self.connections = way, image, room, connections
        self.mountpoint = room / "mnt"
        self.environment = dict(os.environ)
        self.told: Command = ()  # options that announce the reads, for Task.TOLD
        self._processes: list[subprocess.Popen[str]] = []

    @classmethod
    def version(cls) -> str:
        """The version as text. Raises Failed if the tool is not installed."""
        raise NotImplementedError

    @property
    def target(self) -> str:
        """The place where the image will appear: a path or a URL."""
        return os.fspath(self.mountpoint / NAME)

    def start(self) -> None:
        """Start, without waiting until the image appears."""
        self.mountpoint.mkdir(exist_ok=True)
        self.launch(self.command())

    def command(self) -> Command:
        """The command that mounts and stays in the foreground."""
        raise NotImplementedError

    def listing(self) -> Command:
        """The command that lists all files in the ISO."""
        return iso.listing(self.target)

    def extraction(self, name: str) -> Command:
        """The command that prints one file of the ISO."""
        return iso.extraction(self.target, name)

    def peak_memory(self) -> int:
        """The peak memory of all its processes, in bytes."""
        return system.peak_memory([process.pid for process in self._processes])

    def ended(self) -> bool:
        """Whether all its processes have ended."""
        return all(process.poll() is not None for process in self._processes)

    def last_message(self) -> str:
        """The last message of the tool."""
        return next(filter(None, reversed(self._messages())), "it said nothing")

    def _messages(self) -> list[str]:
        messages = self.room / "messages"
        return messages.read_text(errors="replace").split("\n") if messages.exists() else []

    def release(self) -> None:
        """Unblock hanging reads."""
        self._unmount("--force")

    def stop(self) -> None:
        """Unmount and end all processes."""
        self._unmount()
        for process in reversed(self._processes):
            system.end(process)
        system.unmount(self.mountpoint)

    def launch(self, command: Command) -> None:
        """Start a process, with its output in a file in the room."""
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
    """This project, with the default options; variants have more `options`."""

    name = "lazyfs"
    tasks = Tool.tasks | {Task.TOLD, Task.LOOK}
    looks_by_itself = True
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
            *self.told,
        ]
        if self.connections:
            options += ["--connections", str(self.connections)]
        return [*lazyfs_command(), *options, self.way.url, self.mountpoint]

    def listing(self) -> Command:
        return [*lazyfs_command(), "ls", "-R", *self._cached(), self.way.url]

    def extraction(self, name: str) -> Command:
        return [*lazyfs_command(), "cat", *self._cached(), self.way.url, name]

    def not_followed(self) -> str | None:
        """Why it does not use the announced reads; None if it does."""
        return next(filter(NOT_FOLLOWED.search, self._messages()), None)

    def _cached(self) -> Command:
        return ["--cache-dir", self.room / "cache", *self.options]


def lazyfs_command() -> list[str]:
    """The lazyfs beside this benchmark, run by the same Python."""
    return ["env", f"PYTHONPATH={Path(__file__).parent.parent}", sys.executable, "-m", "lazyfs"]


class LazyfsLoop(Lazyfs):
    """``lazyfs loop``, which mounts the filesystem itself."""

    name = "lazyfs-loop"
    tasks = frozenset({Task.JOB})
    mounts_tree = True
    looks_by_itself = False

    @classmethod
    def version(cls) -> str:
        system.run([*lazyfs_command(), "loop", "--help"])
        return super().version()

    def command(self) -> Command:
        options: Command = ["--type", self.image.fstype, "--cache-dir", self.room / "cache"]
        where: Command = [self.way.url, self.mountpoint]
        return [*lazyfs_command(), "loop", "--foreground", *options, *self.options, *where]

    def release(self) -> None:
        """Unblock hanging reads: end the daemon behind the loop device."""
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
    """``lazyfs loop --fill``: in the end the mount is on the complete local copy."""

    name = "lazyfs-loop-fill"
    options = ("--fill",)
    tasks = LazyfsLoop.tasks | {Task.COMPLETE}


class NbdServer(Tool):
    """A tool that serves NBD on a Unix socket in its room."""

    tasks = frozenset({Task.SERVE})

    @property
    def target(self) -> str:
        """The URI of the only export."""
        return f"nbd+unix:///?socket={self._socket}"

    @property
    def _socket(self) -> Path:
        return self.room / "nbd.sock"

    def start(self) -> None:
        """Start, and wait for readiness."""
        self.launch(self.command())
        if not system.wait_until(self._socket.exists, 10):
            raise system.Failed(self.last_message())

    def release(self) -> None:
        """End the server, and thereby its clients."""
        for process in self._processes:
            system.end(process)


class LazyfsServe(NbdServer):
    """``lazyfs serve``."""

    name = "lazyfs-serve"

    @classmethod
    def version(cls) -> str:
        return Lazyfs.version()

    def command(self) -> Command:
        options: Command = ["--foreground", "--unix", self._socket, "--cache-dir", self.room / "c"]
        return [*lazyfs_command(), "serve", *options, self.way.url]


class NbdkitServesCurl(NbdServer):
    """nbdkit's curl plugin, with as many connections as its clients have."""

    name = "nbdkit-curl"

    @classmethod
    def version(cls) -> str:
        return first_line(["nbdkit", "--version"])

    def command(self) -> Command:
        return ["nbdkit", "--foreground", "--readonly", "--unix", self._socket, *self.plugin]

    @property
    def plugin(self) -> Command:
        """Its name and parameters."""
        return ["curl", self.way.url]


class NbdkitServesFile(NbdkitServesCurl):
    """The limit with a downloaded image: nbdkit's file plugin."""

    name = "nbdkit-file"
    limit = True

    @property
    def plugin(self) -> Command:
        """Its name and parameters."""
        return ["file", self.image.path]


class NbdkitCurl(Tool):
    """nbdkit's curl plugin in its simplest form: started by nbdfuse, with one connection."""

    name = "nbdkit"
    tasks = Tool.tasks | {Task.LOOK}

    @classmethod
    def version(cls) -> str:
        return ", ".join(first_line([name, "--version"]) for name in ("nbdkit", "nbdfuse"))

    def command(self) -> Command:
        nbdkit = ["nbdkit", "--single", "--readonly", "--exit-with-parent", "curl", self.way.url]
        return ["nbdfuse", "--readonly", self.mountpoint / NAME, "--command", *nbdkit]


class NbdkitFiltered(NbdkitCurl):
    """nbdkit's curl plugin below a caching filter, with several connections."""

    tasks = Tool.tasks
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
    """The cow filter, which copies read blocks into an overlay."""

    name = "nbdkit-cow"
    filter = ("--filter=cow",)
    parameters = ("cow-on-read=true",)


class NbdkitCache(NbdkitFiltered):
    """The cache filter, which caches reads in blocks of 256 KiB."""

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
        """An existing file, not in a directory."""
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


class Httpfs2(Tool):
    """httpfs2, which shows one URL as a file and caches nothing."""

    name = "httpfs2"
    tasks = Tool.tasks | {Task.LOOK}

    @classmethod
    def version(cls) -> str:
        return need("httpfs2")

    def command(self) -> Command:
        return ["httpfs2", "-f", self.way.url, self.mountpoint]


class Ratarmount(Tool):
    """ratarmount, which mounts the content of an ISO."""

    name = "ratarmount"
    tasks = frozenset({Task.LOOK})
    mounts_tree = True

    @classmethod
    def version(cls) -> str:
        return first_line(["ratarmount", "--version"])

    def command(self) -> Command:
        self.environment["XDG_CACHE_HOME"] = os.fspath(self.room)
        return ["ratarmount", "--foreground", self.way.url, self.mountpoint]

    def listing(self) -> Command:
        return ["find", self.mountpoint, "-ls"]

    def extraction(self, name: str) -> Command:
        return ["cat", self.mountpoint / name]


class Download(Tool):
    """A full download with curl, followed by local reads."""

    name = "download"
    tasks = frozenset({Task.LOOK, Task.HELLO})

    @classmethod
    def version(cls) -> str:
        return curl_version()

    def command(self) -> Command:
        return ["curl", "--silent", "--fail", "--output", self.target, self.way.url]


class Curl(Tool):
    """The limit of the link: curl, and keep-alive connections with one request at a time."""

    name = "curl"
    limit = True

    @classmethod
    def version(cls) -> str:
        return curl_version()

    @property
    def target(self) -> str:
        """The URL, which exists already."""
        return self.way.url

    def start(self) -> None:
        """Nothing to start."""


class Local(Tool):
    """The limit with a downloaded image: the plain file on disk."""

    name = "local"
    limit = True

    @classmethod
    def version(cls) -> str:
        return f"Linux {os.uname().release}"

    @property
    def target(self) -> str:
        """The local file, which exists already."""
        return os.fspath(self.image.path)

    def start(self) -> None:
        """Nothing to start."""


class LazyfsFill(Lazyfs):
    """lazyfs with the background fill, if this version has it."""

    name = "lazyfs-fill"
    tasks = Tool.tasks
    options = ("--fill",)

    @classmethod
    def version(cls) -> str:
        if "--fill" not in system.run([*lazyfs_command(), "--help"]):
            raise system.Failed("this lazyfs has no --fill")
        return super().version()


TOOLS: dict[str, type[Tool]] = {
    tool.name: tool
    for tool in (Lazyfs, LazyfsFill, LazyfsLoop, LazyfsLoopFill, NbdkitCurl, NbdkitCow, NbdkitCache,
                 QemuStorageDaemon, Rclone, Httpdirfs, Httpfs2, Ratarmount, Download, LazyfsServe,
                 NbdkitServesCurl, NbdkitServesFile, Curl, Local)
}  # fmt: skip


def first_line(command: Sequence[str]) -> str:
    """The first line that a program prints. Raises Failed."""
    return system.run(command).split("\n", 1)[0]


def curl_version() -> str:
    """The version of curl. Raises Failed if it is not installed."""
    return " ".join(system.run(["curl", "--version"]).split()[:2])


def need(program: str) -> str:
    """The name of a program without a version option. Raises Failed if it is not installed."""
    if shutil.which(program) is None:
        raise system.Failed(f"{program} is not installed")
    return program


def variant(text: str) -> type[Lazyfs]:
    """A lazyfs with other options, given as ``NAME=OPTION...``; for ``--variant``."""
    name, _, options = text.partition("=")
    return type("Variant", (Lazyfs,), {"name": name, "options": tuple(options.split())})

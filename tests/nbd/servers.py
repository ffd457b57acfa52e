"""``lazyfs serve`` and other NBD servers, each for as long as a block lasts."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from real.mounts import COMMAND_LIMIT, LAZYFS, Lab, environment, need_tool, run_well
from real.servers import free_port
from real.waiting import eventually


def uri_of(socket: Path, export: str = "") -> str:
    return f"nbd+unix:///{export}?socket={socket}"


@dataclass
class Server:
    """A server of lazyfs. ``uris``: what it has printed."""

    socket: Path
    log: Path
    pid: int
    uris: list[str]

    @property
    def uri(self) -> str:
        return self.uris[0]

    def peak_memory(self) -> int:
        """Bytes (VmHWM of proc(5))."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        (line,) = [line for line in status.splitlines() if line.startswith("VmHWM:")]
        return int(line.split()[1]) * 1024

    def has_ended(self) -> bool:
        return not Path(f"/proc/{self.pid}").exists()


@contextlib.contextmanager
def serving(lab: Lab, *arguments: str, troubled: bool = False) -> Iterator[Server]:
    """``lazyfs serve --unix SOCKET ARGUMENTS``, in the background. It must end on SIGTERM.

    ``troubled``: it may log warnings; otherwise none is accepted.
    """
    socket, log, pid_file = (lab.directory / f"nbd.{kind}" for kind in ("sock", "log", "pid"))
    common = ["--unix", socket, "--pidfile", pid_file, "--log-file", log]
    done = lab.start("serve", *common, "--cache-dir", lab.cache, *arguments)
    assert done.returncode == 0, done.stderr
    server = Server(socket, log, int(pid_file.read_text()), done.stdout.split())
    try:
        yield server
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGTERM)
        try:
            eventually(server.has_ended, "the server ends on SIGTERM", 10)
        except AssertionError:
            os.kill(server.pid, signal.SIGKILL)
            raise
    assert not socket.exists()
    said = log.read_text()
    assert troubled or not any(f" {level} " in said for level in ("WARNING", "ERROR")), said


@contextlib.contextmanager
def captive(lab: Lab, *arguments: str) -> Iterator["subprocess.Popen[bytes]"]:
    """``lazyfs ARGUMENTS`` in the foreground, with pipes to it."""
    process = subprocess.Popen(
        [*LAZYFS, *arguments],
        env=environment(lab.home),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate(timeout=COMMAND_LIMIT)


@contextlib.contextmanager
def foreign(command: Sequence[str | Path], socket: Path) -> Iterator[str]:
    """A server that stays in the foreground and listens on a Unix socket; its URI."""
    program = str(command[0])
    need_tool(program, {"qemu-nbd": "qemu-utils"}.get(program, program))
    process = subprocess.Popen([str(word) for word in command], stdin=subprocess.DEVNULL)
    try:
        eventually(socket.exists, f"{command[0]} listens")
        yield uri_of(socket)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait(10)
        socket.unlink(missing_ok=True)


@contextlib.contextmanager
def nbd_server(directory: Path, export: str, image: Path) -> Iterator[str]:
    """nbd-server, which goes to the background by itself; the URI of its only export."""
    config, pid_file, port = directory / "config", directory / "pid", free_port()
    config.write_text(
        f"[generic]\nport = {port}\nlistenaddr = 127.0.0.1\n"
        f"[{export}]\nexportname = {image}\nreadonly = true\n"
    )
    run_well([need_tool("nbd-server", "nbd-server"), "-C", config, "-p", pid_file])
    eventually(lambda: pid_file.exists() and pid_file.read_text() != "", "nbd-server listens")
    try:
        yield f"nbd://127.0.0.1:{port}/{export}"
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


@contextlib.contextmanager
def nbdkit(directory: Path, *arguments: str | Path) -> Iterator[str]:
    """``nbdkit ARGUMENTS`` on a Unix socket; its URI."""
    socket = directory / "nbdkit.sock"
    with foreign(["nbdkit", "-f", "-U", socket, *arguments], socket) as uri:
        yield uri


class Authority:
    """Certificates for a server and a client, named as nbdkit names them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        directory.mkdir()
        self._make("ca", "/CN=authority", [])
        for kind, name in (("server", "localhost"), ("client", "client")):
            signed_by = ["-CA", self._path("ca-cert"), "-CAkey", self._path("ca-key")]
            self._make(kind, f"/CN={name}", [*signed_by, "-addext", f"subjectAltName=DNS:{name}"])

    def _make(self, kind: str, subject: str, more: Sequence[str]) -> None:
        tool = need_tool("openssl", "openssl")
        files = ["-keyout", self._path(f"{kind}-key"), "-out", self._path(f"{kind}-cert")]
        key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"]
        run_well([tool, "req", "-x509", "-days", "2", *key, "-subj", subject, *files, *more])

    def _path(self, name: str) -> str:
        return str(self.directory / f"{name}.pem")

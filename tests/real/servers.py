"""HTTP servers on loopback: installed real ones, and a scripted one."""

import contextlib
import errno
import os
import random
import select
import shutil
import socket
import socketserver
import ssl
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import responses
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from lazyfs.sources.http import FIRST_BYTES

from .waiting import eventually

HTTP_DATE = "Mon, 06 Jan 2025 10:00:00 GMT"
MTIME = 1736157600  # HTTP_DATE in POSIX seconds

_START_WITHIN = 20.0  # seconds
_APACHE_MODULES = Path("/usr/lib/apache2/modules")


class RealServer:
    """A server program that serves ``root`` on its own port; ``with`` starts and ends it.

    It keeps its port between ``stop`` and ``start``.
    """

    program = ""  # looked up on PATH
    package = ""  # its Debian package

    def __init__(self, root: Path) -> None:
        self.root = root
        self.port = free_port()
        self._home = Path(tempfile.mkdtemp(prefix="lazyfs-server-"))
        self._home.chmod(0o755)  # accessible to a server that drops root privileges
        self.access_log = self._home / "access.log"
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        if not find_program(self.program):
            shutil.rmtree(self._home)
            pytest.skip(f"{self.program} is not installed (Debian package {self.package})")
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        shutil.rmtree(self._home)

    def url(self, name: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}/{name}"

    def start(self) -> None:
        with open(self._home / "output", "ab") as output:
            self._process = subprocess.Popen(
                self.command(), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )
        try:
            eventually(self._is_up, f"{self.program} answers", _START_WITHIN)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(10)
        self._process = None

    def body_bytes(self) -> int:
        """Body bytes sent since the start, by the access log."""
        return sum(int(line.split(" ")[0]) for line in self._log_lines())

    def request_count(self) -> int:
        return len(self._log_lines())

    def command(self) -> list[str]:
        raise NotImplementedError

    def configure(self, text: str) -> str:
        """Write the configuration file; returns its path."""
        path = self._home / "conf"
        path.write_text(text)
        return str(path)

    def _log_lines(self) -> list[str]:
        return self.access_log.read_text().splitlines() if self.access_log.exists() else []

    def _is_up(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            output = (self._home / "output").read_text(errors="replace")
            pytest.fail(f"{self.program} ended: {output}")
        with socket.socket() as client:
            return client.connect_ex(("127.0.0.1", self.port)) == 0


class Nginx(RealServer):
    """nginx. ``rate``: bytes per second per answer, 0 for no limit; applied by ``start``."""

    rate = 0

    program = "nginx"
    package = "nginx-light"

    def command(self) -> list[str]:
        kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
        spaces = "\n".join(f"{kind}_temp_path {self._home}/{kind};" for kind in kinds)
        conf = self.configure(
            f"""
            daemon off;
            master_process off;
            pid {self._home}/pid;
            error_log {self._home}/error.log;
            events {{ worker_connections 256; }}
            http {{
                {spaces}
                log_format bytes '$body_bytes_sent $request_method $uri $http_range';
                access_log {self.access_log} bytes;
                sendfile on;
                server {{
                    listen 127.0.0.1:{self.port};
                    root {self.root};
                    limit_rate {self.rate};
                }}
            }}
            """
        )
        return [find_program("nginx"), "-c", conf, "-p", f"{self._home}", "-e", "stderr"]


class Apache(RealServer):
    program = "apache2"
    package = "apache2-bin"

    def command(self) -> list[str]:
        modules = "\n".join(
            f"LoadModule {name}_module {_APACHE_MODULES}/mod_{name}.so"
            for name in ("mpm_event", "authz_core")
        )
        user = "User www-data\nGroup www-data\n" if os.geteuid() == 0 else ""
        conf = self.configure(
            f"""
            ServerRoot {self._home}
            ServerName localhost
            Listen 127.0.0.1:{self.port}
            PidFile {self._home}/pid
            Mutex file:{self._home}
            ErrorLog {self._home}/error.log
            {modules}
            {user}
            StartServers 1
            DocumentRoot {self.root}
            LogFormat "%B %m %U %{{Range}}i" bytes
            CustomLog {self.access_log} bytes
            """.replace("            ", "")
        )
        return [find_program("apache2"), "-f", conf, "-D", "FOREGROUND"]


class Lighttpd(RealServer):
    program = "lighttpd"
    package = "lighttpd"

    def command(self) -> list[str]:
        conf = self.configure(
            f"""
            server.modules = ("mod_accesslog")
            server.document-root = "{self.root}"
            server.bind = "127.0.0.1"
            server.port = {self.port}
            server.errorlog = "{self._home}/error.log"
            mimetype.assign = ("" => "application/octet-stream")
            accesslog.filename = "{self.access_log}"
            accesslog.format = "%b %m %U %{{Range}}i"
            """
        )
        return [find_program("lighttpd"), "-D", "-f", conf]


class WithoutRanges(RealServer):
    """Python's own server, which sends whole files only."""

    program = sys.executable
    package = "python3"

    def command(self) -> list[str]:
        bind = ["--bind", "127.0.0.1", "--directory", str(self.root)]
        return [sys.executable, "-m", "http.server", *bind, str(self.port)]


def find_program(name: str) -> str:
    """The path of a program, also in root's usual PATH; empty if it is not installed."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin") or ""


def free_port() -> int:
    """A free port, which stays free while its server is stopped.

    It is below the kernel's range for outgoing connections (ip_local_port_range in ip(7)): a client
    that retries a port in that range may be assigned it, and connect to itself.
    """
    for port in random.SystemRandom().sample(range(20000, 32000), 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == errno.ECONNREFUSED:
                return port
    pytest.fail("no port is free")


class Certificates:
    """A self-signed certificate for 127.0.0.1."""

    def __init__(self, directory: Path) -> None:
        self.file = directory / "certificate.pem"
        self._key = directory / "key.pem"
        what = ["-subj", "/CN=lazyfs test", "-addext", "subjectAltName=IP:127.0.0.1"]
        made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
        files = ["-keyout", str(self._key), "-out", str(self.file)]
        command = ["openssl", "req", "-x509", "-days", "2", *made, *what, *files]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr

    def server(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.file, self._key)
        return context


# The scripted server


@dataclass(frozen=True)
class Request:
    """A client's request. Header names are in lower case."""

    path: str
    headers: dict[str, str]

    @property
    def span(self) -> tuple[int, int] | None:
        """The first and last byte requested; None without a Range."""
        value = self.headers.get("range", "")
        if not value.startswith("bytes=") or self.asks_for_the_end:
            return None
        first, _, last = value[6:].partition("-")
        return int(first), int(last)

    @property
    def asks_for_the_end(self) -> bool:
        """Whether it asks for the last byte, wherever that is."""
        return self.headers.get("range") == "bytes=-1"

    @property
    def opens(self) -> bool:
        """Whether this may be the request that opens an image, cached or new."""
        return self.span in ((0, 0), (0, FIRST_BYTES - 1))


@dataclass
class Answer:
    """The server's answer. ``hang_up``: close the connection after the body.

    A header field with an empty value is not sent, so that Content-Length can be left out.
    """

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    hang_up: bool = False

    def head(self) -> bytes:
        """The status line and the header, as sent."""
        counted = {"Content-Length": str(len(self.body))} | self.headers
        fields = [f"{name}: {value}" for name, value in counted.items() if value]
        lines = [f"HTTP/1.1 {self.status} {responses.get(self.status, '')}", *fields, "", ""]
        return "\r\n".join(lines).encode("latin-1")


@dataclass
class Served:
    """A file on the server; the fields may change while it runs."""

    content: bytes
    etag: str | None = '"v1"'
    last_modified: str | None = HTTP_DATE

    def validators(self) -> dict[str, str]:
        pairs = (("ETag", self.etag), ("Last-Modified", self.last_modified))
        return {name: value for name, value in pairs if value is not None}


class Wire:
    """A connection, from the server's side."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection

    def send(self, raw: bytes) -> None:
        self._connection.sendall(raw)

    def reset(self) -> None:
        """Break the connection like a crashed machine, with a RST."""
        at_once = struct.pack("ii", 1, 0)
        self._connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self._connection.close()
        raise ConnectionAbortedError

    def wait(self, seconds: float | None) -> None:
        """Be silent for this many seconds, or (None) for ever.

        Raises ConnectionAbortedError as soon as either side has ended the connection.
        """
        watch = select.poll()
        watch.register(self._connection, select.POLLRDHUP)
        if watch.poll(None if seconds is None else seconds * 1000):
            raise ConnectionAbortedError


Behaviour = Callable[[Request], Answer | None]


class Scripted:
    """A server that records each request, and answers according to ``behaviour``.

    If that returns None, as by default, the answer is the right one. A behaviour runs in the thread
    of its connection, so it may block.
    """

    # Whether ``stop`` waits for the threads of connections, which must then block on nothing else.
    threads_end_with_connections = False

    def __init__(self, **files: bytes) -> None:
        """``files``: content by name; more can be added to ``self.files`` later, by path.

        If ``tls`` is set before ``start``, it serves HTTPS.
        """
        self.tls: ssl.SSLContext | None = None
        self.files = {f"/{name}": Served(content) for name, content in files.items()}
        self.requests: list[Request] = []
        self.behaviour: Behaviour = lambda _: None
        self.failures: list[BaseException] = []  # defects of the script itself
        self._listener: _Listener | None = None
        self._thread: threading.Thread | None = None
        self.port = free_port()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.stop()
        if error is None:
            assert not self.failures

    def url(self, name: str, host: str = "127.0.0.1") -> str:
        return f"{'https' if self.tls else 'http'}://{host}:{self.port}/{name}"

    def start(self) -> None:
        """Listen; after a ``stop``, on the same port.

        Retried, since a connecting client may have been assigned that very port for its own end.
        """
        made: list[_Listener] = []

        def listens() -> bool:
            with contextlib.suppress(OSError):
                made.append(_Listener(self))
            return bool(made)

        eventually(listens, f"port {self.port} is free", _START_WITHIN)
        self._listener = made[0]
        self._thread = threading.Thread(target=self._listener.serve_forever, args=(0.02,))
        self._thread.start()

    def stop(self) -> None:
        """Stop like a crashed server: all connections break."""
        if self._listener is None or self._thread is None:
            return
        self._listener.shutdown()
        self._thread.join()
        self._listener.break_connections()
        self._listener.server_close()
        self._listener = None

    def converse(self, request: Request, wire: Wire) -> bool:
        """Answer one request; returns whether to keep the connection."""
        self.requests.append(request)
        answer = self.behaviour(request) or self.right_answer(request)
        wire.send(answer.head() + answer.body)
        return not answer.hang_up

    def right_answer(self, request: Request) -> Answer:
        """The answer of a correct server."""
        served = self.files.get(request.path)
        if served is None:
            return Answer(404)
        size = len(served.content)
        if request.asks_for_the_end:
            request = Request(request.path, {"range": f"bytes={size - 1}-{size - 1}"})
        if request.span is None:
            return Answer(200, served.validators(), served.content)
        first, last = request.span
        if first >= size:
            return Answer(416, {"Content-Range": f"bytes */{size}"})
        last = min(last, size - 1)
        return Answer(
            206,
            {**served.validators(), "Content-Range": f"bytes {first}-{last}/{size}"},
            served.content[first : last + 1],
        )


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    request_queue_size = 64

    def __init__(self, script: Scripted) -> None:
        self.script = script
        self.daemon_threads = not script.threads_end_with_connections
        self._connections: set[socket.socket] = set()
        super().__init__(("127.0.0.1", script.port), _Handler)

    def get_request(self) -> tuple[socket.socket, Any]:
        request, address = super().get_request()
        if self.script.tls is not None:
            # The thread of the connection makes the handshake, on its first read.
            request = self.script.tls.wrap_socket(
                request, server_side=True, do_handshake_on_connect=False
            )
        return request, address

    def process_request(self, request: Any, client_address: Any) -> None:
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._connections.discard(request)
        super().shutdown_request(request)

    def break_connections(self) -> None:
        for connection in list(self._connections):
            try:
                connection.shutdown(socket.SHUT_RDWR)
            except OSError:  # already closed
                continue

    def handle_error(self, request: object, client_address: object) -> None:
        error = sys.exception()
        if error is not None and not isinstance(error, ConnectionError | ssl.SSLError):
            self.script.failures.append(error)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def do_GET(self) -> None:
        headers = {name.lower(): value for name, value in self.headers.items()}
        goes_on = self.server.script.converse(Request(self.path, headers), Wire(self.connection))
        self.close_connection = self.close_connection or not goes_on

    def log_message(self, *args: object) -> None:
        """Requests are recorded, not printed."""

"""A web server for one file: HTTP/1.1, kept-alive connections, ranges, validators (RFC 9110)."""

import http.server
import re
import socketserver
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from pathlib import Path

from lazyfs.core.options import KIB

_CHUNK = 256 * KIB  # bytes sent at a time
_RANGE = re.compile(r"bytes=(\d{0,20})-(\d{0,20})")


@dataclass
class Traffic:
    """The requests so far, and the bytes sent: of the file, without headers."""

    requests: int = 0
    sent: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def count_request(self) -> None:
        with self._lock:
            self.requests += 1

    def count_sent(self, length: int) -> None:
        with self._lock:
            self.sent += length


@contextmanager
def serve(file: Path) -> Iterator[tuple[str, Traffic]]:
    """Serve ``file`` on a free port of the loopback interface; yields its URL, and the traffic."""
    traffic = Traffic()
    with _Server(file, traffic) as server:
        # A short poll only makes the end quick; requests are seen at once.
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}{server.path}", traffic
        finally:
            server.shutdown()
            thread.join()


def requested_range(header: str, size: int) -> range | None:
    """The range that a Range header field requests, of a file of ``size`` bytes.

    Empty if it is beyond the file; None if the field must be ignored: not in bytes, malformed, or
    with several ranges, which a server need not serve (RFC 9110 section 14.2).
    """
    match = _RANGE.fullmatch(header.strip())
    if match is None or not (match[1] or match[2]):
        return None
    if not match[1]:
        return range(max(0, size - int(match[2])), size)
    first, last = int(match[1]), int(match[2] or size)
    if match[2] and last < first:
        return None
    return range(first, min(last + 1, size))


class _Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True  # each kept-alive connection has a waiting thread

    def __init__(self, file: Path, traffic: Traffic) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.traffic = traffic
        self.file = file
        self.path = f"/{file.name}"
        status = file.stat()
        self.size = status.st_size
        self.mtime = int(status.st_mtime)
        self.etag = f'"{status.st_mtime_ns:x}-{status.st_size:x}"'


class _Handler(http.server.BaseHTTPRequestHandler):
    server: _Server
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # headers and body are two writes

    def do_GET(self) -> None:
        self.server.traffic.count_request()
        if self.path != self.server.path:
            self.send_error(HTTPStatus.NOT_FOUND)
            return
        refusal = self._precondition()
        if refusal is not None:
            self._head(refusal, {})
            return
        wanted = self._range()
        if wanted is None:
            self._send(HTTPStatus.OK, range(self.server.size), {})
        elif not wanted:
            status = HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE
            self._send(status, wanted, {"Content-Range": f"bytes */{self.server.size}"})
        else:
            content_range = f"bytes {wanted.start}-{wanted.stop - 1}/{self.server.size}"
            self._send(HTTPStatus.PARTIAL_CONTENT, wanted, {"Content-Range": content_range})

    def do_HEAD(self) -> None:
        self.do_GET()

    def handle(self) -> None:
        try:
            super().handle()
        except ConnectionError:  # the reader has disconnected
            self.close_connection = True

    def log_message(self, format: str, *arguments: object) -> None:  # noqa: A002
        """Log nothing: the terminal is for the tour."""

    def _precondition(self) -> HTTPStatus | None:
        """The status that ends this request early, by RFC 9110 section 13.2.2; None for none."""
        if "If-Match" in self.headers:
            if not self._names_us("If-Match"):
                return HTTPStatus.PRECONDITION_FAILED
        elif self._modified_since("If-Unmodified-Since") is True:
            return HTTPStatus.PRECONDITION_FAILED
        if "If-None-Match" in self.headers:
            return HTTPStatus.NOT_MODIFIED if self._names_us("If-None-Match") else None
        if self._modified_since("If-Modified-Since") is False:
            return HTTPStatus.NOT_MODIFIED
        return None

    def _names_us(self, field_name: str) -> bool:
        """Whether this field contains our entity tag; weak tags count for If-None-Match only."""
        tags = [tag.strip() for tag in self.headers[field_name].split(",")]
        if field_name == "If-None-Match":
            tags = [tag.removeprefix("W/") for tag in tags]
        return "*" in tags or self.server.etag in tags

    def _modified_since(self, field_name: str) -> bool | None:
        """Whether the file is newer than the date in this field; None without a valid date."""
        try:
            date = parsedate_to_datetime(self.headers.get(field_name, ""))
            return self.server.mtime > date.timestamp()
        except (ValueError, OverflowError):
            return None

    def _range(self) -> range | None:
        """The range to send; None for the whole file."""
        condition = self.headers.get("If-Range")
        ours = (self.server.etag, self.date_time_string(self.server.mtime))
        if self.command != "GET" or (condition is not None and condition.strip() not in ours):
            return None
        return requested_range(self.headers.get("Range", ""), self.server.size)

    def _send(self, status: HTTPStatus, content: range, headers: dict[str, str]) -> None:
        length = {"Content-Length": str(len(content)), "Content-Type": "application/octet-stream"}
        self._head(status, {**length, **headers})
        if self.command == "HEAD":
            return
        with self.server.file.open("rb") as file:
            file.seek(content.start)
            for start in range(content.start, content.stop, _CHUNK):
                piece = file.read(min(_CHUNK, content.stop - start))
                self.server.traffic.count_sent(len(piece))  # before the reader can have it
                self.wfile.write(piece)

    def _head(self, status: HTTPStatus, headers: dict[str, str]) -> None:
        self.send_response(status)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("ETag", self.server.etag)
        self.send_header("Last-Modified", self.date_time_string(self.server.mtime))
        if status is HTTPStatus.PRECONDITION_FAILED:
            self.send_header("Content-Length", "0")
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

"""A real HTTP server with fault injection.

``FaultServer`` answers correctly unless its script returns a ``Fault`` for a request. A fault is a
value that corrupts the right answer. It always ends as soon as the client disconnects or the server
stops; ``stop`` leaves no thread behind.
"""

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from email.utils import formatdate
from itertools import count
from typing import Literal

from real.servers import MTIME, Answer, Request, Scripted, Served, Wire

_MOST = 256 << 20  # bytes of an endless answer, more than any client should accept
_ONWARD = count(1)  # makes each URL of an endless redirect unique


@dataclass(frozen=True)
class Case:
    """One request, and the means to answer it."""

    request: Request
    wire: Wire
    server: "FaultServer"

    @property
    def right(self) -> Answer:
        return self.server.right_answer(self.request)

    def send(self, answer: Answer) -> None:
        self.wire.send(answer.head() + answer.body)


class Fault:
    """A fault."""

    def answer(self, case: Case) -> bool:
        """Answer with this fault; returns whether to keep the connection."""
        raise NotImplementedError


@dataclass(frozen=True)
class Status(Fault):
    """Another answer, well-formed; the connection is kept."""

    code: int
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""

    def answer(self, case: Case) -> bool:
        case.send(Answer(self.code, dict(self.headers), self.body))
        return True


@dataclass(frozen=True)
class Delay(Fault):
    """The right answer, ``seconds`` late."""

    seconds: float

    def answer(self, case: Case) -> bool:
        case.wire.wait(self.seconds)
        case.send(case.right)
        return True


@dataclass(frozen=True)
class Stall(Fault):
    """Silence for good, ``after`` bytes of the right body; -1: before the head."""

    after: int = -1

    def answer(self, case: Case) -> bool:
        if self.after >= 0:
            case.wire.send(case.right.head() + case.right.body[: self.after])
        case.wire.wait(None)
        return False


@dataclass(frozen=True)
class Cut(Fault):
    """The connection is closed ``after`` bytes of the right body."""

    after: int

    def answer(self, case: Case) -> bool:
        case.wire.send(case.right.head() + case.right.body[: self.after])
        return False


@dataclass(frozen=True)
class Reset(Fault):
    """The connection is reset."""

    def answer(self, case: Case) -> bool:
        case.wire.reset()
        return False


@dataclass(frozen=True)
class CloseBeforeAnswer(Fault):
    def answer(self, case: Case) -> bool:
        return False


@dataclass(frozen=True)
class WrongRange(Fault):
    """The right answer to another request: the range, moved by ``shift`` bytes."""

    shift: int

    def answer(self, case: Case) -> bool:
        first, last = case.request.span or (0, 0)
        moved = f"bytes={max(0, first + self.shift)}-{max(0, last + self.shift)}"
        case.send(case.server.right_answer(replace(case.request, headers={"range": moved})))
        return True


@dataclass(frozen=True)
class With(Fault):
    """The right answer with replaced header fields; an empty value removes a field."""

    headers: tuple[tuple[str, str], ...]

    def answer(self, case: Case) -> bool:
        right = case.right
        right.headers |= dict(self.headers)
        case.send(right)
        return True


@dataclass(frozen=True)
class WrongTotal(Fault):
    """The right range, with another size of the image, which may be any text."""

    size: int | str

    def answer(self, case: Case) -> bool:
        span = case.right.headers.get("Content-Range", "").partition("/")[0]
        return With((("Content-Range", f"{span}/{self.size}"),)).answer(case)


@dataclass(frozen=True)
class WrongValidator(Fault):
    """The right bytes with the entity tag of another version."""

    def answer(self, case: Case) -> bool:
        return With((("ETag", '"another version"'),)).answer(case)


@dataclass(frozen=True)
class Garbage(Fault):
    """These bytes, followed by the end of the connection, or silence."""

    raw: bytes
    hang_up: bool = True

    def answer(self, case: Case) -> bool:
        case.wire.send(self.raw)
        if not self.hang_up:
            case.wire.wait(None)
        return False


@dataclass(frozen=True)
class Drip(Fault):
    """The right answer, slow from the ``after``-th byte of the body on; -1: from the head on."""

    bytes_per_second: float
    after: int = -1

    def answer(self, case: Case) -> bool:
        right = case.right
        raw = right.head() + right.body
        start = len(right.head()) + self.after if self.after >= 0 else 0
        case.wire.send(raw[:start])
        step = max(1, int(self.bytes_per_second / 10))
        for position in range(start, len(raw), step):
            case.wire.wait(step / self.bytes_per_second)
            case.wire.send(raw[position : position + step])
        return True


@dataclass(frozen=True)
class Endless(Fault):
    """An answer that never ends. ``status``: for an endless body, which begins correctly."""

    kind: Literal["headers", "line", "body", "interim", "redirects"]
    status: int = 206

    def answer(self, case: Case) -> bool:
        if self.kind == "redirects":
            path = case.request.path.partition("?")[0]
            case.send(Answer(302, {"Location": f"{path}?{next(_ONWARD)}"}))
            return True
        sent = 0
        for piece in self._pieces(case.right):
            case.wire.send(piece)
            sent += len(piece)
            if sent > _MOST:
                break
        return False

    def _pieces(self, right: Answer) -> Iterator[bytes]:
        if self.kind == "body":
            fields = right.headers | {"Content-Length": ""}
            yield replace(right, status=self.status, headers=fields).head()
            yield right.body
        elif self.kind != "interim":
            yield b"HTTP/1.1 206 Partial Content\r\nX: "
        again = {
            "headers": b"x\r\nX-More: " * 1000,
            "line": b"x" * 10_000,
            "body": b"\0" * 65536,
            "interim": b"HTTP/1.1 103 Early Hints\r\n\r\n" * 100,
        }[self.kind]
        while True:
            yield again


Script = Callable[[Request], Fault | None]


class FaultServer(Scripted):
    """A server whose ``script`` returns the fault for each request; None: no fault."""

    threads_end_with_connections = True

    def __init__(self, **files: bytes) -> None:
        super().__init__(**files)
        self.script: Script = lambda _: None
        self.faults = 0  # number injected so far
        self._versions = count(2)
        self._lock = threading.Lock()

    def replace(self, name: str, content: bytes) -> None:
        """Replace the image on the server: other bytes, entity tag and date."""
        version = next(self._versions)
        modified = formatdate(MTIME + 3600 * version, usegmt=True)
        self.files[f"/{name}"] = Served(content, f'"v{version}"', modified)

    def converse(self, request: Request, wire: Wire) -> bool:
        fault = self.script(request)
        if fault is None:
            return super().converse(request, wire)
        with self._lock:
            self.requests.append(request)
            self.faults += 1
        return fault.answer(Case(request, wire, self))

"""How a running daemon is asked: JSON lines over its control socket. Pure.

Both sides speak in lines of UTF-8, each one JSON object. A client asks, and is answered before it
asks again::

    {"lazyfs": 1, "do": "status"}
    {"lazyfs": 1, "ok": {...}}
    {"lazyfs": 1, "do": "rate", "rate": "10M/s"}
    {"lazyfs": 1, "error": "...", "cure": "..."}

``lazyfs`` is the version of this protocol. A new command, or another field in an answer, is no new
version: who does not know a field leaves it alone. docs/control.rst has all commands.
"""

import json
from collections.abc import Mapping
from typing import Any

from lazyfs.core.errors import ControlError

VERSION = 1
LONGEST = 1 << 20  # bytes of a line
MOST_CELLS = 4096  # of a map

Fields = Mapping[str, Any]


def asking(command: str, fields: Fields) -> bytes:
    """The line that asks for a command."""
    return _line({"do": command, **fields})


def answering(result: Fields) -> bytes:
    """The line that says what came of it."""
    return _line({"ok": result})


def refusing(message: str, cure: str = "") -> bytes:
    """The line that says why nothing came of it."""
    return _line({"error": message, "cure": cure})


def asked(line: bytes) -> tuple[str, dict[str, Any]]:
    """The command and the fields of a client's line. Raises ControlError."""
    content = _content(line)
    command = content.pop("do", None)
    if not isinstance(command, str):
        raise ControlError("the request does not say what to do", 'send {"lazyfs": 1, "do": ...}')
    return command, content


def answered(line: bytes) -> dict[str, Any]:
    """What a daemon's line says. Raises ControlError, with the daemon's own words if it refused."""
    content = _content(line)
    if "error" in content:
        raise ControlError(str(content["error"]), str(content.get("cure", "")))
    if not isinstance(content.get("ok"), dict):
        raise ControlError("the daemon's answer makes no sense", "is it another lazyfs's?")
    result: dict[str, Any] = content["ok"]
    return result


def _line(content: Fields) -> bytes:
    return json.dumps({"lazyfs": VERSION, **content}).encode() + b"\n"


def _content(line: bytes) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ControlError(
            "this is no line of JSON", 'send lines like {"lazyfs": 1, "do": "status"}'
        ) from error
    if not isinstance(content, dict) or content.pop("lazyfs", None) != VERSION:
        raise ControlError(
            f"this does not speak version {VERSION} of lazyfs's control protocol",
            "use the same lazyfs on both sides",
        )
    return content

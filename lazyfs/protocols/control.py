"""The protocol of a daemon's control socket: JSON lines. Pure.

Both sides send lines of UTF-8, each one JSON object. A client sends a request, and reads the answer
before the next request::

    {"lazyfs": 1, "do": "status"}
    {"lazyfs": 1, "ok": {...}}
    {"lazyfs": 1, "do": "rate", "rate": "10M/s"}
    {"lazyfs": 1, "error": "...", "cure": "..."}

``lazyfs`` is the version of this protocol. New commands, or new fields in an answer, do not change
the version: unknown fields must be ignored. docs/control.rst has all commands.
"""

import json
from collections.abc import Mapping
from typing import Any, TypeVar

from lazyfs.core.errors import ControlError

VERSION = 1
LONGEST = 1 << 20  # bytes of a line
MOST_CELLS = 4096  # of a map
_LARGEST = 1 << 63  # of all numbers: sizes in bytes, and seconds

Fields = Mapping[str, Any]
_Number = TypeVar("_Number", int, float)


def asking(command: str, fields: Fields) -> bytes:
    """The line for a request."""
    return _line({"do": command, **fields})


def answering(result: Fields) -> bytes:
    """The line for a successful answer."""
    return _line({"ok": result})


def refusing(message: str, cure: str = "") -> bytes:
    """The line for an error."""
    return _line({"error": message, "cure": cure})


def asked(line: bytes) -> tuple[str, dict[str, Any]]:
    """Parse a client's line into command and fields. Raises ControlError."""
    content = _content(line)
    command = content.pop("do", None)
    if not isinstance(command, str):
        raise ControlError("the request does not say what to do", 'send {"lazyfs": 1, "do": ...}')
    return command, content


def answered(line: bytes) -> dict[str, Any]:
    """Parse a daemon's line. Raises ControlError, with the daemon's message if it is an error."""
    content = _content(line)
    if "error" in content:
        raise ControlError(str(content["error"]), str(content.get("cure", "")))
    if not isinstance(content.get("ok"), dict):
        raise ControlError("the daemon's answer makes no sense", "is it another lazyfs's?")
    result: dict[str, Any] = content["ok"]
    return result


def _line(content: Fields) -> bytes:
    return json.dumps({"lazyfs": VERSION, **content}).encode() + b"\n"


def _float(text: str) -> float:
    """A number that can be computed with. Raises ValueError."""
    return _bounded(float(text))


def _int(text: str) -> int:
    return _bounded(int(text))


def _bounded(number: _Number) -> _Number:
    if not abs(number) <= _LARGEST:  # NaN is neither smaller nor larger
        raise ValueError("a number beyond all that is counted here")
    return number


def _content(line: bytes) -> dict[str, Any]:
    try:
        # Python's decoder takes NaN and Infinity, which are no JSON.
        content = json.loads(line, parse_float=_float, parse_int=_int, parse_constant=_float)
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

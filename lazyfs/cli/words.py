"""What words on a command line stand for."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lazyfs.core.errors import UsageError

T = TypeVar("T")


def absolute(path: str) -> Path:
    """The path as it is now: the daemon works in another directory."""
    return Path(os.path.abspath(path))


def as_type(parse_text: Callable[[str], T]) -> Callable[[str], T]:
    """``parse_text`` as an argparse type: it would hide the message of any error but its own."""

    def convert(text: str) -> T:
        try:
            return parse_text(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert

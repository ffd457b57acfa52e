"""Conversion of words on the command line."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from lazyfs.core.errors import UsageError

T = TypeVar("T")


def absolute(path: str) -> Path:
    """The absolute path, because the daemon changes its working directory."""
    return Path(os.path.abspath(path))


def as_type(parse_text: Callable[[str], T]) -> Callable[[str], T]:
    """``parse_text`` as an argparse type: argparse hides the message of errors not its own."""

    def convert(text: str) -> T:
        try:
            return parse_text(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert

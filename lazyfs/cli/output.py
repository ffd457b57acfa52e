"""Flushing stdout, and turning a failed write into an error."""

import contextlib
import os
import sys
from collections.abc import Iterator

from lazyfs.core.errors import LazyfsError, OutputError
from lazyfs.core.texts import printable


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """Flush stdout at the end of the block. Raises OutputError or BrokenPipeError."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_stdout()
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def give_up_stdout() -> None:
    """Redirect a broken stdout to /dev/null, so that the interpreter's exit does not fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(error: LazyfsError) -> int:
    """Print an error in one line on stderr; returns its exit code."""
    print(f"lazyfs: {printable(str(error))}", file=sys.stderr)
    return error.exit_code

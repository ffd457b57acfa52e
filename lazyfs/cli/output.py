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


def open_standard_streams() -> None:
    """Put /dev/null in the place of closed standard descriptors.

    Otherwise the next files to be opened get these numbers, and then what is printed, or they are
    closed when the daemon gives its terminal up.
    """
    for fd, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(fd)
        except OSError:
            nothing = os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this
            os.set_inheritable(nothing, True)  # noqa: FBT003
        if getattr(sys, name) is None:  # as Python leaves it
            setattr(sys, name, open(fd, mode, closefd=False))  # noqa: SIM115  # until the end


def give_up_stdout() -> None:
    """Redirect a broken stdout to /dev/null, so that the interpreter's exit does not fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(error: LazyfsError) -> int:
    """Print an error in one line on stderr; returns its exit code."""
    print(f"lazyfs: {printable(str(error))}", file=sys.stderr)
    return error.exit_code

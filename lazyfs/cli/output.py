"""What becomes of what is printed: written, or an error."""

import contextlib
import os
import sys
from collections.abc import Iterator

from lazyfs.core.errors import LazyfsError, OutputError
from lazyfs.core.texts import printable


@contextlib.contextmanager
def printing() -> Iterator[None]:
    """What is printed in the block is written when it ends. Raises OutputError, BrokenPipeError."""
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        give_up_stdout()
        raise OutputError(f"the output cannot be written: {error.strerror}") from error


def give_up_stdout() -> None:
    """Nobody reads it, or nothing can be written: let the interpreter's end not fail for that."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)


def report(error: LazyfsError) -> int:
    """Tell the user of an error, in one line on stderr; returns the exit code it means."""
    print(f"lazyfs: {printable(str(error))}", file=sys.stderr)
    return error.exit_code

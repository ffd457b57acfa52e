"""What becomes of what is printed: written, or an error."""

import contextlib
import os
import sys
from collections.abc import Iterator

from lazyfs.errors import OutputError


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

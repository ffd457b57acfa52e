"""The command ``lazyfs``: dispatches a command line to the module of its command.

There is one module per command, with ``main(arguments) -> exit code`` and ``_parser()``. It is
imported on demand: ``lazyfs --help`` must not wait for the import of an event loop.
"""

import importlib
import sys
from collections.abc import Sequence

from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.output import give_up_stdout, open_standard_streams, report
from lazyfs.cli.parser import suggestion
from lazyfs.core.errors import LazyfsError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code: 0, 1 for an error, 2 for wrong usage."""
    open_standard_streams()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return run(arguments)
    except LazyfsError as error:
        return report(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # the reader of our output has closed it
        give_up_stdout()
        return 141  # a shell's status for a program ended by SIGPIPE


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Raises LazyfsError."""
    word = arguments[0] if arguments else "--help"
    if word in COMMANDS:
        command = importlib.import_module(f"lazyfs.cli.{word}")
        code = int(command.main(arguments[1:]))
        sys.stdout.flush()  # here, where a BrokenPipeError is handled
        return code
    if word == "__complete":
        from lazyfs.cli import complete

        return complete.main(arguments[1:])
    if not word.startswith("-") and "://" not in word:
        raise UsageError(
            f"{word!r} is neither a URL nor a command",
            suggestion(word, COMMANDS)
            or "lazyfs --help shows the commands, and a URL begins like https://",
        )
    from lazyfs.cli import mount

    return mount.main(arguments or ["--help"])

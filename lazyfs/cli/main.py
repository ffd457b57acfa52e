"""The command ``lazyfs``: from what was typed to the module that does it.

One module a command. Each has ``main(arguments) -> exit code`` and ``_parser()``, and is imported
only when it is asked for: ``lazyfs --help`` must not wait for an event loop to be imported.
"""

import importlib
import sys
from collections.abc import Sequence

from lazyfs.cli.commandtable import COMMANDS
from lazyfs.cli.output import report
from lazyfs.cli.parser import suggestion
from lazyfs.core.errors import LazyfsError, UsageError


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code: 0, 1 for an error, 2 for wrong usage."""
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return run(arguments)
    except LazyfsError as error:
        return report(error)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:  # who reads our output has seen enough
        from lazyfs.cli.output import give_up_stdout

        give_up_stdout()
        return 141  # as a shell says it of a program that SIGPIPE ended


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code. Raises LazyfsError."""
    word = arguments[0] if arguments else "--help"
    if word in COMMANDS:
        command = importlib.import_module(f"lazyfs.cli.{word}")
        code = int(command.main(arguments[1:]))
        sys.stdout.flush()  # here, where it is known what to do if nobody reads it
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

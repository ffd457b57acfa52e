"""The command ``lazyfs``: from what was typed to the module that does it.

One module a command. Each has ``main(arguments) -> exit code`` and ``_parser()``, and is imported
only when it is asked for: ``lazyfs --help`` must not wait for an event loop to be imported.
"""

import importlib
import sys
from collections.abc import Sequence

from lazyfs.cli.parser import Parser, suggestion
from lazyfs.errors import LazyfsError, UsageError
from lazyfs.texts import printable

GROUPS = {
    "use an image": {
        "mount": "show images as files in a directory (the default)",
        "loop": "mount the filesystem that is in an image",
        "attach": "show an image as a block device",
        "serve": "serve images to NBD clients",
        "umount": "unmount what lazyfs mounted",
        "detach": "detach what attach attached",
    },
    "look into an image": {
        "info": "show what an image is, and what its server can do",
        "ls": "show what is in an ISO image",
        "cat": "write files of an ISO image to stdout",
        "cp": "copy files out of an ISO image",
    },
    "see what runs": {
        "status": "show what runs, and how it is doing",
        "top": "watch a daemon at work",
        "map": "show which parts of an image are here",
        "metrics": "print metrics of what runs, for Prometheus",
    },
    "steer what runs": {
        "fill": "fetch all the rest of a mounted image",
        "pause": "fetch nothing that nobody waits for",
        "resume": "go on with what was paused",
        "rate": "limit how fast the rest is fetched",
        "preload": "fetch parts of an image before the rest",
        "handover": "move loop devices to the copy in the cache",
        "reload": "read logins again",
        "stop": "end a daemon, unless it is in use",
    },
    "look after things": {
        "cache": "look at what is cached, verify it, clean up",
        "config": "show what the configuration files say",
        "profile": "look at profiles, and make one of several",
    },
    "learn": {
        "demo": "a tour with no network at all",
        "help": "show the help of a command",
    },
}
COMMANDS = {name: what for group in GROUPS.values() for name, what in group.items()}


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


def report(error: LazyfsError) -> int:
    """Tell the user of an error, in one line on stderr; returns the exit code it means."""
    print(f"lazyfs: {printable(str(error))}", file=sys.stderr)
    return error.exit_code


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


def parser_of(command: str) -> Parser:
    """What a command knows of its options and arguments."""
    parser: Parser = importlib.import_module(f"lazyfs.cli.{command}")._parser()
    return parser

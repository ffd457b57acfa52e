"""``lazyfs stop WHERE``: end a daemon, unless it is in use."""

from collections.abc import Sequence

from lazyfs.cli.steer import tell


def main(arguments: Sequence[str]) -> int:
    return tell("stop", "End a daemon as SIGTERM does: unless it is in use.", arguments)

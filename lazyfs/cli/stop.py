"""``lazyfs stop WHERE``: end a daemon, unless it is in use."""

from collections.abc import Sequence

from lazyfs.cli.steer import tell


def main(arguments: Sequence[str]) -> int:
    return tell("stop", "End a daemon, unless its mount or device is in use.", arguments)

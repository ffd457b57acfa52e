"""``lazyfs resume WHERE``: go on with what ``lazyfs pause`` has stopped."""

from collections.abc import Sequence

from lazyfs.cli.steer import tell


def main(arguments: Sequence[str]) -> int:
    return tell("resume", "Go on with what lazyfs pause has stopped.", arguments)

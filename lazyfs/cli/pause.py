"""``lazyfs pause WHERE``: fetch nothing that nobody waits for."""

from collections.abc import Sequence

from lazyfs.cli.steer import tell


def main(arguments: Sequence[str]) -> int:
    return tell("pause", "Fetch nothing that nobody waits for, until lazyfs resume.", arguments)

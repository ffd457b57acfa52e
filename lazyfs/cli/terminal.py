"""What is printed for people, and how names from elsewhere get onto a terminal safely."""

import stat
import sys
import time

from lazyfs.iso.tree import Kind, Node


def printable(text: str) -> str:
    """``text`` without what a terminal would obey, or cannot show: that becomes ``?``, as in ls."""
    return "".join(c if c.isprintable() else "?" for c in text)


def for_stdout(text: str) -> str:
    """A name as it is printed: as it is into a pipe, printable on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def accept_any_name() -> None:
    """Let stdout take names that are no UTF-8: as the bytes that they are."""
    sys.stdout.reconfigure(errors="surrogateescape")  # type: ignore[union-attr]  # a text file


def long_row(node: Node) -> tuple[str, str, str, str, str, str]:
    """Mode, links, owner, group, size and time of a node, as ``ls -ln`` has them."""
    size = ", ".join(map(str, node.device)) if _is_device(node) else str(node.size)
    return (
        stat.filemode(node.st_mode),
        str(node.nlink),
        str(node.uid),
        str(node.gid),
        size,
        time.strftime("%Y-%m-%d %H:%M", time.localtime(node.mtime)),
    )


def _is_device(node: Node) -> bool:
    return node.kind in (Kind.CHARACTER_DEVICE, Kind.BLOCK_DEVICE)

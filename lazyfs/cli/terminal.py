"""What is printed for people, and how names from elsewhere get onto a terminal safely."""

import contextlib
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from lazyfs.core.texts import printable
from lazyfs.formats.tree import Kind, Node


def for_stdout(text: str) -> str:
    """A name as it is printed: as it is into a pipe, printable on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def is_utf8() -> bool:
    """Whether stdout takes more than ASCII."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def accept_any_name() -> None:
    """Let stdout take any name, also one that is no UTF-8: as the bytes that it is."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]  # a text file


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


class Bar:
    """A bar that shows how many bytes of how many are done."""

    def __init__(self, update: Callable[..., None]) -> None:
        """``update``: takes ``total``, ``advance`` and ``completed``, as rich's bars do."""
        self._update = update

    def expect(self, total: int) -> None:
        self._update(total=total)

    def advance(self, length: int) -> None:
        self._update(advance=length)

    def at(self, done: int) -> None:
        self._update(completed=done)


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """A bar on stderr while the block lasts; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield Bar(lambda **_: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Bar(partial(bars.update, bars.add_task("", total=None)))

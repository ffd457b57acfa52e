"""Output for users: progress bars, and printing untrusted names safely on a terminal."""

import contextlib
import stat
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial

from lazyfs.core.texts import printable
from lazyfs.formats.tree import Kind, Node


def for_stdout(text: str) -> str:
    """A name for stdout: unchanged into a pipe, made printable on a terminal."""
    return printable(text) if sys.stdout.isatty() else text


def is_utf8() -> bool:
    """Whether stdout accepts more than ASCII."""
    return (sys.stdout.encoding or "").lower().startswith("utf")


def accept_any_name() -> None:
    """Let stdout accept any name, even if not UTF-8: its bytes are written unchanged."""
    sys.stdout.reconfigure(encoding="utf-8", errors="surrogateescape")  # type: ignore[union-attr]  # a text file


def long_row(node: Node) -> tuple[str, str, str, str, str, str]:
    """Mode, links, owner, group, size and time of a node, as in ``ls -ln``."""
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
    """A progress bar, in bytes."""

    def __init__(self, update: Callable[..., None]) -> None:
        """``update``: takes ``total``, ``advance`` and ``completed``, like rich's bars."""
        self._update = update

    def expect(self, total: int) -> None:
        self._update(total=total)

    def advance(self, length: int) -> None:
        self._update(advance=length)

    def at(self, done: int) -> None:
        self._update(completed=done)


@contextlib.contextmanager
def progress() -> Iterator[Bar]:
    """A progress bar on stderr while the block runs; hidden if stderr is not a terminal."""
    if not sys.stderr.isatty():
        yield Bar(lambda **_: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TransferSpeedColumn

    columns = BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        yield Bar(partial(bars.update, bars.add_task("", total=None)))

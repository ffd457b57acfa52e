"""``lazyfs demo``: the tour, shown on a terminal."""

from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from lazyfs.cli.parser import Parser
from lazyfs.core.errors import LazyfsError
from lazyfs.core.options import format_size

if TYPE_CHECKING:
    from rich.console import Console
    from rich.text import Text

    from lazyfs.cli.tour.tour import Outcome

_ABOUT = """\
Show what lazyfs does, with no network at all: make an ISO with a squashfs in
it, serve it from this machine, mount it by its URL, read a few files, and tell
how much of it had to travel. Everything is cleaned up.
"""
_EXAMPLE = """\
As root, the squashfs in the ISO is loop-mounted too. Needs squashfs-tools.

example:
  lazyfs demo
"""
_TITLE = "lazyfs: a remote image, read without downloading it"
_OWN_IMAGE = (
    "lazyfs https://host/image.iso /mnt/img",
    "mount -o loop,ro /mnt/img/image.iso /media",
)
_BAR_WIDTH = 30  # characters
_NARROWEST = 20  # characters: on a narrower terminal, lines may overflow


def main(arguments: Sequence[str]) -> int:
    _parser().parse_args(arguments)
    # Imported here, so that --help need not wait.
    from rich.console import Console

    from lazyfs.cli.tour import tour

    tour.check_requirements()
    try:
        _tell(Console(highlight=False))
    except OSError as error:  # most likely a full disk
        raise LazyfsError(
            f"the demo cannot go on: {error}", "make room for temporary files, or set TMPDIR"
        ) from error
    return 0


def _parser() -> Parser:
    return Parser("lazyfs demo", _ABOUT, _EXAMPLE)


def _tell(console: "Console") -> None:
    from lazyfs.cli.tour import tour

    console.print(_TITLE, style="bold")
    console.print()
    with _Told(console) as told:
        outcome = tour.give(told)
    console.print()
    _print_summary(console, outcome)
    console.print()
    console.print("With an image of your own (the second line as root):")
    for line in _OWN_IMAGE:
        console.print(f"  {line}", style="cyan", soft_wrap=True)


class _Told:
    """Prints each completed step, and on a terminal also the current one."""

    def __init__(self, console: "Console") -> None:
        self._console = console
        plain = console.options.ascii_only
        self._tick = "ok" if plain else "\N{CHECK MARK}"
        self._status = console.status("", spinner="line" if plain else "dots")

    def __enter__(self) -> "_Told":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._status.stop()

    def begins(self, what: str) -> None:
        if self._console.is_terminal:
            self._status.update(f"{what} ...")
            self._status.start()

    def done(self, what: str) -> None:
        self._status.stop()
        from rich.text import Text

        _print_hanging(self._console, Text(f"  {self._tick} ", style="green"), Text(what))


def _print_hanging(console: "Console", lead: "Text", body: "Text") -> None:
    """Print ``body`` after ``lead``; wrapped lines are indented to the same column."""
    from rich.text import Text

    width = max(_NARROWEST, console.width - lead.cell_len)
    for line in body.wrap(console, width):
        line.rstrip()
        console.print(Text.assemble(lead, line), soft_wrap=True)
        lead = Text(" " * lead.cell_len)


def _print_summary(console: "Console", outcome: "Outcome") -> None:
    from rich.text import Text

    travelled = f"{format_size(outcome.sent)}, {outcome.sent / outcome.image_size:.1%} of it"
    facts = (
        ("the image has", Text(format_size(outcome.image_size))),
        ("travelled", Text.assemble((travelled, "bold green"), "  ", _bar(console, outcome))),
        ("in", Text(f"{outcome.requests} requests, {outcome.seconds:.1f} seconds")),
        ("du shows", Text(f"{format_size(outcome.cached)} in the cache")),
    )
    for label, fact in facts:
        _print_hanging(console, Text(f"  {label:>13}  ", style="dim"), fact)


def _bar(console: "Console", outcome: "Outcome") -> "Text":
    """A bar of the transferred part of the image."""
    from rich.text import Text

    plain = console.options.ascii_only
    full, empty = ("#", ".") if plain else ("\N{FULL BLOCK}", "\N{LIGHT SHADE}")
    filled = max(1, round(_BAR_WIDTH * outcome.sent / outcome.image_size))
    return Text.assemble((full * filled, "green"), (empty * (_BAR_WIDTH - filled), "dim"))

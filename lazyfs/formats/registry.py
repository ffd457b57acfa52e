"""What lazyfs knows of formats: a row for each.

A row has the marks by which a format is recognised. If it is a filesystem, it says where the label
is; if an image can be opened through it, it has the words that say so in a URL's fragment, and what
opens it. A new format is a file in this package, and a row here.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lazyfs.formats import filesystems, partition
from lazyfs.formats.filesystems import HEAD, Mark
from lazyfs.formats.layer import Opening
from lazyfs.formats.slice import OPENING as SLICE

__all__ = ["FORMATS", "HEAD", "Format", "filesystem_of", "formats_of", "opening_of"]


@dataclass(frozen=True)
class Format:
    """One format. ``marks``: any of them is telling. ``label``: of a filesystem, from its head.

    ``filesystem``: whether there are files in it that can be shown.
    """

    name: str
    marks: tuple[Mark, ...] = ()
    filesystem: bool = False
    label: Callable[[bytes], str] = filesystems.no_label
    opening: Opening | None = None

    def fits(self, head: bytes) -> bool:
        """Whether ``head``, the first bytes of an image, has one of the marks."""
        return any(head.startswith(mark.content, mark.offset) for mark in self.marks)


# The most telling first: an ISO image that boots from a disk has a partition table, too.
FORMATS = (
    *(
        Format(name, marks, filesystem=True, label=label)
        for name, marks, label in filesystems.FILESYSTEMS
    ),
    *(Format(name, marks) for name, marks in filesystems.OTHERS),
    Format("slice", opening=SLICE),
    Format("partition", opening=partition.OPENING),
)


def formats_of(head: bytes) -> Sequence[Format]:
    """What an image with this head may be, the most telling first; empty if no mark is known."""
    return [found for found in FORMATS if found.fits(head)]


def filesystem_of(head: bytes) -> Format | None:
    """The filesystem that an image with this head is."""
    return next((found for found in formats_of(head) if found.filesystem), None)


def opening_of(word: str) -> Opening | None:
    """How an image is opened through what this word of a fragment stands for; None for nothing."""
    openings = (known.opening for known in FORMATS if known.opening is not None)
    return next((opening for opening in openings if word in opening.words), None)

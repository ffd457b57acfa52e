"""The registry of formats, a row for each.

A row has the marks (magic numbers) of a format; for a filesystem, how to read its label; for a
layer, its words in a URL's fragment and the functions that open it. A new format is a file in this
package and a row here.
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
    """One format.

    ``marks``: at least one of them must match.
    ``filesystem``: whether it contains files.
    ``label``: reads a filesystem's label from the image's head.
    ``test``: a further condition on the head.
    ``opening``: how to open it as a layer; None if it is none.
    """

    name: str
    marks: tuple[Mark, ...] = ()
    filesystem: bool = False
    label: Callable[[bytes], str] = filesystems.no_label
    test: Callable[[bytes], bool] = bool
    opening: Opening | None = None

    def fits(self, head: bytes) -> bool:
        """Whether an image with these first bytes may be of this format."""
        marked = any(head.startswith(mark.content, mark.offset) for mark in self.marks)
        return marked and self.test(head)


# The most specific first: an ISO image that boots from a disk has a partition table too.
FORMATS = (
    *(
        Format(row.name, row.marks, filesystem=True, label=row.label, test=row.test)
        for row in filesystems.FILESYSTEMS
    ),
    *(Format(name, marks) for name, marks in filesystems.OTHERS),
    Format("slice", opening=SLICE),
    Format("partition", opening=partition.OPENING),
)


def formats_of(head: bytes) -> Sequence[Format]:
    """The formats that match this head, the most specific first; empty for none."""
    return [found for found in FORMATS if found.fits(head)]


def filesystem_of(head: bytes) -> Format | None:
    """The filesystem that matches this head; None for none."""
    return next((found for found in formats_of(head) if found.filesystem), None)


def opening_of(word: str) -> Opening | None:
    """The opening for this word of a fragment; None for none."""
    openings = (known.opening for known in FORMATS if known.opening is not None)
    return next((opening for opening in openings if word in opening.words), None)

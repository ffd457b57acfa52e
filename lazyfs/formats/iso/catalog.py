"""The catalog of an image: reading its tree, and finding files in it.

An image may have several descriptions of its tree. The first available one of these is used:

1. Rock Ridge: all POSIX attributes of a file; the description that Linux shows.
2. Joliet: full names in Unicode, without owners and modes.
3. UDF: full names too. But each of its files has a block of its own, so its tree is many times as
   large as Joliet's. Images on which only UDF is complete, such as those of Windows, have neither
   of the two above. If it cannot be read, the plain names are used, with a note.
4. The plain names of ISO 9660, as Linux shows them: in lower case and without a version.

pycdlib writes images (``cli/tour/writer.py``), but does not read them. Its open is all or nothing:
it rejects a whole image for one unknown entry (a file compressed by zisofs), a duplicate name or a
loop of directories, and reads every description of the tree. And it is not always right (in version
1.22): two adjacent entries with one name become one file, a file that ends beyond the image is
silently shortened, and holes of a sparse UDF file become data.
"""

from collections.abc import Collection, Iterator
from typing import BinaryIO

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span
from lazyfs.formats.iso import volume, walk9660, walkudf
from lazyfs.formats.iso.reader import Reader
from lazyfs.formats.iso.volume import Head
from lazyfs.formats.tree import BootImage, Extent, Kind, Tree, Volume
from lazyfs.formats.treebuilder import Builder

ROCK_RIDGE, JOLIET, UDF, PLAIN = "Rock Ridge", "Joliet", "UDF", "ISO 9660"


class Catalog:
    """The tree of one image, with short cuts for common queries."""

    def __init__(self, file: BinaryIO) -> None:
        """Read the tree from ``file``, which is used by one thread at a time, and not kept.

        All but very large images cost a few tens of reads at most; see ``Reader``. Raises
        ImageError if this is not an ISO 9660 or UDF image, or too damaged; OSError if ``file``
        cannot be read.
        """
        self.tree = read_tree(file)

    @property
    def namespace(self) -> str:
        """The description in use: ROCK_RIDGE, JOLIET, UDF or PLAIN."""
        return self.tree.namespace

    def files(self) -> Iterator[str]:
        """The paths of all regular files, directory by directory."""
        return (path for path, node in self.tree.walk() if node.kind is Kind.FILE)

    def extent(self, path: str) -> Extent:
        """The extent of a regular file in one piece. Raises ImageError if it is in several."""
        extents = self.tree.extents(path)
        if len(extents) > 1:
            raise ImageError(f"{path} lies in several pieces")
        return extents[0] if extents else Extent(0, 0)


def read_tree(file: BinaryIO, only: Collection[str] | None = None) -> Tree:
    """The tree of the image in ``file``. Raises the same exceptions as ``Catalog``.

    ``only``: paths. A directory that leads to none of them may be left empty; so nodes in such a
    tree exist, but missing ones may exist too.
    """
    reader = Reader(file)
    head = volume.parse(reader.head(volume.HEAD))
    if head.primary is None:
        return _udf_tree(reader, head)
    builder = Builder(_volume(reader, head, head.primary.label, head.primary.size))
    plain = walk9660.Walk(reader, builder, head.primary, joliet=False, only=only)
    if plain.has_rock_ridge():
        plain.run()
        return builder.tree(ROCK_RIDGE)
    if head.joliet is not None:
        walk9660.Walk(reader, builder, head.joliet, joliet=True, only=only).run()
        return builder.tree(JOLIET)
    if head.udf:
        try:
            return _udf_tree(reader, head)
        except ImageError as error:
            builder.note(f"the plain names are used, for UDF cannot be: {error}")
    plain.run()
    return builder.tree(PLAIN)


def _udf_tree(reader: Reader, head: Head) -> Tree:
    found = walkudf.find_volume(reader)
    label, size = found.label, 0
    if head.primary is not None:
        label, size = label or head.primary.label, head.primary.size
    builder = Builder(_volume(reader, head, label, size))
    walkudf.Walk(reader, builder, found).run()
    return builder.tree(UDF)


def _volume(reader: Reader, head: Head, label: str, size: int) -> Volume:
    images: tuple[BootImage, ...] = ()
    if head.boot_catalog is not None:
        span = Span(head.boot_catalog, head.boot_catalog + volume.SECTOR)
        reader.gather([span])
        images = volume.boot_images(reader.bytes_at(span))
    return Volume(label, size, reader.size, head.mbr, head.gpt, images)

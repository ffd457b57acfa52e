"""An image's directory tree: its nodes, and the extents of each file. Pure.

The tree is plain immutable data, independent of the image's format.

Paths are relative to the image: a leading slash is allowed, ``.`` and ``..`` mean the same as in a
shell, and no path leads out of the image, neither by ``..`` nor by a symbolic link. As in the
kernel, links within a path are always followed, and at most 40 of them. Names are text; bytes that
are not UTF-8 are kept by ``surrogateescape``.
"""

import difflib
import fnmatch
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from types import MappingProxyType
from typing import NamedTuple

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span, merged

MAX_LINKS = 40  # symbolic links followed in one path; Linux's number
HOLE = -1  # the offset of an extent that is not in the image and reads as zeros

# Cures for an image that is not supported here, and for a path that does not exist.
LET_THE_KERNEL = "let the kernel read it: lazyfs loop, or mount -o loop"
_LOOK = "lazyfs ls shows what there is"

_SUGGESTIONS = 3
_SUGGEST_AMONG = 5000  # names to compare at most: comparing is slow
_NO_CHILDREN: Mapping[str, "Node"] = MappingProxyType({})


class Kind(Enum):
    """The type of a node. The values are the letters of ``ls -l``."""

    FILE = "-"
    DIRECTORY = "d"
    SYMLINK = "l"
    CHARACTER_DEVICE = "c"
    BLOCK_DEVICE = "b"
    FIFO = "p"
    SOCKET = "s"


_FORMATS = {
    Kind.FILE: stat.S_IFREG,
    Kind.DIRECTORY: stat.S_IFDIR,
    Kind.SYMLINK: stat.S_IFLNK,
    Kind.CHARACTER_DEVICE: stat.S_IFCHR,
    Kind.BLOCK_DEVICE: stat.S_IFBLK,
    Kind.FIFO: stat.S_IFIFO,
    Kind.SOCKET: stat.S_IFSOCK,
}


class Extent(NamedTuple):
    """A piece of a file. ``offset``: in the image, in bytes, or HOLE. ``length``: bytes."""

    offset: int
    length: int


class Node(NamedTuple):
    """A file, a directory, or any other kind of entry of a directory.

    ``extents``: a regular file's content in order, ``size`` bytes in total, unless it is compressed
    or has a problem.
    """

    name: str
    kind: Kind
    mode: int = 0o444  # the permission bits, and those for set-id and sticky
    uid: int = 0
    gid: int = 0
    nlink: int = 1
    mtime: int = 0  # seconds since the epoch, UTC
    size: int = 0
    extents: tuple[Extent, ...] = ()
    target: str = ""  # of a symbolic link
    device: tuple[int, int] = (0, 0)  # of a device: major, minor
    compressed: str = ""  # how the content is compressed; empty: not at all
    problem: str = ""  # why the content cannot be read, or not fully; empty: it can
    children: Mapping[str, "Node"] = _NO_CHILDREN  # of a directory, in the order on disk

    @property
    def st_mode(self) -> int:
        """Type and mode together, as in stat(2)."""
        return _FORMATS[self.kind] | self.mode


class BootImage(NamedTuple):
    """An El Torito boot image."""

    platform: str  # "x86", "PowerPC", "Mac", "EFI" or a number
    bootable: bool
    emulation: str  # "none", "floppy" or "hard disk"
    offset: int
    length: int  # the bytes to load, from the boot catalog; often less than the file


class Volume(NamedTuple):
    """The image as a whole. Sizes in bytes."""

    label: str = ""
    declared_size: int = 0  # from the volume's descriptor; 0 if not given
    image_size: int = 0
    mbr: bool = False  # whether it has a partition table, so that it can be booted from a disk
    gpt: bool = False
    boot_images: tuple[BootImage, ...] = ()


class Tree(NamedTuple):
    """A whole image. ``notes``: omissions and oddities, for the user."""

    root: Node
    namespace: str
    volume: Volume = Volume()
    notes: tuple[str, ...] = ()

    def node(self, path: str, *, follow: bool = True) -> Node:
        """The node at ``path``. ``follow``: whether to follow it if it is a symbolic link.

        Raises ImageError if there is none.
        """
        return self._resolve(path, follow=follow)[-1]

    def real_path(self, path: str) -> str:
        """The path to the same node without links, dots, and leading and trailing slashes."""
        return "/".join(node.name for node in self._resolve(path, follow=True)[1:])

    def extents(self, path: str) -> tuple[Extent, ...]:
        """The extents of a regular file. Raises ImageError if it cannot be read."""
        return self.extents_of(self.node(path), path)

    @staticmethod
    def extents_of(node: Node, path: str) -> tuple[Extent, ...]:
        """The extents of a node. ``path``: for messages. Raises ImageError."""
        if node.kind is not Kind.FILE:
            raise ImageError(f"{path} is not a regular file", _LOOK)
        if node.compressed:
            raise ImageError(
                f"{path} is compressed ({node.compressed}), which cannot be read", LET_THE_KERNEL
            )
        if node.problem:
            raise ImageError(f"{path} cannot be read: {node.problem}")
        return node.extents

    def walk(self, path: str = "") -> Iterator[tuple[str, Node]]:
        """All nodes at and below ``path``, with their paths; a directory before its entries."""
        start = self._resolve(path, follow=True)
        waiting = [("/".join(node.name for node in start[1:]), start[-1])]
        while waiting:
            where, node = waiting.pop()
            yield where, node
            below = [(joined(where, name), child) for name, child in node.children.items()]
            waiting += reversed(below)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, in the order of ``walk``.

        ``*``, ``?`` and ``[...]`` match within a name, a part ``**`` matches any directories; all
        match names with a leading dot. If nothing matches, a second try ignores case. Raises
        ImageError, with similar names, if that matches nothing either.
        """
        parts = names_in(pattern)
        for flags in (0, re.IGNORECASE):
            found = [path for path, _ in _matches(self.root, _compiled(parts, flags))]
            if found:
                return found
        raise ImageError(f"{pattern} matches nothing in the image", self._suggestion(pattern))

    def ranges(self, paths: Iterable[str]) -> list[Span]:
        """The ranges of these files, and of all files below these directories; sorted, merged."""
        spans = [
            Span(extent.offset, extent.offset + extent.length)
            for path in paths
            for _, node in self.walk(path)
            if not node.problem
            for extent in node.extents
            if extent.offset != HOLE
        ]
        return merged(spans)

    def _resolve(self, path: str, *, follow: bool) -> list[Node]:
        """The nodes from the root to the one at ``path``, inclusive."""
        trail, waiting = [self.root], path.split("/")[::-1]
        links = 0
        while waiting:
            part = waiting.pop()
            if trail[-1].kind is not Kind.DIRECTORY:
                raise self._absent(path)
            if part == "..":
                del trail[max(1, len(trail) - 1) :]
            elif part not in ("", "."):
                child = trail[-1].children.get(part)
                if child is None:
                    raise self._absent(path)
                if child.kind is not Kind.SYMLINK or not (follow or waiting):
                    trail.append(child)
                    continue
                links += 1
                if links > MAX_LINKS:
                    raise ImageError(
                        f"{path} goes through too many symbolic links", "name the file itself"
                    )
                if child.target.startswith("/"):
                    del trail[1:]
                waiting += child.target.split("/")[::-1]
        return trail

    def _absent(self, path: str) -> ImageError:
        return ImageError(f"{path} is not in the image", self._suggestion(path))

    def _suggestion(self, path: str) -> str:
        """A cure: names similar to ``path``, if there are any."""
        node, where = self.root, ""
        for part in names_in(path):
            child = node.children.get(part)
            if child is not None:
                node, where = child, joined(where, part)
                continue
            names = list(node.children)[:_SUGGEST_AMONG]
            same = [name for name in names if name.lower() == part.lower()]
            close = same or difflib.get_close_matches(part, names, _SUGGESTIONS)
            if close:
                return "did you mean " + " or ".join(joined(where, name) for name in close) + "?"
            break
        return _LOOK


def joined(directory: str, name: str) -> str:
    return f"{directory}/{name}" if directory else name


# Parts of a pattern: an expression for a name, or None for any number of directories.
_Pattern = Sequence[re.Pattern[str] | None]


def names_in(path: str) -> list[str]:
    """The components of a path or a pattern."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _compiled(parts: Iterable[str], flags: int) -> _Pattern:
    return [None if p == "**" else re.compile(fnmatch.translate(p), flags) for p in parts]


def _matches(root: Node, pattern: _Pattern) -> Iterator[tuple[str, Node]]:
    """The nodes that match ``pattern``. Each node carries the parts that may match next below it.

    That set is never larger than the pattern, so the tree's size bounds the time.
    """
    waiting = [("", root, _with_skipped(pattern, {0}))]
    while waiting:
        where, node, places = waiting.pop()
        if len(pattern) in places:
            yield where, node
        below = []
        for name, child in node.children.items():
            following = _after(pattern, places, name)
            if following:
                below.append((joined(where, name), child, following))
        waiting += reversed(below)


def _after(pattern: _Pattern, places: set[int], name: str) -> set[int]:
    """The positions in ``pattern`` reached from ``places`` by descending to ``name``."""
    reached = set()
    for place in places:
        if place < len(pattern):
            part = pattern[place]
            if part is None:
                reached |= {place, place + 1}
            elif part.match(name):
                reached.add(place + 1)
    return _with_skipped(pattern, reached)


def _with_skipped(pattern: _Pattern, places: set[int]) -> set[int]:
    """``places`` and those after a ``**``, which may also match no directory at all.

    At the end of a pattern it matches at least one name: ``boot/**`` excludes ``boot`` itself.
    """
    found = set(places)
    for place, part in enumerate(pattern[:-1]):
        if place in found and part is None:
            found.add(place + 1)
    return found

"""An image's directory tree: what there is, and where each file's bytes lie. Pure.

The tree is plain data that never changes, and knows nothing of how an image writes it down.

Paths are the image's own: a leading slash is allowed, ``.`` and ``..`` mean what they do in a
shell, and no path leads out of the image, neither by ``..`` nor by a symbolic link. As in the
kernel, links within a path are always followed, and at most 40 of them. Names are text in which
bytes that are no UTF-8 are kept by ``surrogateescape``.
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

# What to do about an image that is beyond what is read here, and about a path that is not there.
LET_THE_KERNEL = "let the kernel read it: lazyfs loop, or mount -o loop"
_LOOK = "lazyfs ls shows what there is"

_SUGGESTIONS = 3
_SUGGEST_AMONG = 5000  # names that are compared, at most: comparing is slow
_NO_CHILDREN: Mapping[str, "Node"] = MappingProxyType({})


class Kind(Enum):
    """What a node is. The values are the letters of ``ls -l``."""

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
    """Where a file, or a piece of it, lies: bytes from the image's start (or HOLE), and bytes."""

    offset: int
    length: int


class Node(NamedTuple):
    """A file, a directory, or what else a directory can hold.

    ``extents`` hold a regular file's content in its order; together they are ``size`` bytes, but
    for a file that is compressed or has a problem.
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
    compressed: str = ""  # how the extents hold the content; empty: as it is
    problem: str = ""  # why the content cannot be read, or not all of it; empty: it can
    children: Mapping[str, "Node"] = _NO_CHILDREN  # of a directory, as they come on disk

    @property
    def st_mode(self) -> int:
        """Kind and mode together, as stat(2) has them."""
        return _FORMATS[self.kind] | self.mode


class BootImage(NamedTuple):
    """What El Torito lets a machine boot from."""

    platform: str  # "x86", "PowerPC", "Mac", "EFI" or a number
    bootable: bool
    emulation: str  # "none", "floppy" or "hard disk"
    offset: int
    length: int  # as the catalog has it: what is loaded, often less than the file


class Volume(NamedTuple):
    """The image as a whole. Sizes in bytes."""

    label: str = ""
    declared_size: int = 0  # what the volume says; 0 where it does not
    image_size: int = 0
    mbr: bool = False  # it has a partition table: it can be written on a disk and booted
    gpt: bool = False
    boot_images: tuple[BootImage, ...] = ()


class Tree(NamedTuple):
    """A whole image. ``notes``: what was left out of the tree or is odd, for a person to read."""

    root: Node
    namespace: str
    volume: Volume = Volume()
    notes: tuple[str, ...] = ()

    def node(self, path: str, *, follow: bool = True) -> Node:
        """What lies at ``path``; ``follow``: where it is a symbolic link, what that leads to.

        Raises ImageError when there is nothing.
        """
        return self._resolve(path, follow=follow)[-1]

    def real_path(self, path: str) -> str:
        """The path to the same node without links, dots and slashes at the ends."""
        return "/".join(node.name for node in self._resolve(path, follow=True)[1:])

    def extents(self, path: str) -> tuple[Extent, ...]:
        """Where the content of a regular file lies. Raises ImageError when it cannot be read."""
        return self.extents_of(self.node(path), path)

    @staticmethod
    def extents_of(node: Node, path: str) -> tuple[Extent, ...]:
        """The same for a node that is known. ``path``: for the message."""
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
        """``path`` and all that is below it, with paths: a directory before what it holds."""
        start = self._resolve(path, follow=True)
        waiting = [("/".join(node.name for node in start[1:]), start[-1])]
        while waiting:
            where, node = waiting.pop()
            yield where, node
            below = [(joined(where, name), child) for name, child in node.children.items()]
            waiting += reversed(below)

    def glob(self, pattern: str) -> list[str]:
        """The paths that match, in the order of ``walk``.

        ``*``, ``?`` and ``[...]`` match within a name, a part ``**`` matches any directories, and
        all of them names with a leading dot. What matches nothing is tried again without regard to
        case. Raises ImageError when nothing matches then, and says what comes close.
        """
        parts = names_in(pattern)
        for flags in (0, re.IGNORECASE):
            found = [path for path, _ in _matches(self.root, _compiled(parts, flags))]
            if found:
                return found
        raise ImageError(f"{pattern} matches nothing in the image", self._suggestion(pattern))

    def ranges(self, paths: Iterable[str]) -> list[Span]:
        """The bytes of these files, and of all below these directories: merged, in disk order."""
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
        """The nodes from the root to the one at ``path``, both included."""
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
        """A cure: the names that look like ``path``, if any do."""
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


# Parts of a pattern: what a name has to match; None for any number of directories.
_Pattern = Sequence[re.Pattern[str] | None]


def names_in(path: str) -> list[str]:
    """The names that a path, or a pattern, is made of."""
    return [part for part in path.split("/") if part not in ("", ".")]


def _compiled(parts: Iterable[str], flags: int) -> _Pattern:
    return [None if p == "**" else re.compile(fnmatch.translate(p), flags) for p in parts]


def _matches(root: Node, pattern: _Pattern) -> Iterator[tuple[str, Node]]:
    """What matches all of ``pattern``. Each node carries the parts that may come next below it.

    That set is never larger than the pattern, so the time is bound by the tree's size.
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
    """The places in ``pattern`` that are reached from ``places`` by going down to ``name``."""
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
    """``places`` and those behind a ``**``, which may also stand for no directory at all.

    At the end of a pattern it stands for one at least: ``boot/**`` is what is in ``boot``.
    """
    found = set(places)
    for place, part in enumerate(pattern[:-1]):
        if place in found and part is None:
            found.add(place + 1)
    return found

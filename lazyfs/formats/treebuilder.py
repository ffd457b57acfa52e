"""Building a tree from untrusted data, keeping out anything that could harm its users. Pure.

Images are not trusted. Invariants of every tree, whatever its source:

- names are valid: no slash, no NUL, not empty, not ``.`` or ``..``; of duplicate names in a
  directory, the first is kept;
- the number of nodes, the depth, and the length of names and links are limited, so that a hostile
  image costs an ImageError and not the machine's memory;
- a file whose content is outside the image or incomplete has a ``problem``;
- numbers are valid for a file on Linux, and times are valid for a calendar.
"""

from typing import cast

from lazyfs.core.errors import ImageError
from lazyfs.formats.tree import HOLE, LET_THE_KERNEL, Extent, Kind, Node, Tree, Volume

MAX_NODES = 500_000
MAX_DEPTH = 200
MAX_NAME = 255  # characters; FUSE takes 1024 bytes
MAX_TARGET = 4095  # bytes; Linux's PATH_MAX
MAX_TARGETS = 16 << 20  # characters in all links together
MAX_EXTENTS = 1_000_000  # in all files together
_MAX_NOTES = 100

_MAX_SIZE = (1 << 63) - 1
_UNSIGNED = 0xFFFFFFFF
_FIRST_TIME, _LAST_TIME = -62_000_000_000, 253_000_000_000  # in the years 5 and 9987


class Builder:
    """A tree under construction."""

    def __init__(self, volume: Volume) -> None:
        self._volume = volume
        self._nodes = self._targets = self._extents = 0
        self._notes: list[str] = []
        self._unsaid = 0
        self.root = Node("", Kind.DIRECTORY, 0o555, children={})

    def note(self, text: str) -> None:
        """Add a note for the user. Beyond a hundred, notes are only counted."""
        if len(self._notes) < _MAX_NOTES:
            self._notes.append(text)
        else:
            self._unsaid += 1

    def add(self, directory: Node, node: Node, depth: int) -> Node | None:
        """Add ``node``, ``depth`` levels below the root, to a directory of this tree.

        Returns the node in the tree (a directory accepts children from then on), or None if it was
        left out. Raises ImageError if the tree gets too large.
        """
        self._count(node, depth)
        node = _bounded(node)
        children = _grown(directory)
        fault = _fault_of_name(node.name)
        if not fault and node.name in children:
            fault = "its directory has an entry of this name already"
        if not fault and len(node.target.encode("utf-8", "surrogateescape")) > MAX_TARGET:
            fault = "it is a symbolic link with too long a target"
        if not fault and "\0" in node.target:
            fault = "it is a symbolic link that can lead nowhere"
        if fault:
            self.note(f"left out {directory.name}/{node.name[:MAX_NAME]!r}: {fault}")
            return None
        if node.kind is Kind.DIRECTORY:
            node = node._replace(children={})
        elif node.kind is Kind.FILE:
            node = node._replace(problem=node.problem or self._fault_of_content(node))
        children[node.name] = node
        return node

    def restate(self, directory: Node | None, node: Node, stated: Node) -> Node:
        """Give a directory in the tree the attributes of ``stated``; name and children stay.

        ``directory``: its parent; None for the root.
        """
        node = _bounded(stated)._replace(name=node.name, kind=node.kind, children=node.children)
        if directory is None:
            self.root = node
        else:
            _grown(directory)[node.name] = node
        return node

    def tree(self, namespace: str) -> Tree:
        notes = [*self._notes, f"and {self._unsaid} more"] if self._unsaid else self._notes
        return Tree(self.root, namespace, self._volume, tuple(notes))

    def _count(self, node: Node, depth: int) -> None:
        self._nodes += 1
        self._targets += len(node.target)
        self._extents += len(node.extents)
        if self._nodes > MAX_NODES:
            raise ImageError(f"the image has more than {MAX_NODES} entries", LET_THE_KERNEL)
        if depth > MAX_DEPTH:
            raise ImageError(
                f"the image has directories more than {MAX_DEPTH} levels deep", LET_THE_KERNEL
            )
        if self._targets > MAX_TARGETS:
            raise ImageError("the image's symbolic links are too long together", LET_THE_KERNEL)
        if self._extents > MAX_EXTENTS:
            raise ImageError(
                f"the image's files lie in more than {MAX_EXTENTS} pieces", LET_THE_KERNEL
            )

    def _fault_of_content(self, node: Node) -> str:
        for offset, length in node.extents:
            if length < 0 or (offset < 0 and offset != HOLE):
                return "its place in the image makes no sense"
            if offset != HOLE and offset + length > self._volume.image_size:
                return "it lies outside of the image"
        if not node.compressed and sum(e.length for e in node.extents) != node.size:
            return "the image holds less or more of it than its size"
        return ""


def coalesced(pieces: list[Extent]) -> tuple[Extent, ...]:
    """The pieces with adjacent ones joined and empty ones removed."""
    found: list[Extent] = []
    for offset, length in pieces:
        if length == 0:
            continue
        if found:
            before = found[-1]
            follows = HOLE if before.offset == HOLE else before.offset + before.length
            if offset == follows:
                found[-1] = Extent(before.offset, before.length + length)
                continue
        found.append(Extent(offset, length))
    return tuple(found)


def fault_of_directory(is_known: bool, end: int, image_size: int) -> str:
    """Why a directory cannot be shown; empty if it can. A known one may contain itself."""
    if is_known:
        return "it is in the tree already, elsewhere or above itself"
    return "it lies outside of the image" if end > image_size else ""


_MAJOR, _MINOR = 0xFFF, 0xFFFFF  # Linux's limits for device numbers


def _grown(directory: Node) -> dict[str, Node]:
    """The children of a directory as a mutable dict: they change until the tree is complete."""
    return cast("dict[str, Node]", directory.children)


def _bounded(node: Node) -> Node:
    """The node with its numbers forced into valid ranges; unchanged if they are valid."""
    major, minor = node.device
    numbers = node.uid | node.gid | node.nlink  # negative if one of them is
    is_timely = _FIRST_TIME <= node.mtime <= _LAST_TIME
    if (
        is_timely
        and 0 <= numbers <= _UNSIGNED
        and 0 <= major <= _MAJOR
        and 0 <= minor <= _MINOR
        and 0 <= node.size <= _MAX_SIZE
        and not node.mode >> 12
    ):
        return node
    return node._replace(
        mode=node.mode & 0o7777,
        uid=node.uid & _UNSIGNED,
        gid=node.gid & _UNSIGNED,
        nlink=node.nlink & _UNSIGNED,
        mtime=node.mtime if is_timely else 0,
        size=min(max(node.size, 0), _MAX_SIZE),
        device=(major & _MAJOR, minor & _MINOR),
    )


def _fault_of_name(name: str) -> str:
    if name in ("", ".", ".."):
        return "this is no name for an entry"
    if "/" in name or "\0" in name:
        return "its name has a character that no name may have"
    if len(name) > MAX_NAME:
        return "its name is too long"
    return ""

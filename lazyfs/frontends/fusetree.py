"""A directory tree as a FUSE mount: files whose bytes are in one image.

Inodes are numbered level by level from 1 on, so the children of a directory have consecutive ones.
The table of a directory's names is built on first use.

The image itself can be opened too, in the root, under a name that no listing shows: this lets
commands that read the image find and use the mount.
"""

import errno
import os
import stat
from array import array
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Protocol

import pyfuse3

from lazyfs.frontends.fuse import ReadOnlyFilesystem, answering, filesystem_statistics
from lazyfs.frontends.fuseimages import ImageFile, image_xattrs
from lazyfs.system.mountinfo import IMAGE_IN_A_TREE

_SECTOR = 512  # bytes; the unit of st_blocks
_NEVER = 1e9  # seconds: nothing changes

Read = Callable[[int, int], Awaitable[bytes]]  # offset, length


class TreeNode(Protocol):
    """The metadata of a file, a directory, or any other kind of node."""

    @property
    def children(self) -> "Mapping[str, TreeNode]": ...
    @property
    def st_mode(self) -> int: ...
    @property
    def uid(self) -> int: ...
    @property
    def gid(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def mtime(self) -> int: ...
    @property
    def size(self) -> int: ...
    @property
    def target(self) -> str: ...
    @property
    def device(self) -> tuple[int, int]: ...


class TreeFiles(ReadOnlyFilesystem):
    """The tree below ``root``."""

    def __init__(
        self,
        root: TreeNode,
        reader_of: Callable[[TreeNode], Read],
        image: ImageFile,
    ) -> None:
        """``reader_of``: returns the function that reads a file. ``image``: contains the tree."""
        super().__init__(_NEVER)
        self._image = image
        self._reader_of = reader_of
        self._nodes: list[TreeNode] = [root]
        self._parents = array("Q", [0])  # by number, which is the inode less 1
        self._first = array("Q")  # the number of a node's first child
        for number, node in enumerate(self._nodes):  # which grows in this loop
            self._first.append(len(self._nodes))
            self._nodes += node.children.values()
            self._parents.extend([number] * len(node.children))
        self._image_number = len(self._nodes)
        self._names: dict[int, dict[bytes, int]] = {}
        self._readers: dict[int, Read] = {}  # of the files read so far

    @answering
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        number = parent_inode - 1
        if name == b"..":
            number = self._parents[number]
        elif name != b".":
            found = self._entries(number).get(name)
            if found is None and number == 0 and name == IMAGE_IN_A_TREE.encode():
                found = self._image_number
            if found is None:
                raise pyfuse3.FUSEError(errno.ENOENT)
            number = found
        return self._attributes_of(number)

    @answering
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        number = fh - 1
        first, names = self._first[number], list(self._entries(number))
        for position in range(start_id, len(names)):
            name, attributes = names[position], self._attributes_of(first + position)
            if not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), attributes, position + 1):
                return

    @answering
    async def readlink(
        self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.FileNameT:
        return pyfuse3.FileNameT(os.fsencode(self._nodes[inode - 1].target))

    async def content(self, inode: pyfuse3.InodeT, offset: int, length: int) -> bytes:
        if inode - 1 == self._image_number:
            return await self._image.device.read(offset, length)
        reader = self._readers.get(inode)
        if reader is None:
            reader = self._readers[inode] = self._reader_of(self._nodes[inode - 1])
        return await reader(offset, length)

    @answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        return filesystem_statistics(self._image.device.identity.size, len(self._nodes))

    def attributes(self, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        return self._attributes_of(inode - 1)

    def xattrs(self, inode: pyfuse3.InodeT) -> Mapping[bytes, bytes]:
        return image_xattrs(self._image) if inode - 1 == self._image_number else {}

    def _attributes_of(self, number: int) -> pyfuse3.EntryAttributes:
        if number == self._image_number:
            entry = self.new_attributes(pyfuse3.InodeT(number + 1), stat.S_IFREG | 0o400)
            entry.st_size = self._image.device.identity.size
            entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
            return entry
        node = self._nodes[number]
        entry = self.new_attributes(pyfuse3.InodeT(number + 1), node.st_mode)
        entry.st_nlink = node.nlink
        entry.st_uid, entry.st_gid = node.uid, node.gid
        entry.st_size = node.size or len(os.fsencode(node.target))
        entry.st_blocks = -(-node.size // _SECTOR)
        entry.st_rdev = os.makedev(*node.device)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = node.mtime * 10**9
        return entry

    def _entries(self, number: int) -> Mapping[bytes, int]:
        """The names in a directory, and their nodes' numbers."""
        if number not in self._names:
            names: Sequence[str] = list(self._nodes[number].children)
            first = self._first[number]
            self._names[number] = {os.fsencode(n): first + i for i, n in enumerate(names)}
        return self._names[number]

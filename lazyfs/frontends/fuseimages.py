"""Images as files of a FUSE mount.

Two forms: a directory with one file per image or, if the mount point is a regular file, the image
as that file. Inode 1 is the root, or the only image; images in a directory begin at 2.
"""

import errno
import json
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import pyfuse3

from lazyfs.core.device import Device
from lazyfs.frontends.fuse import ReadOnlyFilesystem, answering, filesystem_statistics
from lazyfs.system.mountinfo import IDENTITY_ATTRIBUTE, VIEW_ATTRIBUTE

_SECTOR = 512  # bytes; the unit of st_blocks


@dataclass(frozen=True)
class ImageFile:
    """One image in a mount. ``view_id``: the id of its view. ``mtime``: POSIX seconds."""

    name: str
    device: Device
    url: str  # without secrets
    view_id: str
    mtime: float


def image_xattrs(image: ImageFile) -> Mapping[bytes, bytes]:
    """The extended attributes of an image's file."""
    statistics = image.device.statistics()
    return {
        b"user.lazyfs.url": image.url.encode(),
        VIEW_ATTRIBUTE.encode(): image.view_id.encode(),
        IDENTITY_ATTRIBUTE.encode(): json.dumps(asdict(image.device.identity)).encode(),
        b"user.lazyfs.cached": b"%d" % statistics.cached,
        b"user.lazyfs.statistics": json.dumps(asdict(statistics)).encode(),
    }


class ImageFiles(ReadOnlyFilesystem):
    """A directory of images or, with ``single``, one image."""

    def __init__(self, images: Sequence[ImageFile], single: bool, attr_timeout: float) -> None:
        super().__init__(attr_timeout)
        first = pyfuse3.ROOT_INODE if single else pyfuse3.ROOT_INODE + 1
        self._files = {pyfuse3.InodeT(first + n): image for n, image in enumerate(images)}
        self._names = {os.fsencode(image.name): inode for inode, image in self._files.items()}
        self._newest = max(image.mtime for image in images)

    @answering
    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name in (b".", b".."):
            return self.attributes(pyfuse3.ROOT_INODE)
        if name not in self._names:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return self.attributes(self._names[pyfuse3.FileNameT(name)])

    @answering
    async def readdir(
        self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken
    ) -> None:
        entries = list(self._names.items())
        for number, (name, inode) in enumerate(entries[start_id:], start_id + 1):
            if not pyfuse3.readdir_reply(
                token, pyfuse3.FileNameT(name), self.attributes(inode), number
            ):
                return

    async def content(self, inode: pyfuse3.InodeT, offset: int, length: int) -> bytes:
        return await self._files[inode].device.read(offset, length)

    @answering
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        size = sum(image.device.identity.size for image in self._files.values())
        return filesystem_statistics(size, len(self._files))

    def attributes(self, inode: pyfuse3.InodeT) -> pyfuse3.EntryAttributes:
        if inode in self._files:
            return self._image_attributes(inode, self._files[inode])
        entry = self.new_attributes(inode, stat.S_IFDIR | 0o555)
        entry.st_nlink = 2
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = int(self._newest * 1e9)
        return entry

    def _image_attributes(self, inode: pyfuse3.InodeT, image: ImageFile) -> pyfuse3.EntryAttributes:
        entry = self.new_attributes(inode, stat.S_IFREG | 0o444)
        entry.st_nlink = 1
        entry.st_uid, entry.st_gid = os.getuid(), os.getgid()
        entry.st_size = image.device.identity.size
        entry.st_blocks = -(-image.device.statistics().cached // _SECTOR)
        entry.st_mtime_ns = entry.st_ctime_ns = entry.st_atime_ns = int(image.mtime * 1e9)
        return entry

    def xattrs(self, inode: pyfuse3.InodeT) -> Mapping[bytes, bytes]:
        return image_xattrs(self._files[inode]) if inode in self._files else {}

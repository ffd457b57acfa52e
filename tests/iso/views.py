"""One shape for what is in a tree, whoever read it, so that two views can be compared."""

import hashlib
import os
import stat
from pathlib import Path
from typing import NamedTuple

from lazyfs.formats.tree import HOLE, Kind, Node, Tree

_KINDS = {
    stat.S_IFREG: Kind.FILE,
    stat.S_IFDIR: Kind.DIRECTORY,
    stat.S_IFLNK: Kind.SYMLINK,
    stat.S_IFCHR: Kind.CHARACTER_DEVICE,
    stat.S_IFBLK: Kind.BLOCK_DEVICE,
    stat.S_IFIFO: Kind.FIFO,
}


class Seen(NamedTuple):
    """What a view shows of one path."""

    kind: Kind
    mode: int
    owner: tuple[int, int]
    mtime: int
    size: int
    device: tuple[int, int]
    target: str
    digest: str

    def content_only(self) -> tuple[Kind, int, str]:
        """What namespaces without owners and modes can show."""
        return self.kind, self.size, self.digest


def content(image: Path, node: Node) -> bytes:
    """A file's content, by its extents."""
    with open(image, "rb") as file:
        return b"".join(
            bytes(length) if offset == HOLE else os.pread(file.fileno(), length, offset)
            for offset, length in node.extents
        )


def of_tree(tree: Tree, image: Path) -> dict[str, Seen]:
    """All paths but the root, as the catalog has them."""
    found = {}
    for path, node in tree.walk():
        digest = _digest(content(image, node)) if node.kind is Kind.FILE else ""
        owner = node.uid, node.gid
        found[path] = Seen(
            *(node.kind, node.mode, owner, node.mtime, node.size, node.device, node.target, digest)
        )
    del found[""]
    return found


def of_directory(directory: Path) -> dict[str, Seen]:
    """All paths below a local directory."""
    found = {}
    for where, directories, files in os.walk(directory):
        for name in directories + files:
            path = Path(where, name)
            found[str(path.relative_to(directory))] = _of_path(path)
    return found


def _of_path(path: Path) -> Seen:
    status = path.lstat()
    kind = _KINDS[stat.S_IFMT(status.st_mode)]
    return Seen(
        kind,
        stat.S_IMODE(status.st_mode),
        (status.st_uid, status.st_gid),
        int(status.st_mtime),
        0 if kind is Kind.DIRECTORY else status.st_size,
        (os.major(status.st_rdev), os.minor(status.st_rdev)),
        os.readlink(path) if kind is Kind.SYMLINK else "",
        _digest(path.read_bytes()) if kind is Kind.FILE else "",
    )


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()

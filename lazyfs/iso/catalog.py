"""An ISO 9660 image's files and where their bytes lie. Nothing else imports pycdlib.

pycdlib reads the whole tree when it opens an image: thousands of small reads. Give it a file whose
reads are cheap (a mount, a local file), and never its event loop's thread.

Its lookups by path see only the last extent of a file of over 4 GiB on an image with Rock Ridge,
and say nothing. So the tree is walked here: the first record of a name in its directory, and from
it on along the continuations.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import BinaryIO, NamedTuple

import pycdlib
from pycdlib.dr import DirectoryRecord
from pycdlib.pycdlibexception import PyCdlibException

from lazyfs.errors import ImageError


class Extent(NamedTuple):
    """Where a file lies in the image: bytes from its start, and bytes."""

    offset: int
    length: int


class Catalog:
    """The tree of one image.

    Names are those of Rock Ridge, else of Joliet, else the plain ones as Linux shows them: in lower
    case and without a version. Paths are relative to the image's root; a leading slash is allowed.
    """

    def __init__(self, file: BinaryIO) -> None:
        """Read the tree from ``file``, which must stay open and is used by one thread at a time.

        Raises ImageError when this is no ISO 9660 image, or one that pycdlib does not understand;
        OSError when ``file`` cannot be read.
        """
        self._iso = pycdlib.PyCdlib()
        try:
            self._iso.open_fp(file)
        except PyCdlibException as error:
            raise ImageError(f"this is not a readable ISO 9660 image: {error}") from error
        joliet = self._iso.joliet_vd
        self._rock_ridge = self._iso.has_rock_ridge()
        self._joliet = joliet is not None and not self._rock_ridge
        volume = joliet if joliet is not None and self._joliet else self._iso.pvd
        self._root = volume.root_directory_record()
        self._block = volume.logical_block_size()

    def files(self) -> Iterator[str]:
        """The paths of all regular files, directory by directory."""
        waiting = [(PurePosixPath(), self._root)]
        while waiting:
            directory, record = waiting.pop()
            for name, child in self._children(record).items():
                if child.is_dir():
                    waiting.append((directory / name, child))
                elif not child.is_symlink():
                    yield str(directory / name)

    def extent(self, path: str) -> Extent:
        """Where the regular file ``path`` lies. Raises ImageError when there is none."""
        record = self._root
        for name in PurePosixPath(path.lstrip("/")).parts:
            child = self._children(record).get(name) if record.is_dir() else None
            if child is None:
                raise ImageError(f"{path} is not in the image")
            record = child
        if record.is_dir() or record.is_symlink():
            raise ImageError(f"{path} is not a regular file")
        return self._whole(path, record)

    def _children(self, directory: DirectoryRecord) -> dict[str, DirectoryRecord]:
        """The entries of a directory; of those with one name, the first on disk."""
        found: dict[str, DirectoryRecord] = {}
        for child in directory.children:
            if not (child.is_dot() or child.is_dotdot() or _is_elsewhere(child)):
                found.setdefault(self._name(child), _in_its_place(child))
        return found

    def _name(self, record: DirectoryRecord) -> str:
        if self._rock_ridge and record.rock_ridge is not None:
            return record.rock_ridge.name().decode("utf-8", "surrogateescape")
        identifier = record.file_identifier()
        if self._joliet:
            return identifier.decode("utf-16-be", "replace").partition(";")[0]
        plain = identifier.decode("ascii", "surrogateescape")
        return plain.partition(";")[0].rstrip(".").lower()

    def _whole(self, path: str, first: DirectoryRecord) -> Extent:
        """One extent from all the records of a file. Raises ImageError when there are gaps."""
        start = end = first.extent_location() * self._block
        part: DirectoryRecord | None = first
        while part is not None:
            if part.extent_location() * self._block != end:
                raise ImageError(f"{path} lies in several pieces")
            end += part.data_length
            part = part.data_continuation
        return Extent(start, end - start)


def write_iso(target: Path, files: Mapping[str, Path], label: str) -> None:
    """Write an image with Rock Ridge names that holds ``files``: paths in it -> local files.

    ``label``: the volume's name, at most 32 of A-Z, 0-9 and ``_``. Directories are made as needed.
    The files lie on disk in the order in which ISO 9660 sorts their directories.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, rock_ridge="1.09")
    plain = {PurePosixPath(): ""}  # directories as ISO 9660 knows them: its names allow little
    for number, (path, local) in enumerate(files.items()):
        where = PurePosixPath(path)
        for directory in reversed(where.parents[:-1]):
            if directory not in plain:
                plain[directory] = f"{plain[directory.parent]}/D{len(plain):07}"
                iso.add_directory(plain[directory], rr_name=directory.name)
        iso_path = f"{plain[where.parent]}/F{number:07}.;1"
        iso.add_file(str(local), iso_path, rr_name=where.name, file_mode=0o100444)
    iso.write(str(target))
    iso.close()


def _in_its_place(record: DirectoryRecord) -> DirectoryRecord:
    """The directory itself where ``record`` stands for one that was moved for being too deep."""
    rock_ridge = record.rock_ridge
    if rock_ridge is not None and rock_ridge.cl_to_moved_dr is not None:
        return rock_ridge.cl_to_moved_dr
    return record


def _is_elsewhere(record: DirectoryRecord) -> bool:
    """Whether this is where a directory was moved to, and not where it belongs."""
    return record.rock_ridge is not None and record.rock_ridge.relocated_record()

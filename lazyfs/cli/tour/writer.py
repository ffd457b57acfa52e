"""Writes an ISO 9660 image. The only module that imports pycdlib."""

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

import pycdlib


def write_iso(target: Path, files: Mapping[str, Path], label: str) -> None:
    """Write an image with Rock Ridge names that contains ``files``: paths in it -> local files.

    ``label``: the volume's name, at most 32 of A-Z, 0-9 and ``_``. Directories are made as needed.
    The files are on disk in the order in which ISO 9660 sorts their directories.
    """
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, vol_ident=label, rock_ridge="1.09")
    plain = {PurePosixPath(): ""}  # directories by their ISO 9660 names, which are restricted
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

"""The image of the tour: an ISO with a squashfs in it, like a live system's.

Its bytes are pseudo-random, so that the squashfs does not shrink and sizes are realistic, and the
same each time.
"""

import hashlib
import random
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from lazyfs.cli.tour.writer import write_iso
from lazyfs.core.options import KIB
from lazyfs.system import programs

SQUASHFS = "live/filesystem.squashfs"

_FILES = 320
_FILES_IN_A_DIRECTORY = 16
_SMALLEST, _LARGEST = 4 * KIB, 240 * KIB
_PADDING_FILES = 96
_PADDING = 256 * KIB  # bytes in each
_README = """\
This image was made by "lazyfs demo". The squashfs in live/ holds a tree of
files, as the image of a live system does; pool/ holds padding.
"""

Checksums = Mapping[str, str]  # path -> SHA-256 in hexadecimal


@dataclass(frozen=True)
class Content:
    """The image, and the checksums of its files."""

    iso: Path
    in_squashfs: Checksums
    in_iso: Checksums  # all but the squashfs


def build(directory: Path) -> Content:
    """Make the image in the empty ``directory``. Raises LazyfsError, OSError."""
    rng = random.Random(0)  # noqa: S311  # padding, not secrets
    tree, iso = directory / "tree", directory / "demo.iso"
    in_squashfs = _write_files(tree, _tree(rng))
    squashfs = directory / "filesystem.squashfs"
    programs.run("mksquashfs", [tree, squashfs, "-no-progress", "-all-root", "-no-xattrs"])
    shutil.rmtree(tree)
    loose = directory / "loose"
    in_iso = _write_files(loose, {"README.txt": _README.encode(), **_padding(rng)})
    write_iso(iso, {SQUASHFS: squashfs, **{name: loose / name for name in in_iso}}, "LAZYFS_DEMO")
    shutil.rmtree(loose)
    squashfs.unlink()
    return Content(iso, in_squashfs, in_iso)


def _tree(rng: random.Random) -> dict[str, bytes]:
    return {
        f"usr/share/part{number // _FILES_IN_A_DIRECTORY:02}/file{number:03}.dat": rng.randbytes(
            rng.randint(_SMALLEST, _LARGEST)
        )
        for number in range(_FILES)
    }


def _padding(rng: random.Random) -> dict[str, bytes]:
    return {f"pool/padding{n:02}.bin": rng.randbytes(_PADDING) for n in range(_PADDING_FILES)}


def _write_files(directory: Path, files: Mapping[str, bytes]) -> Checksums:
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return {name: hashlib.sha256(content).hexdigest() for name, content in files.items()}

"""The images of the benchmark: made once from files of this machine's /usr, and kept.

The main image is 1 GiB: a squashfs (gzip, the default of mksquashfs), followed by random bytes. It
contains about 900 MB of files, picked from /usr by a hash of their names. The others contain the
same files in other filesystems or compressions, without padding. The ISO contains that squashfs,
and many small files; see `iso.py`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from bench import iso, system

MAIN = "gzip"
KINDS = ("gzip", "xz", "zstd", "lz4", "erofs", "ext4")
ISO = "iso"
ROOT = "root"
PACKAGES = ("python3-numpy", "gcc", "libc6-dev", "perl", "git", "vim", "nodejs")
"""In the root filesystem, beside Debian's smallest one."""
SUITE = "bookworm"
SIZE = 1 << 30
CONTENT = 900_000_000
"""Bytes of files in an image, before compression."""
LARGEST = 16 << 20
"""Bytes: larger files are left out, so that no single one dominates a measurement."""
READ_FILES = 200
LARGEST_READ = 4 << 20
SEED = 20
BUILD_LIMIT = 3600.0


@dataclass(frozen=True)
class Image:
    """A file with a filesystem of type `fstype`, of which a job reads `files`."""

    path: Path
    fstype: str
    files: list[str]
    start: int = 0
    """The offset of the filesystem, in bytes."""

    @property
    def size(self) -> int:
        """The size of the image, in bytes."""
        return self.path.stat().st_size


class Images:
    """The images in a directory, made on first use."""

    def __init__(self, directory: Path, say: Callable[[str], None]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory, self._say = directory, say

    def get(self, kind: str) -> Image:
        """The image of this kind. Raises Failed if it cannot be made."""
        path = self._directory / f"{kind}.img"
        fstype = kind if kind in ("erofs", "ext4") else "squashfs"
        if not path.exists():
            self._say(f"making the {kind} image; it is kept in {self._directory}")
            self._make(kind, path)
        if kind == MAIN:
            return Image(path, fstype, self._files(path))
        if kind == ROOT:
            return Image(path, fstype, [])
        start = iso.start_of(path, iso.SQUASHFS) if kind == ISO else 0
        return Image(path, fstype, self.get(MAIN).files, start)

    def _make(self, kind: str, path: Path) -> None:
        with tempfile.TemporaryDirectory(dir=self._directory) as scratch:
            unfinished = Path(scratch, "image")
            if kind == MAIN:
                tree = Path(scratch, "tree")
                copy_sample(Path("/usr"), tree)
                system.run(squashfs(tree, unfinished, kind), BUILD_LIMIT)
                pad(unfinished)
            elif kind == ROOT:
                tree = Path(scratch, "tree.tar")
                system.run(debian(tree), BUILD_LIMIT)
                system.run([*squashfs("-", unfinished, MAIN), "-tar"],
                           BUILD_LIMIT, stdin=tree)  # fmt: skip
            elif kind == ISO:
                tree = Path(scratch, "tree")
                iso.plant(tree, self.get(MAIN).path)
                iso.make(tree, unfinished)
            else:
                with mounted(self.get(MAIN).path, "squashfs") as tree:
                    system.run(builder(kind, tree, unfinished), BUILD_LIMIT)
            unfinished.rename(path)

    def _files(self, path: Path) -> list[str]:
        listing = path.with_suffix(".files.json")
        if not listing.exists():
            with mounted(path, "squashfs") as tree:
                listing.write_text(json.dumps(choose_files(tree), indent=0))
        files: list[str] = json.loads(listing.read_text())
        return files


def copy_sample(source: Path, target: Path) -> None:
    """Copy about CONTENT bytes of the files under `source`: those with a low hash of the name."""
    sizes = {path: path.lstat().st_size for path in regular_files(source)}
    sizes = {path: size for path, size in sizes.items() if size <= LARGEST}
    limit = CONTENT / max(CONTENT, sum(sizes.values())) * 2**32
    for path in sizes:
        if zlib.crc32(os.fsencode(path)) < limit:
            copy = target / path.relative_to(source)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, copy)


def regular_files(directory: Path) -> Iterator[Path]:
    """All regular files below, in no particular order, on this filesystem or others."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            if path.is_file() and not path.is_symlink():
                yield path


def choose_files(tree: Path) -> list[str]:
    """The files that a job reads, in order; deterministic for an image."""
    sizes = ((path, path.stat().st_size) for path in regular_files(tree))
    fit = sorted(str(path.relative_to(tree)) for path, size in sizes if 0 < size <= LARGEST_READ)
    return random.Random(SEED).sample(fit, min(READ_FILES, len(fit)))


def pad(path: Path) -> None:
    """Pad to SIZE with random bytes, the same every time."""
    dice = random.Random(SEED)
    with path.open("ab") as file:
        while (missing := SIZE - file.tell()) > 0:
            file.write(dice.randbytes(min(missing, 1 << 20)))


def builder(kind: str, tree: Path, path: Path) -> list[str | Path]:
    """The command that makes the image of this kind."""
    if kind == "erofs":
        return ["mkfs.erofs", "-zlz4hc", "-x-1", path, tree]
    if kind == "ext4":
        return ext4(tree, path)
    return squashfs(tree, path, kind)


def debian(path: Path) -> list[str | Path]:
    """The command that makes a tar archive of a Debian with the programs that `hello` starts."""
    return ["mmdebstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", SUITE, path]


def squashfs(tree: str | Path, path: Path, compression: str) -> list[str | Path]:
    """mksquashfs with its defaults, except for the compression."""
    return ["mksquashfs", tree, path, "-comp", compression, "-noappend", "-no-progress", "-quiet"]


def ext4(tree: Path, path: Path) -> list[str | Path]:
    """mke2fs with enough room and inodes for the tree, and without a journal."""
    sizes = [file.stat().st_size for file in regular_files(tree)]
    room = sum(-(-size // 4096) * 4096 for size in sizes)
    inodes = 2 * len(sizes) + 1000
    megabytes = (room + room // 10 + inodes * 256 >> 20) + 64
    return ["mke2fs", "-q", "-t", "ext4", "-O", "^has_journal", "-N", str(inodes), "-d", tree, path,
            f"{megabytes}M"]  # fmt: skip


@contextlib.contextmanager
def mounted(path: Path, fstype: str) -> Iterator[Path]:
    """The filesystem in a local image, mounted on a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-bench-") as name, system.loop_device() as loop:
        system.mount(path, loop, name, fstype)
        try:
            yield Path(name)
        finally:
            system.unmount(Path(name))

"""The ISO image for listing and extraction: made once, with the same small files everywhere.

It has Rock Ridge and Joliet names, 10,000 files in 320 directories, some of them of 1 MB, and the
main image's squashfs, like a live medium.
"""

from __future__ import annotations

import random
import re
import shutil
import struct
from pathlib import Path

from bench import system

SQUASHFS = "live/filesystem.squashfs"
FILES = 10_000
DIRECTORIES = 300
GROUPS = 20
"""Directories at the top, with the others below them."""
SMALL = 4000
"""Bytes: most files are smaller than this."""
LARGE = 1_000_000
"""Bytes in every thousandth file."""
SEED = 21
SECTOR = 2048
BUILD_LIMIT = 600.0

BYTES_USED = struct.Struct("<40xQ")
"""In a squashfs's superblock: its length, without padding."""


def names() -> list[str]:
    """The paths of the files; the last part of each is unique."""
    return [
        f"pool/group{number % GROUPS:02}/part{number % DIRECTORIES:03}/file{number:05}.bin"
        for number in range(FILES)
    ]


def large_file() -> str:
    """The path of one of the larger files, neither the first nor the last on the disk."""
    return names()[FILES // 2]


def content(name: str) -> bytes:
    """The content of a file: incompressible bytes, the same every time."""
    number = int(name[-9:-4])
    dice = random.Random(SEED * FILES + number)
    return dice.randbytes(LARGE if number % 1000 == 0 else dice.randrange(SMALL))


def plant(tree: Path, image: Path) -> None:
    """Create all files in a directory; the squashfs is taken from the beginning of `image`."""
    for name in names():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    squashfs = tree / SQUASHFS
    squashfs.parent.mkdir()
    cut(image, squashfs)


def cut(image: Path, squashfs: Path) -> None:
    """Copy the squashfs at the beginning of an image, without the bytes after it."""
    with image.open("rb") as source, squashfs.open("wb") as target:
        (length,) = BYTES_USED.unpack(source.read(BYTES_USED.size))
        source.seek(0)
        shutil.copyfileobj(source, target)
        target.truncate(-(-length // 4096) * 4096)


def make(tree: Path, image: Path) -> None:
    """Write the image, with xorriso's defaults for live media."""
    options = ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "BENCH", "-o"]
    system.run(["xorriso", *options, image, tree], BUILD_LIMIT)


def listing(image: str | Path) -> list[str]:
    """The command that lists all files in an ISO, with sizes."""
    return ["xorriso", "-indev", f"stdio:{image}", "-find", "/", "-exec", "lsdl"]


def extraction(image: str | Path, name: str) -> list[str]:
    """The command that prints a file of an ISO."""
    return ["xorriso", "-indev", f"stdio:{image}", "-osirrox", "on", "-concat", "append", "-", name]


def start_of(image: Path, name: str) -> int:
    """The offset of a file in an ISO, in bytes. Raises Failed."""
    command = ["xorriso", "-indev", f"stdio:{image}", "-find", f"/{name}", "-exec", "report_lba"]
    match = re.search(r"^File data lba: *\d+ , *(\d+) ,", system.run(command), re.MULTILINE)
    if match is None:
        raise system.Failed(f"there is no {name} in {image}")
    return int(match[1]) * SECTOR

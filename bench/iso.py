"""The ISO image that is looked into: made once, with the same small files on every machine.

It has Rock Ridge and Joliet names, 10,000 files in 320 directories, some of 1 MB among them, and
the main image's squashfs, as a live medium has.
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
"""Directories at the top; the others are spread over them."""
SMALL = 4000
"""Bytes: files are smaller than this, as a rule."""
LARGE = 1_000_000
"""Bytes of every thousandth file."""
SEED = 21
SECTOR = 2048
BUILD_LIMIT = 600.0

BYTES_USED = struct.Struct("<40xQ")
"""In a squashfs's superblock: how long it is, without what is behind it."""


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
    """What is in a file: bytes that do not compress, the same ones every time."""
    number = int(name[-9:-4])
    dice = random.Random(SEED * FILES + number)
    return dice.randbytes(LARGE if number % 1000 == 0 else dice.randrange(SMALL))


def plant(tree: Path, image: Path) -> None:
    """Put all files into a directory; the squashfs is what `image` begins with."""
    for name in names():
        file = tree / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content(name))
    squashfs = tree / SQUASHFS
    squashfs.parent.mkdir()
    cut(image, squashfs)


def cut(image: Path, squashfs: Path) -> None:
    """Copy the squashfs at the beginning of an image, without what is behind it."""
    with image.open("rb") as source, squashfs.open("wb") as target:
        (length,) = BYTES_USED.unpack(source.read(BYTES_USED.size))
        source.seek(0)
        shutil.copyfileobj(source, target)
        target.truncate(-(-length // 4096) * 4096)


def make(tree: Path, image: Path) -> None:
    """Write the image, as xorriso makes it for live media by default."""
    options = ["-as", "mkisofs", "-quiet", "-R", "-J", "-V", "BENCH", "-o"]
    system.run(["xorriso", *options, image, tree], BUILD_LIMIT)


def listing(image: str | Path) -> list[str]:
    """The command that prints all that is in an ISO, with sizes."""
    return ["xorriso", "-indev", f"stdio:{image}", "-find", "/", "-exec", "lsdl"]


def extraction(image: str | Path, name: str) -> list[str]:
    """The command that prints a file of an ISO."""
    return ["xorriso", "-indev", f"stdio:{image}", "-osirrox", "on", "-concat", "append", "-", name]


def start_of(image: Path, name: str) -> int:
    """Where a file begins in an ISO. Raises Failed."""
    command = ["xorriso", "-indev", f"stdio:{image}", "-find", f"/{name}", "-exec", "report_lba"]
    match = re.search(r"^File data lba: *\d+ , *(\d+) ,", system.run(command), re.MULTILINE)
    if match is None:
        raise system.Failed(f"there is no {name} in {image}")
    return int(match[1]) * SECTOR

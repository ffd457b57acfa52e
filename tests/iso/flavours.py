"""Images of every flavour, made by the programs that people make images with."""

import os
import subprocess
from collections.abc import Iterable
from pathlib import Path

from real.images import Images
from real.mounts import environment, need_tool, run_well

from lazyfs.formats.iso.catalog import JOLIET, PLAIN, ROCK_RIDGE, UDF

_LIMIT = 300.0  # seconds for making an image
_ZONE = "Asia/Kolkata"  # half an hour off, so that a lost or doubled time zone shows

HUGE = 5 << 30  # bytes in the file that needs several extents
HUGE_TAIL = 123
HUGE_MARKS = (0, (4 << 30) - 2048, 4 << 30, HUGE + HUGE_TAIL - 16)

# Flavour: the namespace that is to be used, and the command that makes it, without its output.
FLAVOURS: dict[str, tuple[str, list[str]]] = {
    "xorriso-rr": (ROCK_RIDGE, ["xorriso", "-as", "mkisofs"]),
    "xorriso-rr-joliet": (ROCK_RIDGE, ["xorriso", "-as", "mkisofs", "-J", "-joliet-long"]),
    "xorriso-joliet": (JOLIET, ["xorriso", "-as", "mkisofs", "--norock", "-J", "-joliet-long"]),
    "xorriso-plain": (PLAIN, ["xorriso", "-as", "mkisofs", "--norock", "-iso-level", "3"]),
    "genisoimage-rr": (ROCK_RIDGE, ["genisoimage", "-R"]),
    "genisoimage-rr-joliet-udf": (ROCK_RIDGE, ["genisoimage", "-R", "-J", "-udf"]),
    "genisoimage-joliet": (JOLIET, ["genisoimage", "-J", "-joliet-long"]),
    "genisoimage-udf": (UDF, ["genisoimage", "-udf"]),
    "genisoimage-level-1": (PLAIN, ["genisoimage", "-iso-level", "1"]),
    "genisoimage-level-2": (PLAIN, ["genisoimage", "-iso-level", "2"]),
    "genisoimage-level-3": (PLAIN, ["genisoimage", "-iso-level", "3"]),
    "genisoimage-level-4": (PLAIN, ["genisoimage", "-iso-level", "4"]),
}


def make(command: Iterable[str | Path], tree: Path, image: Path) -> Path:
    """Make ``image`` of what is in ``tree``."""
    program, *options = command
    need_tool(str(program), str(program))
    done = subprocess.run(
        [program, *options, "-quiet", "-V", "A_LABEL", "-o", image, tree],
        env=environment(image.parent, TZ=_ZONE),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=_LIMIT,
        check=False,
    )
    assert done.returncode == 0, done.stderr.decode(errors="replace")
    return image


def extract(image: Path, directory: Path, *options: str) -> None:
    """Have xorriso copy all of an image; ``options`` choose what it reads it by."""
    words: list[str | Path] = [
        "xorriso",
        "-osirrox",
        "on:auto_chmod_off",
        *options,
        "-indev",
        image,
    ]
    run_well([*words, "-extract", "/", directory, "-rollback_end"], _LIMIT)


def plant(tree: Path) -> Path:
    """A tree with what is worth a test, but for what only some flavours can hold."""
    tree.mkdir()
    for size in (0, 1, 2047, 2048, 2049, 100_000):
        (tree / f"size{size}.bin").write_bytes(bytes(n * 7 % 251 for n in range(size)))
    (tree / "empty directory").mkdir()
    (tree / "casper").mkdir()
    (tree / "casper/filesystem.squashfs").write_bytes(b"hsqs" * 5000)
    (tree / "casper/many").mkdir()
    for number in range(300):  # more than fit into one block of a directory
        (tree / f"casper/many/file number {number:03d}.txt").write_text(f"{number}\n" * number)
    (tree / "grüße \N{SNOWMAN}.txt").write_text("not ASCII\n")
    (tree / f"long {'name ' * 10}.txt").write_text("a name as long as Joliet's may be\n")
    for number, path in enumerate(sorted(tree.rglob("*"))):
        moment = 946_684_799 + number * 1_234_567  # from the last second of 1999 to 2012
        os.utime(path, (moment, moment))
    return tree


def plant_posix(tree: Path) -> Path:
    """What only Rock Ridge can hold, beside what all can. Needs root for owners and devices."""
    plant(tree)
    deep = tree / "/".join(f"level{number}" for number in range(1, 13))
    deep.mkdir(parents=True)
    (deep / "deep down.txt").write_text("deeper than ISO 9660 allows\n")
    (deep.parent / "beside").mkdir()
    (tree / ("n" * 200)).write_text("a name that needs a continuation area\n")
    _plant_links(tree)
    os.mkfifo(tree / "fifo", 0o640)
    tools = tree / "tools"
    tools.write_text("#!/bin/sh\n")
    if os.geteuid() == 0:
        os.mknod(tree / "null", 0o020666, os.makedev(1, 3))
        os.mknod(tree / "disk", 0o060660, os.makedev(259, 70_000))
        os.chown(tools, 1234, 65_534)
    tools.chmod(0o4750)
    (tree / "casper").chmod(0o1711)
    os.link(tools, tree / "casper/the same tools")
    return tree


def plant_bytes(tree: Path) -> Path:
    """Names and a link that are not UTF-8, which nothing but Rock Ridge can hold."""
    tree.mkdir()
    directory = os.fsencode(tree)
    with open(directory + b"/not UTF-8: \xff\xe9", "w") as file:
        file.write("bytes\n")
    os.symlink(b"\xff/\xfe", directory + b"/\xfd")
    return tree


def plant_long_links(tree: Path) -> Path:
    """Links that Rock Ridge has to cut within a name. genisoimage writes them wrong."""
    tree.mkdir()
    (tree / "one name").symlink_to("n" * 255)
    (tree / "some names").symlink_to("/".join(["a" * 255, "..", "b" * 255, ".", "c" * 255]))
    return tree


def _plant_links(tree: Path) -> None:
    for name, target in {
        "relative": "casper/filesystem.squashfs",
        "absolute": "/casper/many",
        "root": "/",
        "dangling": "no/such/../file",
        "dots": "./casper/../casper/./many",
        "up": "../../..",
        "loop": "loop",
        "long": "/".join(["a" * 60, "b" * 60, "c" * 60]),
    }.items():
        (tree / name).symlink_to(target)


class IsoImages(Images):
    """Large images, made once and kept."""

    def huge(self, flavour: str, command: list[str]) -> Path:
        """An image with ``huge.bin``, a file of 5 GiB and a bit, and two small ones around it."""
        with self._making(f"huge-{flavour}.iso") as path:
            if path:
                tree = path.with_name(f"huge-{flavour}.tree")
                _plant_huge(tree)
                _make_sparse([*command, "-quiet", str(tree)], path)
                for file in tree.iterdir():
                    file.unlink()
                tree.rmdir()
        return self.root / f"huge-{flavour}.iso"

    def many_files(self) -> Path:
        """An image with 10,000 files in 800 directories, as an installation medium may have."""
        with self._making("ten-thousand.iso") as path:
            if path:
                tree = path.with_name("ten-thousand.tree")
                for number in range(10_000):
                    file = tree / f"pool/main/{number // 250}/package{number // 25}/{number}.deb"
                    file.parent.mkdir(parents=True, exist_ok=True)
                    file.write_bytes(b"%d" % number * (number % 1000))
                make(FLAVOURS["xorriso-rr-joliet"][1], tree, path)
                run_well(["rm", "-r", tree])
        return self.root / "ten-thousand.iso"


def mark(offset: int) -> bytes:
    """What stands at one of HUGE_MARKS in the huge file."""
    return b"%-16d" % offset


def _plant_huge(tree: Path) -> None:
    tree.mkdir(exist_ok=True)
    (tree / "a first.txt").write_text("before it\n")
    (tree / "z last.txt").write_text("behind it\n")
    with open(tree / "huge.bin", "wb") as file:
        for offset in HUGE_MARKS:
            file.seek(offset)
            file.write(mark(offset))


def _make_sparse(command: list[str], image: Path) -> None:
    """Run a command that writes an image to its output, and keep that without its zeros."""
    need_tool(command[0], command[0])
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as maker:
        words = ["dd", f"of={image}", "bs=64K", "iflag=fullblock", "conv=sparse", "status=none"]
        subprocess.run(words, stdin=maker.stdout, check=True, timeout=_LIMIT)
    assert maker.returncode == 0, command

"""Images that need a guest's kernel: made once, kept outside the tree."""

import shutil
from pathlib import Path

from real.images import MIB, Images
from real.mounts import need_tool, run_well

_MAKE_LIMIT = 300.0  # seconds
_SMALL = 200  # files


class Disks(Images):
    """The images of the other tests, and more."""

    def iso(self) -> Path:
        """An ISO 9660 image of the tree, with Rock Ridge."""
        tree = self.tree()
        with self._making("tree.iso") as path:
            if path:
                tool = need_tool("xorriso", "xorriso")
                run_well([tool, "-as", "mkisofs", "-quiet", "-R", "-o", path, tree], _MAKE_LIMIT)
        return self.root / "tree.iso"

    def small_tree(self) -> Path:
        """A directory of 2 MiB."""
        tree = self.tree()
        with self._making("small-tree") as path:
            if path:
                shutil.copytree(tree / "deep/er", path, ignore=shutil.ignore_patterns("and"))
        return self.root / "small-tree"

    def partitioned(self) -> Path:
        """A disk with a GPT: the small tree as ext4, and once more as squashfs."""
        tree = self.small_tree()
        with self._making("partitioned.raw") as path:
            if path:
                self._partition(path, tree)
        return self.root / "partitioned.raw"

    def _partition(self, disk: Path, tree: Path) -> None:
        parts = [disk.with_name(f"{disk.name}.{number}") for number in (1, 2)]
        options = ["-q", "-E", "root_owner=0:0", "-d", tree]
        run_well([need_tool("mkfs.ext4", "e2fsprogs"), *options, parts[0], "16M"], _MAKE_LIMIT)
        tool = need_tool("mksquashfs", "squashfs-tools")
        run_well([tool, tree, parts[1], "-noappend", "-no-progress", "-quiet"], _MAKE_LIMIT)
        table = (
            "label: gpt\nstart=1MiB, size=16MiB, name=ext4\nstart=17MiB, size=8MiB, name=squash\n"
        )
        described = disk.with_name(f"{disk.name}.table")
        described.write_text(table)
        with open(disk, "wb") as file:
            file.truncate(32 * MIB)
        sfdisk = need_tool("sfdisk", "fdisk")
        run_well(["sh", "-c", '"$0" --quiet "$1" <"$2"', sfdisk, disk, described], _MAKE_LIMIT)
        with open(disk, "r+b") as file:
            for part, start in zip(parts, (MIB, 17 * MIB), strict=True):
                file.seek(start)
                file.write(part.read_bytes())
                part.unlink()
        described.unlink()

"""Images to read: made once, kept outside the tree between runs."""

import contextlib
import fcntl
import hashlib
import os
import random
import shutil
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

from .mounts import IS_ROOT, need_tool, run, run_well

MIB = 1 << 20

PROBE = "deep/in/the/tree/probe.bin"  # the 1 MiB file of the 1 GiB squashfs
_MAKE_LIMIT = 300.0  # seconds

# Real images made by others, by Debian package.
PACKAGED = {
    "grub-rescue-pc": (
        "usr/lib/grub-rescue/grub-rescue-cdrom.iso",
        "usr/lib/grub-rescue/grub-rescue-floppy.img",
    ),
    "ipxe": ("usr/lib/ipxe/ipxe.iso",),
    "memtest86+": (
        "usr/lib/memtest86+/memtest86+x64.iso",
        "usr/lib/memtest86+/memtest86+ia32.iso",
    ),
}


def cache_directory() -> Path:
    """The directory for images, readable by servers that drop root privileges."""
    named = os.environ.get("LAZYFS_TEST_CACHE")
    fallback = Path("/var/cache/lazyfs-tests") if IS_ROOT else Path.home() / ".cache/lazyfs-tests"
    directory = Path(named).absolute() if named else fallback
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    return directory


class Images:
    """The images, each made on first use; ``root`` is the root of servers."""

    def __init__(self, directory: Path) -> None:
        self.root = directory

    def random(self) -> Path:
        """128 MiB and a few bytes, so that the last block is short."""
        with self._making("random-128M.raw") as path:
            if path:
                _write_random(path, 128 * MIB + 777, seed=1)
        return self.root / "random-128M.raw"

    def tree(self) -> Path:
        """A directory of 110 MiB, with sizes and names that are edge cases."""
        with self._making("tree") as path:
            if path:
                _plant(path)
        return self.root / "tree"

    def squashfs(self) -> Path:
        tree = self.tree()
        with self._making("tree.squashfs") as path:
            if path:
                _mksquashfs(tree, path)
        return self.root / "tree.squashfs"

    def ext4(self) -> Path:
        tree = self.tree()
        with self._making("tree.ext4") as path:
            if path:
                tool = need_tool("mkfs.ext4", "e2fsprogs")
                run_well([tool, "-q", "-d", tree, path, "160M"], _MAKE_LIMIT)
        return self.root / "tree.ext4"

    def erofs(self) -> Path:
        tree = self.tree()
        with self._making("tree.erofs") as path:
            if path:
                run_well([need_tool("mkfs.erofs", "erofs-utils"), path, tree], _MAKE_LIMIT)
        return self.root / "tree.erofs"

    def disk(self) -> Path:
        """4 GiB, sparse: a GPT with an ext4, an xfs and a squashfs, and a partition of zeros."""
        filesystems = self.ext4(), self._xfs(), self.squashfs()
        with self._making("disk.raw") as path:
            if path:
                _partition(path, filesystems)
        return self.root / "disk.raw"

    def _xfs(self) -> Path:
        """A filesystem with the 1 MiB file ``probe.bin``."""
        with self._making("probe.xfs") as path:
            if path:
                content, prototype = path.with_suffix(".bin"), path.with_suffix(".proto")
                content.write_bytes(random.Random(11).randbytes(MIB))
                prototype.write_text(f"boot\n0 0\nd--755 0 0\nprobe.bin ---644 0 0 {content}\n$\n")
                with open(path, "wb") as file:
                    file.truncate(320 * MIB)
                tool = need_tool("mkfs.xfs", "xfsprogs")
                run_well([tool, "-q", "-L", "probe", "-p", prototype, path], _MAKE_LIMIT)
        return self.root / "probe.xfs"

    def large_squashfs(self) -> tuple[Path, str]:
        """A squashfs of 1 GiB in 6,000 files, and the SHA-256 of the file PROBE in it."""
        with self._making("large.squashfs") as path:
            if path:
                tree = path.with_name("large.tree")
                shutil.rmtree(tree, ignore_errors=True)
                digest = _plant_large(tree)
                _mksquashfs(tree, path)
                shutil.rmtree(tree)
                (self.root / "large.sha256").write_text(digest)
        return self.root / "large.squashfs", (self.root / "large.sha256").read_text()

    def terabyte(self) -> Path:
        """1 TiB of zeros, with a mark in the first, a middle and the last megabyte."""
        with self._making("terabyte.raw") as path:
            if path:
                with open(path, "wb") as file:
                    for offset in terabyte_marks():
                        file.seek(offset)
                        file.write(b"%-16d" % offset)
        return self.root / "terabyte.raw"

    def packaged(self, package: str, member: str) -> Path:
        """An image from a Debian package, which is downloaded if it is not installed."""
        name = f"packaged/{package}/{member}"
        with self._making(name) as path:
            if path:
                shutil.copy(_find_packaged(package, member, self.root), path)
        return self.root / name

    @contextlib.contextmanager
    def _making(self, name: str) -> Iterator[Path | None]:
        """The path at which to make ``name``, or None if it exists; renamed once complete."""
        final = self.root / name
        final.parent.mkdir(parents=True, exist_ok=True)
        with open(self.root / ".lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if final.exists():
                yield None
                return
            partial = final.with_name(f"{final.name}.partial")
            if partial.is_dir():
                shutil.rmtree(partial)
            partial.unlink(missing_ok=True)
            yield partial
            os.replace(partial, final)


def terabyte_marks() -> tuple[int, ...]:
    size = 1 << 40
    return (0, 300 * 10**9 // 4096 * 4096, size - MIB, size - 16)


def listing(directory: Path) -> dict[str, tuple[str, str]]:
    """Every path below a directory, with its kind and the digest of its content."""
    found = {}
    for folder, folders, files in os.walk(directory):
        for name in [*folders, *files]:
            path = Path(folder, name)
            found[str(path.relative_to(directory))] = _described(path)
    found.pop("lost+found", None)  # ext4's own
    return found


def digest_of(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _described(path: Path) -> tuple[str, str]:
    if path.is_symlink():
        return "link", os.readlink(path)
    if path.is_dir():
        return "directory", ""
    return "file", digest_of(path)


def _write_random(path: Path, size: int, seed: int) -> None:
    source = random.Random(seed)
    with open(path, "wb") as file:
        while size:
            piece = source.randbytes(min(size, 4 * MIB))
            file.write(piece)
            size -= len(piece)


def _plant(tree: Path) -> None:
    (tree / "deep/er/and/deeper").mkdir(parents=True)
    (tree / "empty directory").mkdir()
    for number, size in enumerate((0, 1, 4095, 4096, 4097, 65535, 65536, 65537, 131072, 30 * MIB)):
        _write_random(tree / f"size-{size}", size, seed=number)
    for number in range(300):
        _write_random(tree / f"deep/er/{number:03d}.bin", 1000 + 37 * number, seed=100 + number)
    for number in range(15):
        _write_random(tree / f"deep/er/and/deeper/{number}.bin", 5 * MIB, seed=500 + number)
    (tree / "text").write_text("the quick brown fox\n" * 20000)
    (tree / "grüße \N{SNOWMAN}").write_text("a name that is not ASCII\n")
    (tree / "link").symlink_to("deep/er/000.bin")
    (tree / "dangling").symlink_to("no/such/file")


def _plant_large(tree: Path) -> str:
    """Make a tree of 1 GiB; returns the digest of PROBE."""
    for number in range(5000):
        path = tree / f"small/{number % 50:02d}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_random(path, 2000 + number, seed=number)
    for number in range(1010):
        path = tree / f"large/{number % 20:02d}/{number}"
        path.parent.mkdir(parents=True, exist_ok=True)
        _write_random(path, MIB, seed=10000 + number)
    probe = tree / PROBE
    probe.parent.mkdir(parents=True)
    _write_random(probe, MIB, seed=99)
    return digest_of(probe)


def _mksquashfs(tree: Path, image: Path) -> None:
    """Data is stored uncompressed (it is random), inodes and directories compressed as usual."""
    tool = need_tool("mksquashfs", "squashfs-tools")
    options = ["-noappend", "-no-progress", "-quiet", "-noD", "-noF", "-processors", "2"]
    run_well([tool, tree, image, *options], _MAKE_LIMIT)


def _find_packaged(package: str, member: str, directory: Path) -> Path:
    installed = Path("/") / member
    if installed.exists():
        return installed
    unpacked = directory / "packaged" / f".{package}"
    if not (unpacked / member).exists():
        unpacked.mkdir(parents=True, exist_ok=True)
        apt = need_tool("apt-get", "apt")
        download = subprocess.run(
            [apt, "download", "-q", package], cwd=unpacked, capture_output=True, text=True,
            timeout=_MAKE_LIMIT, check=False,
        )  # fmt: skip
        archives = sorted(unpacked.glob("*.deb"))
        assert archives, f"{package} cannot be downloaded: {download.stderr}"
        done = run(["dpkg-deb", "-x", archives[-1], unpacked], limit=_MAKE_LIMIT)
        assert done.returncode == 0, done.stderr
    return unpacked / member


def _partition(path: Path, filesystems: Sequence[Path]) -> None:
    """Make a disk with a partition per filesystem, named after its kind, and an empty one."""
    with open(path, "wb") as file:
        file.truncate(4 << 30)
    start, lines = MIB, ["label: gpt"]
    for filesystem in filesystems:
        length = -(-filesystem.stat().st_size // MIB) * MIB
        name = filesystem.suffix[1:]
        lines.append(f'start={start // 512}, size={length // 512}, type=L, name="{name}"')
        run_well(
            ["dd", f"if={filesystem}", f"of={path}", "bs=1M", f"seek={start // MIB}",
             "conv=notrunc,sparse", "status=none"],
            _MAKE_LIMIT,
        )  # fmt: skip
        start += length
    lines.append(f'start={start // 512}, size={64 * MIB // 512}, name="empty"')
    script = path.with_suffix(".sfdisk")
    script.write_text("\n".join(lines) + "\n")
    with open(script) as stdin:
        tool = need_tool("sfdisk", "fdisk")
        command = [tool, "--quiet", "--wipe-partitions", "never", path]
        subprocess.run(command, stdin=stdin, check=True, timeout=60)

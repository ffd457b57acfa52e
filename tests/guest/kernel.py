"""A Debian kernel for guests: fetched once with apt, kept outside the tree between runs."""

import fcntl
import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from real.mounts import need_tool

_LIMIT = 300.0  # seconds for any step
_META = "linux-image-amd64"  # depends on the kernel of this Debian


@dataclass(frozen=True)
class Kernel:
    """An unpacked kernel package."""

    release: str
    image: Path
    modules: Path  # becomes /lib/modules/RELEASE on a machine with this kernel

    def files_of(self, *names: str) -> list[Path]:
        """The files of these modules and their dependencies, in the order of loading."""
        needs: dict[str, list[str]] = {}
        for line in (self.modules / "modules.dep").read_text().splitlines():
            file, _, others = line.partition(":")
            needs[file] = others.split()
        by_name = {Path(file).stem.replace("-", "_"): file for file in needs}
        order: list[str] = []
        for name in names:
            file = by_name[name]
            # The last module in a line of modules.dep needs none of the others.
            order += [need for need in (*reversed(needs[file]), file) if need not in order]
        return [self.modules / file for file in order]


def debian_kernel(cache: Path) -> Kernel:
    """The kernel, from ``cache`` or downloaded by apt; skips if there is no apt."""
    with open(cache / ".kernel.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        package = _package()
        unpacked = cache / "kernel" / package
        if not unpacked.exists():
            _unpack(package, unpacked)
    (image,) = (unpacked / "boot").glob("vmlinuz-*")
    release = image.name.removeprefix("vmlinuz-")
    return Kernel(release, image, unpacked / "lib/modules" / release)


def _package() -> str:
    """The kernel's package. Not the small kernel for clouds, which has no 9p."""
    said = _run([need_tool("apt-cache", "apt"), "depends", _META])
    found = re.search(r"Depends: (linux-image-[0-9][^ ]*-amd64)$", said, re.MULTILINE)
    assert found, f"{_META} depends on no kernel: {said}"
    return found[1]


def _unpack(package: str, where: Path) -> None:
    partial = where.with_name(f"{where.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    _run([need_tool("apt-get", "apt"), "download", "-q", package], partial)
    (archive,) = partial.glob("*.deb")
    _run(["dpkg-deb", "-x", archive.name, "."], partial)
    archive.unlink()
    (release,) = (partial / "lib/modules").iterdir()
    _run([need_tool("depmod", "kmod"), "--basedir", str(partial), release.name])
    os.replace(partial, where)


def _run(command: list[str], directory: Path | None = None) -> str:
    done = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, check=False, timeout=_LIMIT
    )
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout

"""Debian machines on which nothing was done yet: root directories, each in namespaces of its own.

They share the network of the machine that runs the tests, and its kernel.
"""

import contextlib
import os
import platform
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from keep import kept
from packages import Package, copy_tree, packages_in
from real.mounts import need_tool, run, run_well

_LIMIT = 900.0  # seconds for any step
_AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
_NETWORK = ("http_proxy", "https_proxy", "no_proxy", "PIP_INDEX_URL")  # how to get out of here
_ENTER = """\
mount -t proc proc "$0/proc"
for directory in sys dev; do mount --rbind "/$directory" "$0/$directory"; done
exec chroot "$0" sh -ec "$1"
"""


@dataclass(frozen=True)
class Release:
    """A release of Debian."""

    number: int
    suite: str

    def __str__(self) -> str:
        return f"debian{self.number}"

    @contextlib.contextmanager
    def machine(self, directory: Path) -> Iterator["Machine"]:
        root = directory / str(self)
        root.mkdir()
        try:
            run_well(["tar", "--extract", "--file", self._tar(), "--directory", root], _LIMIT)
            yield Machine(root)
        finally:
            shutil.rmtree(root)

    def _tar(self) -> Path:
        """What every Debian has (Priority: required) and apt."""
        tool = need_tool("mmdebstrap", "mmdebstrap")
        sources = _sources(self.suite)

        def make(place: Path) -> None:
            settings = place / "apt.conf"
            settings.write_text(_apt_settings())
            variant = ["--quiet", "--variant=minbase", f"--aptopt={settings}"]
            run_well([tool, *variant, self.suite, place / "root.tar", *sources], _LIMIT)

        return kept(self.suite, [*sources, _apt_settings()], make) / "root.tar"


RELEASES = [Release(12, "bookworm"), Release(13, "trixie")]


class Machine:
    """A machine, as a root directory."""

    def __init__(self, root: Path) -> None:
        self.root = root
        shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")
        if _AUTHORITIES.exists():  # this network may have authorities of its own
            shutil.copy(_AUTHORITIES, root / "etc/authorities.pem")
            (root / "etc/pip.conf").write_text("[global]\ncert = /etc/authorities.pem\n")
        self._started = time.monotonic()
        self._size = self._disk_usage()

    def do(self, script: str) -> str:
        """Run a script of the shell, which must succeed; returns what it writes to stdout."""
        outside = {name: os.environ[name] for name in _NETWORK if name in os.environ}
        alone = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
        inside = {
            "DEBIAN_FRONTEND": "noninteractive", "HOME": "/root", "LC_ALL": "C.UTF-8",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        }  # fmt: skip
        command = [*alone, "sh", "-ec", _ENTER, self.root, script]
        done = run(command, env={**outside, **inside}, limit=_LIMIT)
        assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def install(self, *packages: str) -> None:
        self.do(f"""
            apt-get update --quiet
            apt-get install --yes --no-install-recommends {" ".join(packages)}
        """)

    def build(self) -> None:
        """Build the packages as anybody would do it."""
        copy_tree(self.root / "work/lazyfs")
        self.do("""
            apt-get update --quiet
            cd /work/lazyfs
            apt-get build-dep --yes --no-install-recommends ./
            dpkg-buildpackage --unsigned-changes --build=binary
        """)

    def built(self) -> tuple[Package, Package]:
        """The packages that were built here: lazyfs and lazyfs-initramfs."""
        return packages_in(self.root / "work")

    def files(self) -> set[str]:
        """The paths of all its files."""
        return set(self.do("find / -xdev ! -type d").splitlines())

    def so_far(self) -> str:
        """What has been done with this machine, in seconds and megabytes."""
        seconds = time.monotonic() - self._started
        fetched = _megabytes(self.root / "var/cache/apt/archives")
        grown = self._disk_usage() - self._size
        return f"{seconds:.0f} s, {fetched:.0f} MB of packages fetched, {grown:.0f} MB on disk"

    def _disk_usage(self) -> float:
        """Without what apt keeps for itself."""
        return _megabytes(self.root, self.root / "var/lib/apt", self.root / "var/cache/apt")


def _megabytes(directory: Path, *without: Path) -> float:
    left_out = [f"--exclude={path}" for path in without]
    said = run_well(["du", "--summarize", "--block-size=1", *left_out, directory])
    return int(said.split()[0]) / 1e6


def _sources(suite: str) -> list[str]:
    """Where this machine has Debian from, for another release; nothing where it is not a Debian."""
    what = ["Identifier: Packages", "Origin: Debian", "Component: main"]
    how = ["--format", "deb $(REPO_URI) $(RELEASE) $(COMPONENT)"]
    lines = run_well(["apt-get", "indextargets", *how, *what]).splitlines()
    own = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
    return [re.sub(rf" {own}\b", f" {suite}", line) for line in lines]


def _apt_settings() -> str:
    """How apt reaches its servers from here, through a proxy for instance."""
    return run_well(["apt-config", "dump", "--format", '%f "%v";%n', "Acquire"])

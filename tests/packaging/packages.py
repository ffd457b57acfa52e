"""The Debian packages: built from a copy of the tree, and looked at."""

import configparser
import os
import re
import shutil
from functools import cached_property
from pathlib import Path

import pytest
from keep import kept
from real.mounts import need_tool, run, run_well

ROOT = Path(__file__).parents[2]
PYTHON = "/usr/bin/python3"  # the system's: packages are for that one
_LIMIT = 300.0  # seconds for a build
_SYSTEM = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL": "C.UTF-8"}


class Package:
    """A binary package."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def field(self, name: str) -> str:
        return run_well(["dpkg-deb", "--field", self.path, name]).strip()

    @cached_property
    def root(self) -> Path:
        """A directory with its files."""
        directory = self.path.with_suffix("")
        run_well(["dpkg-deb", "--extract", self.path, directory])
        return directory

    @cached_property
    def files(self) -> set[str]:
        """The paths of its files and links."""
        found = (path for path in self.root.rglob("*") if path.is_symlink() or path.is_file())
        return {str(path.relative_to(self.root)) for path in found}

    @property
    def bundled(self) -> set[str]:
        """The Python projects that are carried along, by their names."""
        pattern = re.compile(r"/site-packages/([\w.]+)-[^/]+\.dist-info/METADATA$")
        found = (pattern.search(name) for name in self.files)
        return {match[1].lower() for match in found if match}

    @property
    def needed(self) -> set[str]:
        """The packages that it depends on."""
        return set(re.findall(r"[\w.+-]+(?= \(|,|$|:)", self.field("Depends")))


def requirements() -> list[str]:
    """What lazyfs requires of Python's projects, as setup.cfg says it."""
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    return setup["options"]["install_requires"].split("\n")[1:]


def copy_tree(target: Path) -> None:
    """The tree as it is, without what git ignores."""
    lines = [".git", *(ROOT / ".gitignore").read_text().split()]
    at_the_top = shutil.ignore_patterns(*(line.strip("/") for line in lines if line[0] == "/"))
    anywhere = shutil.ignore_patterns(*(line.strip("/") for line in lines if line[0] != "/"))

    def ignored(directory: str, names: list[str]) -> set[str]:
        found = set(anywhere(directory, names))
        return found | set(at_the_top(directory, names)) if Path(directory) == ROOT else found

    shutil.copytree(ROOT, target, symlinks=True, ignore=ignored)


def build_here(directory: Path) -> tuple[Package, Package]:
    """lazyfs and lazyfs-initramfs, built for this machine; skips where tools are missing."""
    need_tool("dpkg-buildpackage", "dpkg-dev")
    tree = directory / "lazyfs"
    copy_tree(tree)
    lacking = run(["dpkg-checkbuilddeps"], env=_SYSTEM, cwd=tree).stderr.strip()
    if lacking:
        pytest.skip(lacking)
    wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(_wheels())}
    # For debuggers there is nothing to say: no test looks at it, and it takes a third of the time.
    options = {"DEB_BUILD_OPTIONS": "noautodbgsym"}
    command = ["dpkg-buildpackage", "--unsigned-changes", "--build=binary"]
    done = run(command, env={**_SYSTEM, **options, **wheels}, cwd=tree, limit=_LIMIT)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return packages_in(directory)


def packages_in(directory: Path) -> tuple[Package, Package]:
    (lazyfs,) = directory.glob("lazyfs_*.deb")
    (initramfs,) = directory.glob("lazyfs-initramfs_*.deb")
    return Package(lazyfs), Package(initramfs)


def _wheels() -> Path:
    """A directory with all that lazyfs requires, for the system's Python."""
    pip = [PYTHON, "-m", "pip", "wheel", "--quiet", "--no-input", "--disable-pip-version-check"]

    def make(place: Path) -> None:
        # Without pip's cache: what is in there may have been built with another Python.
        command = [*pip, "--no-cache-dir", "--wheel-dir", str(place), *requirements()]
        done = run(command, env={**os.environ, **_SYSTEM}, limit=_LIMIT)
        assert done.returncode == 0, done.stderr

    return kept("wheels", [run_well([PYTHON, "-VV"]), *requirements()], make)

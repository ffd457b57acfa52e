"""The Debian packages: what is in them, and what lintian says of it."""

import re
import subprocess
from pathlib import Path

import pytest
from packages import ROOT, Package, requirements
from real.mounts import need_tool, run, run_well

from lazyfs import __version__

CONTROL = ROOT / "debian/control"
MAKE_ENVIRONMENT = ROOT / "debian/make-environment"

Packages = tuple[Package, Package]


def project(requirement: str) -> str:
    """The name in a line of setup.cfg."""
    return re.split(r"[^\w-]", requirement)[0]


def package_of(requirement: str) -> str:
    """What Debian calls it."""
    return f"python3-{project(requirement).replace('_', '-')}"


def test_every_changelog_speaks_of_this_version() -> None:
    (version,) = re.findall(r"^lazyfs \((\S+)\)", (ROOT / "debian/changelog").read_text())
    heading = re.search(r"^(\d\S+).*\n-+$", (ROOT / "CHANGELOG.rst").read_text(), re.MULTILINE)
    assert heading
    assert version == heading[1] == __version__


def test_lintian_finds_neither_errors_nor_warnings(packages: Packages) -> None:
    lintian = [need_tool("lintian", "lintian"), "--allow-root", "--fail-on", "error,warning"]
    done = run([*lintian, *(package.path for package in packages)])
    assert done.returncode == 0, done.stdout


def test_the_package_holds_what_belongs_to_a_command(packages: Packages) -> None:
    lazyfs, _ = packages
    assert {name.removesuffix(".gz") for name in lazyfs.files} >= {
        "usr/bin/lazyfs",
        "usr/share/bash-completion/completions/lazyfs",
        "usr/share/doc/lazyfs/CHANGELOG.rst",
        "usr/share/doc/lazyfs/README.rst",
        "usr/share/doc/lazyfs/copyright",
        "usr/share/fish/vendor_completions.d/lazyfs.fish",
        "usr/sbin/mount.lazyfs",
        "usr/share/man/man1/lazyfs.1",
        "usr/share/man/man5/lazyfs-cache.5",
        "usr/share/zsh/vendor-completions/_lazyfs",
    }


def test_all_of_lazyfs_is_in_the_package(packages: Packages) -> None:
    lazyfs, _ = packages
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "lazyfs").rglob("*.py")}
    found = {name.partition("/site-packages/")[2] for name in lazyfs.files}
    assert modules <= found


def test_units_find_the_package_s_lazyfs(packages: Packages) -> None:
    lazyfs, _ = packages
    units = list((ROOT / "contrib/systemd").glob("*@.service"))
    assert units
    for unit in units:
        text = (lazyfs.root / "usr/lib/systemd/system" / unit.name).read_text()
        assert re.search("^ExecStart=(/usr/bin/)?lazyfs ", text, re.MULTILINE)


def test_the_initramfs_package_holds_what_is_installed_by_hand(
    packages: Packages, tmp_path: Path
) -> None:
    _, initramfs = packages
    run_well(["make", "-C", ROOT / "contrib/initramfs", "install", f"DESTDIR={tmp_path}"])
    by_hand = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert "usr/share/initramfs-tools/hooks/lazyfs" in by_hand
    assert by_hand <= initramfs.files


def test_a_new_initramfs_is_made_when_the_hooks_come_or_go(packages: Packages) -> None:
    _, initramfs = packages
    triggers = run_well(["dpkg-deb", "--info", initramfs.path, "triggers"])
    assert "activate-noawait update-initramfs" in triggers


@pytest.mark.parametrize("requirement", requirements(), ids=project)
def test_what_is_required_is_either_a_dependency_or_carried_along(
    packages: Packages, requirement: str
) -> None:
    lazyfs, _ = packages
    assert (project(requirement) in lazyfs.bundled) != (package_of(requirement) in lazyfs.needed)


@pytest.mark.parametrize("requirement", requirements(), ids=project)
def test_what_is_required_is_there_for_the_build(requirement: str) -> None:
    """Which asks lazyfs for its options, to write the manual."""
    assert re.search(rf"^ +{package_of(requirement)},?$", CONTROL.read_text(), re.MULTILINE)


class Archive:
    """What apt offers, as debian/make-environment asks for it."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.dependencies = directory / "substvars"
        programs = directory / "bin"
        programs.mkdir()
        told = f'#!/bin/sh\nshift\ncd "{directory}"\ncat "$@"\n'
        (programs / "apt-cache").write_text(told)
        (programs / "apt-cache").chmod(0o755)
        self._path = f"{programs}:/usr/bin:/bin"

    def offer(self, requirement: str, version: str) -> None:
        package = package_of(requirement)
        said = f"{package}:\n  Installed: (none)\n  Candidate: {version}\n  Version table:\n"
        (self._directory / package).write_text(said)

    def make_environment(self) -> subprocess.CompletedProcess[str]:
        """Run it, with a pip that has nothing to install from."""
        nothing = {"PATH": self._path, "PIP_NO_INDEX": "1", "HOME": str(self._directory)}
        target = self._directory / "environment"
        return run([MAKE_ENVIRONMENT, target, self.dependencies], env=nothing, cwd=ROOT)


@pytest.fixture
def archive(tmp_path: Path) -> Archive:
    archive = Archive(tmp_path)
    for requirement in requirements():
        archive.offer(requirement, "99:1-1" if "<" not in requirement else "0.99.1-1")
    return archive


def test_what_apt_has_is_not_carried_along(archive: Archive) -> None:
    done = archive.make_environment()
    assert (done.returncode, done.stderr) == (0, "")
    assert "carried along: nothing" in done.stdout
    depends = archive.dependencies.read_text()
    assert depends.startswith("lazyfs:Depends=python3 (>= 3.")
    assert "python3-trio (>= 0.26)" in depends
    assert "python3-httpx (>= 0.28), python3-httpx (<< 1~)" in depends


@pytest.mark.parametrize(
    ("name", "version"),
    [
        ("trio", "(none)"),
        ("trio", "0.22.0-0.2"),
        ("trio", "0.26~rc1-1"),
        ("httpx", "1.0-1"),
        ("httpx", "1~rc1-1"),
    ],
)
def test_what_apt_has_not_is_asked_of_pip(archive: Archive, name: str, version: str) -> None:
    archive.offer(name, version)
    done = archive.make_environment()
    assert done.returncode != 0
    assert f"No matching distribution found for {name}" in done.stderr


def test_without_package_lists_nothing_is_built(archive: Archive) -> None:
    for requirement in requirements():
        archive.offer(requirement, "(none)")
    done = archive.make_environment()
    assert done.returncode == 1
    assert "apt-get update" in done.stderr

"""Debian root directories for guests, made by mmdebstrap, with lazyfs installed."""

import shutil
import sys
from collections.abc import Iterable
from importlib.metadata import requires
from pathlib import Path

import pytest
from real.mounts import need_tool, run_well

_ROOT = Path(__file__).parents[2]
_SCRIPTS = _ROOT / "contrib/initramfs"
LIMIT = 900.0  # seconds for any step


def make_root(suite: str, packages: Iterable[str], place: Path) -> None:
    """Make ``root.tar`` in ``place``: a minimal Debian with these packages."""
    tool = need_tool("mmdebstrap", "mmdebstrap")
    included = f"--include={','.join(packages)}"
    run_well([tool, "--quiet", "--variant=minbase", included, suite, place / "root.tar"], LIMIT)


def unpacked(base: Path, place: Path) -> Path:
    """A root directory in ``place``, unpacked from the ``root.tar`` in ``base``."""
    root = place / "root"
    root.mkdir()
    run_well(["tar", "-xf", base / "root.tar", "-C", root], LIMIT)
    return root


def install_lazyfs(root: Path) -> None:
    """Install lazyfs, as an administrator does, for the Python of this root."""
    (target,) = root.glob("usr/lib/python3.*/lib-dynload")
    version = target.parent.name
    if version != f"python3.{sys.version_info.minor}":
        pytest.skip(f"the live system has {version}, these tests run with another: make PYTHON=...")
    packages = root / "usr/local/lib" / version / "dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
    run_well([*pip, "--root-user-action=ignore", "--target", packages, *requirements()], LIMIT)
    # Stripped here: the hook would use strip(1), but the live system has none.
    run_well([need_tool("strip", "binutils"), "--strip-unneeded", *packages.rglob("*.so")], LIMIT)
    shutil.copytree(_ROOT / "lazyfs", packages / "lazyfs")
    command = root / "usr/local/bin/lazyfs"
    command.write_text(
        "#!/usr/bin/python3\nfrom lazyfs.cli.main import main\nraise SystemExit(main())\n"
    )
    command.chmod(0o755)


def in_root(root: Path, script: str) -> None:
    """Run a shell script in a root directory, with /proc, /sys and /dev mounted."""
    mounted = (
        'for d in proc sys dev; do mount --rbind /$d "$0/$d"; done; exec chroot "$0" sh -ec "$1"'
    )
    run_well(["unshare", "--mount", "--propagation", "private", "sh", "-ec", mounted, root, script],
             LIMIT)  # fmt: skip


def requirements() -> list[str]:
    return [line for line in requires("lazyfs") or () if "extra" not in line]


def files_of_lazyfs() -> Iterable[Path]:
    scripts = (path for path in _SCRIPTS.rglob("*") if path.is_file())
    taken = (path for path in scripts if not {"casper", "dracut"} & set(path.parts))
    return [*(_ROOT / "lazyfs").rglob("*.py"), *taken]

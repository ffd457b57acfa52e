"""A Debian with systemd as init and lazyfs's Python: made once, kept outside the tree between runs.

lazyfs itself, and everything that is tested, is not in it, but copied over it at each boot; see
``systemdguest.py``.
"""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from real.kept import digest, once, workroom
from real.mounts import need_tool, run_well

from .kernel import Kernel
from .roots import LIMIT, in_root, install_lazyfs, make_root, requirements, unpacked

_SUITE = "bookworm"
_VERSION = b"1"  # of the way the disk is made from the packages
_PACKAGES = (
    "systemd-sysv", "udev", "dbus", "kmod", "iproute2", "procps", "python3", "fuse3",
    "ca-certificates",
)  # fmt: skip
# Loaded automatically, or on request.
_MODULES = ("autofs4", "fuse", "isofs", "loop", "nbd", "overlay", "squashfs")
_NETWORK = """\
[Match]
Name=en* eth*
[Network]
DHCP=ipv4
LinkLocalAddressing=no
IPv6AcceptRA=no
"""
# Units that take time at boot and are irrelevant to the tests are masked.
_SET_UP = """
systemctl --root="$1" --quiet enable systemd-networkd.service systemd-networkd-wait-online.service
systemctl --root="$1" --quiet mask serial-getty@ttyS0.service getty@tty1.service \\
    systemd-logind.service systemd-binfmt.service proc-sys-fs-binfmt_misc.automount \\
    e2scrub_reap.service timers.target
systemctl --root="$1" --quiet set-default multi-user.target
mkdir -p "$1/var/log/journal"
rm -rf "$1"/var/cache/apt/* "$1"/var/lib/apt/lists/* "$1"/usr/share/doc/*
"""


@dataclass(frozen=True)
class SystemdRoot:
    """``disk``: an ext4 filesystem; ``packages``: its directory of Python packages."""

    disk: Path
    packages: Path


def systemd_root(cache: Path, kernel: Kernel) -> SystemdRoot:
    """The root, from ``cache`` or made now (some minutes); skips if tools are missing."""
    directory = cache / "systemd"
    with workroom(directory):
        base_key = digest([_SUITE.encode(), *map(str.encode, _PACKAGES)])
        base = once(directory, "base", base_key, partial(make_root, _SUITE, _PACKAGES))
        words = [base_key, kernel.release, sys.version, *_MODULES, _NETWORK, _SET_UP]
        disk_key = digest([*map(str.encode, [*words, *requirements()]), _VERSION])
        made = once(directory, "disk", disk_key, partial(_make_disk, base, kernel))
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    return SystemdRoot(made / "disk", Path("usr/local/lib", version, "dist-packages"))


def _make_disk(base: Path, kernel: Kernel, place: Path) -> None:
    root = unpacked(base, place)
    install_lazyfs(root)
    (installed,) = root.glob("usr/local/lib/python3.*/dist-packages/lazyfs")
    shutil.rmtree(installed)
    in_root(root, "python3 -m compileall -q -j 2 /usr/lib/python3* /usr/local/lib")
    _install_modules(kernel, root)
    (root / "etc/systemd/network/wired.network").write_text(_NETWORK)
    run_well(["sh", "-ec", _SET_UP, "sh", root], LIMIT)
    run_well([need_tool("mkfs.ext4", "e2fsprogs"), "-q", "-d", root, place / "disk", "2G"], LIMIT)
    shutil.rmtree(root)


def _install_modules(kernel: Kernel, root: Path) -> None:
    directory = root / "lib/modules" / kernel.release
    for file in kernel.files_of(*_MODULES):
        to = directory / file.relative_to(kernel.modules)
        to.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, to)
    for name in ("modules.order", "modules.builtin", "modules.builtin.modinfo"):
        shutil.copy(kernel.modules / name, directory)
    run_well([need_tool("depmod", "kmod"), "--basedir", root, kernel.release], LIMIT)

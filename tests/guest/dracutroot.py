"""A live system with dracut: made once with mmdebstrap, kept outside the tree between runs.

An image as dmsquash-live expects it (LiveOS/squashfs.img in an ISO image), and an initramfs that
Debian's dracut makes with the project's module. The image has no lazyfs in it.
"""

import fcntl
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from real.images import MIB
from real.mounts import need_tool, run_well

from .casper import INITRAMFS
from .liveroot import _files_of_lazyfs as files_of_lazyfs
from .liveroot import _hash as digest
from .liveroot import _in_root as in_root
from .liveroot import _install_lazyfs as install_lazyfs

_MODULE = INITRAMFS / "dracut/90lazyfs"
_SUITE = "bookworm"
_LIMIT = 900.0  # seconds for any step
_PACKAGES = (
    "linux-image-amd64", "dracut", "dracut-live", "dracut-network", "isc-dhcp-client",
    "iputils-arping", "procps", "dmsetup", "systemd-sysv", "udev", "dbus", "kmod", "iproute2",
    "zstd", "python3", "libfuse3-3", "ca-certificates",
)  # fmt: skip
_PAYLOAD = 100 * MIB  # of which the live system reads a fifth

_WORK = """\
#!/bin/sh
exec >/dev/console 2>&1 # which a login prompt does not hang up
up() { cut -d ' ' -f 1 /proc/uptime; }
echo "LIVE: up at $(up) with $(sed -n 's/^MemAvailable: *//p' /proc/meminfo)"
echo "LIVE: root is $(findmnt -n -o FSTYPE /)"
head -c 20M /opt/payload | sha256sum | cmp - /opt/expected && echo "LIVE: payload is right"
python3 -c 'import json, sqlite3, email; print("LIVE: python", 6 * 7)'
for file in /proc/[0-9]*/cmdline; do
    case $(tr '\\0' ' ' <$file) in @lazyfs*) echo "LIVE: the daemon is spared" ;; esac
done
echo "LIVE: failed units: $(systemctl --failed --no-legend | wc -l)"
echo "LIVE: down at $(up)"
systemctl --no-block poweroff
"""

_UNIT = """\
[Unit]
After=multi-user.target
[Service]
Type=oneshot
ExecStart=/opt/work
[Install]
WantedBy=graphical.target
"""

_PLANT = """
head -c "$2" /dev/urandom >"$1/opt/payload"
head -c 20M "$1/opt/payload" | sha256sum >"$1/opt/expected"
rm -rf "$1"/boot/* "$1"/vmlinuz* "$1"/initrd.img*
systemctl --root="$1" enable live-test.service
systemctl --root="$1" set-default graphical.target
"""


@dataclass(frozen=True)
class DracutLive:
    """What boots; ``iso`` and ``squashfs`` are below ``directory``, for a server."""

    directory: Path
    iso: Path
    squashfs: Path
    kernel: Path
    initrd: Path


def dracut_live(cache: Path) -> DracutLive:
    """The live system, from ``cache`` or made now (some minutes); skips where tools are missing."""
    directory = cache / "dracut"
    directory.mkdir(mode=0o755, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        base_key = digest([_SUITE.encode(), *map(str.encode, _PACKAGES)])
        base = _once(directory, f"base-{base_key}", _make_base)
        image_key = digest([base_key.encode(), _WORK.encode(), _UNIT.encode(), _PLANT.encode()])
        image = _once(directory, f"image-{image_key}", lambda place: _make_image(base, place))
        sources = sorted({*files_of_lazyfs(), *_MODULE.iterdir()})
        initrd_key = digest(
            [base_key.encode(), sys.version.encode(), *(path.read_bytes() for path in sources)]
        )
        boot = _once(directory, f"boot-{initrd_key}", lambda place: _make_boot(base, place))
    return DracutLive(
        image, image / "live.iso", image / "squashfs.img", boot / "vmlinuz", boot / "initrd"
    )


def _once(directory: Path, name: str, make: Callable[[Path], None]) -> Path:
    """What ``make`` makes, under this name; what it made under others of its kind goes."""
    place = directory / name
    if not place.exists():
        for old in directory.glob(f"{name.partition('-')[0]}-*"):
            shutil.rmtree(old)
        partial = directory / f"{name}.partial"
        partial.mkdir(mode=0o755)
        make(partial)
        os.replace(partial, place)
    return place


def _make_base(place: Path) -> None:
    tool = need_tool("mmdebstrap", "mmdebstrap")
    packages = f"--include={','.join(_PACKAGES)}"
    archive = place / "root.tar"
    run_well([tool, "--quiet", "--variant=minbase", packages, _SUITE, archive], _LIMIT)


def _make_image(base: Path, place: Path) -> None:
    root = _unpacked(base, place)
    work = root / "opt/work"
    work.write_text(_WORK)
    work.chmod(0o755)
    (root / "etc/systemd/system/live-test.service").write_text(_UNIT)
    run_well(["sh", "-ec", _PLANT, "sh", root, f"{_PAYLOAD}"], _LIMIT)
    squashfs = place / "squashfs.img"
    how = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "6"]
    run_well([need_tool("mksquashfs", "squashfs-tools"), root, squashfs, *how], _LIMIT)
    shutil.rmtree(root)
    medium = place / "medium"
    (medium / "LiveOS").mkdir(parents=True)
    (medium / "LiveOS/squashfs.img").hardlink_to(squashfs)
    xorriso = [need_tool("xorriso", "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE"]
    run_well([*xorriso, "-o", place / "live.iso", medium], _LIMIT)
    shutil.rmtree(medium)


def _make_boot(base: Path, place: Path) -> None:
    root = _unpacked(base, place)
    install_lazyfs(root)
    run_well(["make", "-s", "-C", INITRAMFS, "install", f"DESTDIR={root}"], _LIMIT)
    (kernel,) = root.glob("boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    in_root(root, f"dracut --quiet --zstd --no-hostonly --add lazyfs /boot/lazyfs.img {release}")
    shutil.copy(kernel, place / "vmlinuz")
    shutil.copy(root / "boot/lazyfs.img", place / "initrd")
    shutil.rmtree(root)


def _unpacked(base: Path, place: Path) -> Path:
    root = place / "root"
    root.mkdir()
    run_well(["tar", "-xf", base / "root.tar", "-C", root], _LIMIT)
    return root

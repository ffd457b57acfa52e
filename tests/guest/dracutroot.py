"""A live system with dracut: made once with mmdebstrap, kept outside the tree between runs.

It has an image in dmsquash-live's layout (LiveOS/squashfs.img in an ISO image), without lazyfs, and
an initramfs made by Debian's dracut with the project's module.
"""

import shutil
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from real.images import MIB
from real.kept import digest, once, workroom
from real.mounts import need_tool, run_well

from .casper import INITRAMFS
from .roots import LIMIT, files_of_lazyfs, in_root, install_lazyfs, make_root, unpacked

_MODULE = INITRAMFS / "dracut/90lazyfs"
_SUITE = "bookworm"
_PACKAGES = (
    "linux-image-amd64", "dracut", "dracut-live", "dracut-network", "isc-dhcp-client",
    "iputils-arping", "procps", "dmsetup", "systemd-sysv", "udev", "dbus", "kmod", "iproute2",
    "zstd", "python3", "libfuse3-3", "ca-certificates",
)  # fmt: skip
_PAYLOAD = 100 * MIB  # the live system reads a fifth of it

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
    """A bootable system; ``iso`` and ``squashfs`` are below ``directory``, for a server."""

    directory: Path
    iso: Path
    squashfs: Path
    kernel: Path
    initrd: Path


def dracut_live(cache: Path) -> DracutLive:
    """The live system, from ``cache`` or made now (some minutes); skips if tools are missing."""
    directory = cache / "dracut"
    with workroom(directory):
        base_key = digest([_SUITE.encode(), *map(str.encode, _PACKAGES)])
        base = once(directory, "base", base_key, partial(make_root, _SUITE, _PACKAGES))
        image_key = digest([base_key.encode(), _WORK.encode(), _UNIT.encode(), _PLANT.encode()])
        image = once(directory, "image", image_key, lambda place: _make_image(base, place))
        sources = sorted({*files_of_lazyfs(), *_MODULE.iterdir()})
        initrd_key = digest(
            [base_key.encode(), sys.version.encode(), *(path.read_bytes() for path in sources)]
        )
        boot = once(directory, "boot", initrd_key, lambda place: _make_boot(base, place))
    return DracutLive(
        image, image / "live.iso", image / "squashfs.img", boot / "vmlinuz", boot / "initrd"
    )


def _make_image(base: Path, place: Path) -> None:
    root = unpacked(base, place)
    work = root / "opt/work"
    work.write_text(_WORK)
    work.chmod(0o755)
    (root / "etc/systemd/system/live-test.service").write_text(_UNIT)
    run_well(["sh", "-ec", _PLANT, "sh", root, f"{_PAYLOAD}"], LIMIT)
    squashfs = place / "squashfs.img"
    how = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "6"]
    run_well([need_tool("mksquashfs", "squashfs-tools"), root, squashfs, *how], LIMIT)
    shutil.rmtree(root)
    medium = place / "medium"
    (medium / "LiveOS").mkdir(parents=True)
    (medium / "LiveOS/squashfs.img").hardlink_to(squashfs)
    xorriso = [need_tool("xorriso", "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE"]
    run_well([*xorriso, "-o", place / "live.iso", medium], LIMIT)
    shutil.rmtree(medium)


def _make_boot(base: Path, place: Path) -> None:
    root = unpacked(base, place)
    install_lazyfs(root)
    run_well(["make", "-s", "-C", INITRAMFS, "install", f"DESTDIR={root}"], LIMIT)
    (kernel,) = root.glob("boot/vmlinuz-*")
    release = kernel.name.removeprefix("vmlinuz-")
    in_root(root, f"dracut --quiet --zstd --no-hostonly --add lazyfs /boot/lazyfs.img {release}")
    shutil.copy(kernel, place / "vmlinuz")
    shutil.copy(root / "boot/lazyfs.img", place / "initrd")
    shutil.rmtree(root)

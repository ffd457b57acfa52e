"""A Debian live system: made once with mmdebstrap, kept outside the tree between runs.

The image is a plain Debian with live-boot's packages, one unit of ours that reports and works, and
no lazyfs; or the same with a desktop's programs, for the usual size of live images. Both have two
initrds: Debian's own, and the one made by ``contrib/initramfs``.
"""

import hashlib
import os
import shutil
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from real.images import MIB
from real.kept import digest, once, workroom
from real.mounts import need_tool, run_well

from .roots import (
    LIMIT,
    files_of_lazyfs,
    in_root,
    install_lazyfs,
    make_root,
    requirements,
    unpacked,
)

_ROOT = Path(__file__).parents[2]
_SCRIPTS = _ROOT / "contrib/initramfs"
_PACKAGES = (
    "linux-image-amd64", "initramfs-tools", "live-boot", "live-boot-initramfs-tools",
    "systemd-sysv", "udev", "dbus", "python3", "libfuse3-3", "ca-certificates", "kmod",
    "iproute2", "ifupdown", "isc-dhcp-client", "zstd", "procps", "httpfs2",
)  # fmt: skip
_DESKTOP = (
    "xfce4", "xserver-xorg", "lightdm", "xfce4-terminal", "mousepad", "firefox-esr", "gimp", "vlc",
    "libreoffice-writer", "libreoffice-calc", "libreoffice-impress", "evince", "cups",
    "network-manager", "avahi-daemon", "openssh-server", "sudo", "man-db", "fonts-noto-core",
)  # fmt: skip
_PAYLOAD = 100 * MIB  # read by the workload; with a desktop, a tenth of it
_VERSION = b"3"  # of the way the image is made
_WORK = Path(__file__).with_name("livework.sh")
_UNIT = """\
[Unit]
Description=What the tests look at
After=multi-user.target network-online.target
[Service]
Type=oneshot
ExecStart=/bin/sh /opt/live/livework.sh
[Install]
WantedBy=graphical.target
"""


@dataclass(frozen=True)
class Live:
    """A bootable system: ``squashfs`` and ``iso`` for a server, a kernel, and two initrds."""

    directory: Path  # contains all files; a server's root
    squashfs: Path
    iso: Path
    kernel: Path
    stock: Path  # Debian's initrd, with live-boot in it
    initrd: Path  # the same with lazyfs
    certificate: Path  # for a server at 10.0.2.2 and 127.0.0.1; trusted by the initrd
    key: Path

    @property
    def profile(self) -> Path:
        """The path of the ISO image's profile, a sidecar."""
        return self.iso.with_name(f"{self.iso.name}.lazyprofile")


def live_system(cache: Path, *, desktop: bool = False) -> Live:
    """The live system, from ``cache`` or made now (some minutes); skips if tools are missing."""
    directory = cache / "live"
    with workroom(directory):
        return _Maker(directory, desktop).made()


class _Maker:
    def __init__(self, directory: Path, desktop: bool) -> None:
        self._directory = directory
        self._packages = (*_PACKAGES, *(_DESKTOP if desktop else ()))  # in the image
        self._payload = _PAYLOAD // 10 if desktop else _PAYLOAD
        self._kind = "desktop-" if desktop else ""
        release = dict(
            line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines()
        )
        self._suite = release.get("VERSION_CODENAME", "stable")
        ours = [_WORK.read_bytes(), _UNIT.encode(), str(self._payload).encode(), _VERSION]
        self._base_key = self._key_of(_PACKAGES)
        self._root_key = self._key_of(self._packages)
        self._image_key = digest([self._root_key.encode(), *ours])
        python = [sys.version.encode(), *map(str.encode, requirements())]
        taken = [path.read_bytes() for path in sorted(files_of_lazyfs())]
        self._initrd_key = digest([self._base_key.encode(), *python, *taken])

    def _key_of(self, packages: Iterable[str]) -> str:
        return digest([self._suite.encode(), *map(str.encode, packages)])

    def made(self) -> Live:
        certificate, key = self._certificate()
        base = once(
            self._directory, "base", self._base_key, partial(make_root, self._suite, _PACKAGES)
        )
        make_base = partial(make_root, self._suite, self._packages)
        root = once(self._directory, f"{self._kind}base", self._root_key, make_base)
        make_image = partial(self._make_image, root)
        image = once(self._directory, f"{self._kind}image", self._image_key, make_image)
        initrd = once(
            self._directory,
            "initrd",
            self._initrd_key,
            lambda place: self._make_initrd(base, certificate, place),
        )
        squashfs, iso = image / "filesystem.squashfs", image / "live.iso"
        return Live(self._directory, squashfs, iso, initrd / "vmlinuz", initrd / "stock.img",
                    initrd / "lazyfs.img", certificate, key)  # fmt: skip

    def _make_image(self, base: Path, place: Path) -> None:
        root = unpacked(base, place)
        for leftover in (*root.glob("boot/*"), *root.glob("vmlinuz*"), *root.glob("initrd.img*")):
            leftover.unlink()  # the kernel and the initrd are not booted from the image
        payload = root / "opt/live/payload"
        payload.parent.mkdir()
        with open("/dev/urandom", "rb") as random, open(payload, "wb") as file:
            file.write(random.read(self._payload))
        total = hashlib.sha256(payload.read_bytes()).hexdigest()
        (payload.parent / "payload.sha256").write_text(f"{total}  /opt/live/payload\n")
        shutil.copy(_WORK, payload.parent)
        unit = root / "etc/systemd/system/live-test.service"
        unit.write_text(_UNIT)
        run_well(["systemctl", f"--root={root}", "enable", unit.name], LIMIT)
        # A getty would also write to the serial line; a greeter has no screen.
        for masked in ("serial-getty@ttyS0.service", "lightdm.service"):
            run_well(["systemctl", f"--root={root}", "mask", masked], LIMIT)
        run_well(["systemctl", f"--root={root}", "set-default", "graphical.target"], LIMIT)
        medium = place / "medium"
        (medium / "live").mkdir(parents=True)
        squashfs = place / "filesystem.squashfs"
        how = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "6"]
        run_well([need_tool("mksquashfs", "squashfs-tools"), root, squashfs, *how], LIMIT)
        os.link(squashfs, medium / "live/filesystem.squashfs")
        xorriso = [need_tool("xorriso", "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE"]
        run_well([*xorriso, "-o", place / "live.iso", medium], LIMIT)
        shutil.rmtree(root)
        shutil.rmtree(medium)

    def _make_initrd(self, base: Path, certificate: Path, place: Path) -> None:
        root = unpacked(base, place)
        (kernel,) = root.glob("boot/vmlinuz-*")
        release = kernel.name.removeprefix("vmlinuz-")
        (stock,) = root.glob("boot/initrd.img-*")
        # The stock initrd contains Debian's httpfs2, for comparison.
        for file, name in ((kernel, "vmlinuz"), (stock, "stock.img")):
            shutil.copy(file, place / name)
        install_lazyfs(root)
        trusted = root / "usr/local/share/ca-certificates"
        trusted.mkdir(parents=True, exist_ok=True)
        shutil.copy(certificate, trusted / "test.crt")
        run_well(["make", "-s", "-C", _SCRIPTS, "install", f"DESTDIR={root}"], LIMIT)
        in_root(root, f"update-ca-certificates --fresh && update-initramfs -u -k {release}")
        shutil.copy(stock, place / "lazyfs.img")
        shutil.rmtree(root)

    def _certificate(self) -> tuple[Path, Path]:
        certificate, key = (self._directory / name for name in ("test.crt", "test.key"))
        if not certificate.exists():
            made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            places = "subjectAltName=IP:10.0.2.2,IP:127.0.0.1"
            names = ["-subj", "/CN=lazyfs test", "-addext", places]
            files = ["-keyout", f"{key}", "-out", f"{certificate}"]
            run_well(["openssl", "req", "-x509", "-days", "3650", *made, *names, *files], LIMIT)
        return certificate, key

"""A live system of Debian's: made once with mmdebstrap, kept outside the tree between runs.

The image is a plain Debian with live-boot's packages, one unit of ours that reports and works, and
no lazyfs; or the same with the programs of a desktop, for the size that live images usually have.
Two initrds go with both: Debian's own, and the one that ``contrib/initramfs`` makes.
"""

import fcntl
import hashlib
import os
import shutil
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import requires
from pathlib import Path

import pytest
from real.images import MIB
from real.mounts import need_tool, run_well

_ROOT = Path(__file__).parents[2]
_SCRIPTS = _ROOT / "contrib/initramfs"
_LIMIT = 900.0  # seconds for any step
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
_PAYLOAD = 100 * MIB  # what the workload reads; beside a desktop, a tenth of it
_VERSION = b"3"  # of how the image is made
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
    """What boots: ``squashfs`` and ``iso`` for a server, a kernel, and two initrds."""

    directory: Path  # with all files below it; a server's root
    squashfs: Path
    iso: Path
    kernel: Path
    stock: Path  # Debian's initrd, with live-boot in it
    initrd: Path  # the same with lazyfs
    certificate: Path  # of a server at 10.0.2.2 and 127.0.0.1; the initrd trusts it
    key: Path

    @property
    def profile(self) -> Path:
        """Where a profile of the ISO image is looked for."""
        return self.iso.with_name(f"{self.iso.name}.lazyprofile")


def live_system(cache: Path, *, desktop: bool = False) -> Live:
    """The live system, from ``cache`` or made now (some minutes); skips where tools are missing."""
    directory = cache / "live"
    directory.mkdir(mode=0o755, exist_ok=True)
    with open(directory / ".lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        return _Maker(directory, desktop).made()


class _Maker:
    def __init__(self, directory: Path, desktop: bool) -> None:
        self._directory = directory
        self._packages = (*_PACKAGES, *(_DESKTOP if desktop else ()))  # of the image
        self._payload = _PAYLOAD // 10 if desktop else _PAYLOAD
        self._kind = "desktop-" if desktop else ""
        release = dict(
            line.partition("=")[::2] for line in Path("/etc/os-release").read_text().splitlines()
        )
        self._suite = release.get("VERSION_CODENAME", "stable")
        ours = [_WORK.read_bytes(), _UNIT.encode(), str(self._payload).encode(), _VERSION]
        self._base_key = self._key_of(_PACKAGES)
        self._root_key = self._key_of(self._packages)
        self._image_key = _hash([self._root_key.encode(), *ours])
        python = [sys.version.encode(), *map(str.encode, _requirements())]
        taken = [path.read_bytes() for path in sorted(_files_of_lazyfs())]
        self._initrd_key = _hash([self._base_key.encode(), *python, *taken])

    def _key_of(self, packages: Iterable[str]) -> str:
        return _hash([self._suite.encode(), *map(str.encode, packages)])

    def made(self) -> Live:
        certificate, key = self._certificate()
        base = self._once("base", self._base_key, partial(self._make_root, _PACKAGES))
        make_root = partial(self._make_root, self._packages)
        root = self._once(f"{self._kind}base", self._root_key, make_root)
        make_image = partial(self._make_image, root)
        image = self._once(f"{self._kind}image", self._image_key, make_image)
        initrd = self._once(
            "initrd", self._initrd_key, lambda place: self._make_initrd(base, certificate, place)
        )
        squashfs, iso = image / "filesystem.squashfs", image / "live.iso"
        return Live(self._directory, squashfs, iso, initrd / "vmlinuz", initrd / "stock.img",
                    initrd / "lazyfs.img", certificate, key)  # fmt: skip

    def _once(self, what: str, key: str, make: Callable[[Path], None]) -> Path:
        """The directory for ``what`` with this key; others of that kind are removed first."""
        place = self._directory / f"{what}-{key}"
        if not place.exists():
            for old in self._directory.glob(f"{what}-*"):
                shutil.rmtree(old)
            partial = self._directory / f"{what}-{key}.partial"
            partial.mkdir(mode=0o755)
            make(partial)
            os.replace(partial, place)
        return place

    def _make_root(self, included: Iterable[str], place: Path) -> None:
        tool = need_tool("mmdebstrap", "mmdebstrap")
        packages = f"--include={','.join(included)}"
        run_well([tool, "--quiet", "--variant=minbase", packages, self._suite, place / "root.tar"],
                 _LIMIT)  # fmt: skip

    def _make_image(self, base: Path, place: Path) -> None:
        root = self._unpacked(base, place)
        for leftover in (*root.glob("boot/*"), *root.glob("vmlinuz*"), *root.glob("initrd.img*")):
            leftover.unlink()  # a kernel and an initrd come from elsewhere
        payload = root / "opt/live/payload"
        payload.parent.mkdir()
        with open("/dev/urandom", "rb") as random, open(payload, "wb") as file:
            file.write(random.read(self._payload))
        digest = hashlib.sha256(payload.read_bytes()).hexdigest()
        (payload.parent / "payload.sha256").write_text(f"{digest}  /opt/live/payload\n")
        shutil.copy(_WORK, payload.parent)
        unit = root / "etc/systemd/system/live-test.service"
        unit.write_text(_UNIT)
        run_well(["systemctl", f"--root={root}", "enable", unit.name], _LIMIT)
        # A getty would write to the serial line as well; for a greeter there is no screen.
        for masked in ("serial-getty@ttyS0.service", "lightdm.service"):
            run_well(["systemctl", f"--root={root}", "mask", masked], _LIMIT)
        run_well(["systemctl", f"--root={root}", "set-default", "graphical.target"], _LIMIT)
        medium = place / "medium"
        (medium / "live").mkdir(parents=True)
        squashfs = place / "filesystem.squashfs"
        how = ["-noappend", "-no-progress", "-quiet", "-comp", "zstd", "-Xcompression-level", "6"]
        run_well([need_tool("mksquashfs", "squashfs-tools"), root, squashfs, *how], _LIMIT)
        os.link(squashfs, medium / "live/filesystem.squashfs")
        xorriso = [need_tool("xorriso", "xorriso"), "-as", "mkisofs", "-quiet", "-R", "-V", "LIVE"]
        run_well([*xorriso, "-o", place / "live.iso", medium], _LIMIT)
        shutil.rmtree(root)
        shutil.rmtree(medium)

    def _make_initrd(self, base: Path, certificate: Path, place: Path) -> None:
        root = self._unpacked(base, place)
        (kernel,) = root.glob("boot/vmlinuz-*")
        release = kernel.name.removeprefix("vmlinuz-")
        (stock,) = root.glob("boot/initrd.img-*")
        # Debian's httpfs2 is in the stock initrd: it is one of those to compare with.
        for file, name in ((kernel, "vmlinuz"), (stock, "stock.img")):
            shutil.copy(file, place / name)
        _install_lazyfs(root)
        trusted = root / "usr/local/share/ca-certificates"
        trusted.mkdir(parents=True, exist_ok=True)
        shutil.copy(certificate, trusted / "test.crt")
        run_well(["make", "-s", "-C", _SCRIPTS, "install", f"DESTDIR={root}"], _LIMIT)
        _in_root(root, f"update-ca-certificates --fresh && update-initramfs -u -k {release}")
        shutil.copy(stock, place / "lazyfs.img")
        shutil.rmtree(root)

    def _unpacked(self, base: Path, place: Path) -> Path:
        root = place / "root"
        root.mkdir()
        run_well(["tar", "-xf", base / "root.tar", "-C", root], _LIMIT)
        return root

    def _certificate(self) -> tuple[Path, Path]:
        certificate, key = (self._directory / name for name in ("test.crt", "test.key"))
        if not certificate.exists():
            made = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
            places = "subjectAltName=IP:10.0.2.2,IP:127.0.0.1"
            names = ["-subj", "/CN=lazyfs test", "-addext", places]
            files = ["-keyout", f"{key}", "-out", f"{certificate}"]
            run_well(["openssl", "req", "-x509", "-days", "3650", *made, *names, *files], _LIMIT)
        return certificate, key


def _install_lazyfs(root: Path) -> None:
    """lazyfs as an administrator installs it, for the Python of this root."""
    (target,) = root.glob("usr/lib/python3.*/lib-dynload")
    version = target.parent.name
    if version != f"python3.{sys.version_info.minor}":
        pytest.skip(f"the live system has {version}, these tests run with another: make PYTHON=...")
    packages = root / "usr/local/lib" / version / "dist-packages"
    packages.mkdir(parents=True, exist_ok=True)
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-compile", "--no-input"]
    run_well([*pip, "--root-user-action=ignore", "--target", packages, *_requirements()], _LIMIT)
    # Where pip builds there is a strip(1), which the hook uses; the live system has none.
    run_well([need_tool("strip", "binutils"), "--strip-unneeded", *packages.rglob("*.so")], _LIMIT)
    shutil.copytree(_ROOT / "lazyfs", packages / "lazyfs")
    command = root / "usr/local/bin/lazyfs"
    command.write_text(
        "#!/usr/bin/python3\nfrom lazyfs.cli import main\nraise SystemExit(main())\n"
    )
    command.chmod(0o755)


def _in_root(root: Path, script: str) -> None:
    """Run a script of the shell in a root directory, with what a machine has mounted."""
    mounted = (
        'for d in proc sys dev; do mount --rbind /$d "$0/$d"; done; exec chroot "$0" sh -ec "$1"'
    )
    run_well(["unshare", "--mount", "--propagation", "private", "sh", "-ec", mounted, root, script],
             _LIMIT)  # fmt: skip


def _requirements() -> list[str]:
    return [line for line in requires("lazyfs") or () if "extra" not in line]


def _files_of_lazyfs() -> Iterable[Path]:
    scripts = (path for path in _SCRIPTS.rglob("*") if path.is_file())
    taken = (path for path in scripts if not {"casper", "dracut"} & set(path.parts))
    return [*(_ROOT / "lazyfs").rglob("*.py"), *taken]


def _hash(parts: Iterable[bytes]) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]

"""A fake casper, Ubuntu's live boot: a guest's initramfs with the same contract.

The behaviour documented by casper(7) and its scripts, which a premount script may rely on:

- kernel parameters (``netboot=``, ``nfsroot=``, ``live-media-path=``) are environment variables,
  and the network is up if ``ip=`` is given;
- each script of casper-premount and casper-bottom is run separately, in the order of the numbers,
  and /conf/param.conf is read after each;
- if NETBOOT is set then, a network root is mounted (here: the boot ends);
- LIVEMEDIA may be a directory, which is bound to /cdrom without the mounts in it;
- every ``*.squashfs`` and ``*.dir`` in its directory casper/ is a layer of the root filesystem;
- /etc/casper.conf goes into the new root; the initramfs is deleted; /run is moved.
"""

import stat
from collections.abc import Iterator
from pathlib import Path

from real.mounts import need_tool, run_well

from .initramfs import _Archive as Archive
from .kernel import Kernel

INITRAMFS = Path(__file__).parents[2] / "contrib/initramfs"
LIBRARY = "usr/lib/lazyfs"  # the launcher's directory in an initrd

_MODULES = ("virtio_pci", "virtio_net", "virtio_rng", "fuse", "nbd", "loop", "isofs", "squashfs",
            "overlay")  # fmt: skip
_PHASES = ("casper-premount", "casper-bottom")
_MAKE_LIMIT = 120.0  # seconds
_DATA_SIZE = 96  # MiB in the live system, which reads a few of them

# The functions that initramfs-tools provides to scripts.
_FUNCTIONS = """\
panic() {
    echo "PANIC: $*" >/dev/console
    poweroff -f
}

configure_networking() {
    ip link set lo up
    ip link set eth0 up
    ip address add 10.0.2.15/24 dev eth0
    ip route add default via 10.0.2.2
    echo 'nameserver 10.0.2.3' >/etc/resolv.conf
    echo 'GUEST: network up'
}

run_scripts() {
    for script in $1/*; do
        $script
        [ ! -e /conf/param.conf ] || . /conf/param.conf
    done
}
"""

_INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /run /tmp /etc /conf /cdrom /cow /layers /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
mount -t tmpfs -o nosuid,noexec,mode=755 run /run
for module in $(cat /modules/order); do insmod /modules/$module || echo "GUEST: no $module"; done
mkdir -p /lib/modules/$(uname -r)
: >/lib/modules/$(uname -r)/modules.dep # all are there: modprobe has nothing to do
. /scripts/functions

for word in $(cat /proc/cmdline); do
    case $word in
        ip=*) export STATICIP=${word#*=} ;;
        netboot=*) export NETBOOT=${word#*=} ;;
        nfsroot=*) export NFSROOT=${word#*=} ;;
        live-media-path=*) export LIVE_MEDIA_PATH=${word#*=} ;;
    esac
done
[ -z "$STATICIP" ] || configure_networking
run_scripts /scripts/casper-premount

[ -z "$NETBOOT" ] || panic "there is no netboot=$NETBOOT"
[ -d "$LIVEMEDIA" ] || panic "LIVEMEDIA=$LIVEMEDIA is no directory"
mount -o bind "$LIVEMEDIA" /cdrom
lower=
for image in /cdrom/${LIVE_MEDIA_PATH:-casper}/*; do
    case $image in
        *.squashfs)
            layer=/layers/${image##*/}
            device=$(losetup -f)
            mkdir $layer
            [ -f $image ] && losetup $device $image && mount -t squashfs -o ro $device $layer ||
                panic "$image cannot be mounted"
            ;;
        *.dir) layer=$image ;;
        *) continue ;;
    esac
    lower=$layer${lower:+:$lower}
done
[ -n "$lower" ] || panic 'there is no live file system'
mount -t tmpfs cow /cow
mkdir /cow/upper /cow/work
mount -t overlay -o lowerdir=$lower,upperdir=/cow/upper,workdir=/cow/work overlay /root ||
    panic "$lower cannot be laid over each other"

run_scripts /scripts/casper-bottom
mount -o move /cdrom /root/cdrom
[ ! -e /etc/casper.conf ] || cp /etc/casper.conf /root/etc/
for directory in run dev proc sys; do mount -o move /$directory /root/$directory; done
exec switch_root /root /sbin/init </root/dev/console >/root/dev/console 2>&1
"""

# The live system: it reads, reports, and shuts down. Its programs are read on use; the page cache
# is dropped in between.
_LIVE_INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
echo "LIVE: up"
for start in 0 30 60; do
    dd if=/data bs=1M count=2 skip=$start 2>/dev/null
done | sha256sum | cmp - /expected && echo "LIVE: data are right"
echo 3 >/proc/sys/vm/drop_caches
dd if=/data bs=1M count=1 skip=90 >/dev/null 2>&1 && echo "LIVE: and again"
[ ! -e /etc/casper.conf ] || . /etc/casper.conf
echo "LIVE: NETBOOT=$NETBOOT on $(ls /cdrom/casper)"
for file in /proc/[0-9]*/cmdline; do
    case $(tr '\\0' ' ' <$file) in @*) echo "LIVE: spared: $(tr '\\0' ' ' <$file)" ;; esac
done
echo "LIVE: going down"
poweroff -f
"""


def make_runtime(python: str, directory: Path) -> Path:
    """Python and lazyfs for an initrd, the same for all of them."""
    directory.mkdir()
    run_well([python, "-I", INITRAMFS / "lazyfs-runtime", directory], _MAKE_LIMIT)
    return directory


def make_squashfs(directory: Path) -> Path:
    """The root filesystem of a tiny live system."""
    tree = directory / "tree"
    for name in ("bin", "sbin", "etc", "proc", "sys", "dev", "run", "cdrom"):
        (tree / name).mkdir(parents=True)
    busybox = tree / "bin/busybox"
    busybox.write_bytes(Path(need_tool("busybox", "busybox-static")).read_bytes())
    init = tree / "sbin/init"
    init.write_text(_LIVE_INIT)
    for program in (busybox, init):
        program.chmod(0o755)
    run_well(["sh", "-c", _MAKE_DATA, "sh", tree, f"{_DATA_SIZE}"], _MAKE_LIMIT)
    squashfs = directory / "live.squashfs"
    tool = need_tool("mksquashfs", "squashfs-tools")
    options = ["-noappend", "-no-progress", "-quiet", "-noD", "-noF"]
    run_well([tool, tree, squashfs, *options], _MAKE_LIMIT)
    return squashfs


_MAKE_DATA = """
head -c $2M /dev/urandom >$1/data
for start in 0 30 60; do
    dd if=$1/data bs=1M count=2 skip=$start
done | sha256sum >$1/expected
"""


def make_iso(squashfs: Path) -> Path:
    """An ISO image in casper's layout, made beside the squashfs that it contains."""
    medium = squashfs.with_name("medium")
    (medium / "casper").mkdir(parents=True)
    (medium / "casper/filesystem.squashfs").hardlink_to(squashfs)
    iso = squashfs.with_name("live.iso")
    tool = need_tool("xorriso", "xorriso")
    run_well([tool, "-as", "mkisofs", "-quiet", "-R", "-o", iso, medium], _MAKE_LIMIT)
    return iso


def build(kernel: Kernel, runtime: Path) -> bytes:
    """The initramfs: the fake casper, the project's scripts for casper, and the runtime."""
    busybox = Path(need_tool("busybox", "busybox-static"))
    archive = Archive()
    for directory in ("bin", "modules", "scripts", *(f"scripts/{phase}" for phase in _PHASES)):
        archive.add(directory, stat.S_IFDIR | 0o755)
    _add_program(archive, "bin/busybox", busybox.read_bytes())
    _add_program(archive, "bin/udevadm", b"#!/bin/busybox sh\nexit 0\n")
    _add_program(archive, "init", _INIT.encode())
    _add_program(archive, "scripts/functions", _FUNCTIONS.encode())
    for phase in _PHASES:
        for script in sorted((INITRAMFS / "casper" / phase).iterdir()):
            _add_program(archive, f"scripts/{phase}/{script.name}", script.read_bytes())
    modules = kernel.files_of(*_MODULES)
    archive.add("modules/order", stat.S_IFREG | 0o644, " ".join(m.name for m in modules).encode())
    for module in modules:
        archive.add(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    for directory in ("usr", "usr/lib", LIBRARY, f"{LIBRARY}/runtime"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    for name in ("lazyfs-boot", "lazyfs-generator"):
        _add_program(archive, f"{LIBRARY}/{name}", (INITRAMFS / name).read_bytes())
    for path in _walk(runtime):
        _add_path(archive, f"{LIBRARY}/runtime/{path.relative_to(runtime)}", path)
    return archive.finished()


def _walk(directory: Path) -> Iterator[Path]:
    """All paths below a directory, parents first."""
    for path in sorted(directory.iterdir()):
        yield path
        if path.is_dir() and not path.is_symlink():
            yield from _walk(path)


def _add_program(archive: Archive, name: str, content: bytes) -> None:
    archive.add(name, stat.S_IFREG | 0o755, content)


def _add_path(archive: Archive, name: str, path: Path) -> None:
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        archive.add(name, mode, str(path.readlink()).encode())
    else:
        archive.add(name, mode, b"" if stat.S_ISDIR(mode) else path.read_bytes())

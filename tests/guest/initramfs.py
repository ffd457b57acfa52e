"""The initramfs of a guest (newc of cpio(5))."""

import stat
from collections.abc import Sequence
from pathlib import Path

from real.mounts import need_tool

from .kernel import Kernel

# Required to mount the root, and to communicate with us.
_MODULES = ("virtio_pci", "virtio_net", "virtio_console", "virtio_rng", "9pnet_virtio", "9p",
            "overlay")  # fmt: skip

# The guest's root is the host's, read-only, with a tmpfs as an overlay. When the agent ends, the
# guest shuts down like an init system: SIGTERM to all, then SIGKILL; unmount everything; power off.
_INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /proc /sys /dev /ours /memory /root
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "GUEST: no $module"; done

ip link set lo up
ip link set eth0 up
ip address add 10.0.2.15/24 dev eth0
ip route add default via 10.0.2.2

mount -t 9p -o trans=virtio,version=9p2000.L,ro,cache=loose,msize=512000 ours /ours
mount -t tmpfs memory /memory
mkdir /memory/upper /memory/work
mount -t overlay -o lowerdir=/ours,upperdir=/memory/upper,workdir=/memory/work overlay /root
for directory in proc sys dev; do mount --bind /$directory /root/$directory; done
mount -t tmpfs run /root/run
mkdir -p /root/lib/modules/{release} /root/mnt
mount --bind /ours{modules} /root/lib/modules/{release}

until [ -e /dev/vport* ]; do sleep 0.1; done
echo "GUEST: up"
chroot /root {agent} /dev/vport* </dev/null
echo "GUEST: going down"
kill -TERM -1
sleep 1
kill -KILL -1
umount -a -r
echo "GUEST: power off"
poweroff -f
"""


def build(kernel: Kernel, agent: Sequence[str]) -> bytes:
    """The archive. ``agent``: the command to run in the guest; the port is appended to it."""
    busybox = Path(need_tool("busybox", "busybox-static"))
    modules = kernel.files_of(*_MODULES)
    init = _INIT.format(release=kernel.release, modules=kernel.modules, agent=" ".join(agent))
    archive = _Archive()
    for directory in ("bin", "modules"):
        archive.add(directory, stat.S_IFDIR | 0o755)
    archive.add("bin/busybox", stat.S_IFREG | 0o755, busybox.read_bytes())
    archive.add("init", stat.S_IFREG | 0o755, init.encode())
    archive.add("modules/order", stat.S_IFREG | 0o644, " ".join(m.name for m in modules).encode())
    for module in modules:
        archive.add(f"modules/{module.name}", stat.S_IFREG | 0o644, module.read_bytes())
    return archive.finished()


class _Archive:
    def __init__(self) -> None:
        self._content = bytearray()
        self._count = 0

    def add(self, name: str, mode: int, content: bytes = b"") -> None:
        self._count += 1
        raw = name.encode() + b"\0"
        # magic; inode, mode, uid, gid, links, mtime, size; device, special device; name's length, 0
        fields = (self._count, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(raw), 0)
        self._content += b"070701" + b"".join(b"%08X" % field for field in fields)
        self._pad_after(raw)
        self._pad_after(content)

    def _pad_after(self, content: bytes) -> None:
        self._content += content
        self._content += bytes(-len(self._content) % 4)

    def finished(self) -> bytes:
        self.add("TRAILER!!!", 0)
        return bytes(self._content)

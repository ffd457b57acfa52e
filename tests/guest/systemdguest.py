"""A guest with systemd as init, and lazyfs installed.

It boots from its own disk, which is pristine at each boot; files are copied over it before systemd
starts. The agent is a service; when it ends, the guest shuts down as on ``systemctl poweroff``.
"""

import compileall
import py_compile
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from real.mounts import need_tool

from .initramfs import _Archive as Archive
from .kernel import Kernel
from .machine import Done, Guest
from .systemdroot import SystemdRoot

_LAZYFS = Path(__file__).parents[2] / "lazyfs"
UNITS = _LAZYFS.parent / "contrib/systemd"
_AGENT = Path(__file__).with_name("agent.py")
_SYSTEM = "etc/systemd/system"
LIMIT = 180.0  # seconds for anything that systemd may wait for

# Required to mount the disk, or not requested by name in the guest.
_MODULES = ("virtio_pci", "virtio_net", "virtio_blk", "virtio_console", "virtio_rng",
            "crc32c_generic", "ext4")  # fmt: skip

_INIT = """\
#!/bin/busybox sh
PATH=/bin
/bin/busybox --install -s /bin
mkdir -p /dev /root
mount -t devtmpfs devtmpfs /dev
for module in $(cat /modules/order); do insmod /modules/$module || echo "GUEST: no $module"; done
until [ -e /dev/vda ]; do sleep 0.1; done
mount -t ext4 /dev/vda /root
cp -a /over/. /root/
mount -o move /dev /root/dev
exec switch_root /root /sbin/init
"""

_AGENT_UNIT = """\
[Unit]
Description=The agent of the tests
DefaultDependencies=no
After=systemd-remount-fs.service
SuccessAction=poweroff
[Service]
ExecStart=/bin/sh -c 'exec python3 -I -S /opt/agent.py /dev/vport*'
[Install]
WantedBy=sysinit.target
"""

# Overrides "quiet" on the kernel's command line, which silences systemd too.
_MANAGER = """\
[Manager]
ShowStatus=yes
StatusUnitFormat=name
"""
_CONTROL = re.compile(r"\x1b(\[[0-9;]*[A-Za-z]|M)")  # a terminal's control sequences


class SystemdGuest(Guest):
    boot_limit = down_limit = LIMIT

    def __init__(
        self,
        kernel: Kernel,
        root: SystemdRoot,
        directory: Path,
        files: Mapping[str, str] | None = None,
        enabled: Sequence[str] = (),
    ) -> None:
        """``files``: texts copied to the root, by path; ``enabled``: units started at boot."""
        self._disk = root.disk
        self._initrd = directory / "initrd"
        self._initrd.write_bytes(_build(kernel, root, directory, files or {}, enabled))
        super().__init__(kernel, directory)

    def _command(self, kernel: Path, archive: Path, memory: str, line: int) -> list[str]:
        drive = f"file={self._disk},format=raw,if=virtio,snapshot=on"
        return [*super()._command(kernel, self._initrd, memory, line), "-drive", drive]

    def wait_until_up(self) -> None:
        """Wait until systemd has started, or tried to start, all units."""
        self.run("systemctl", "is-system-running", "--wait", limit=LIMIT)

    def property(self, unit: str, name: str) -> str:
        """A property of a unit, from ``systemctl show``."""
        return self.run_well("systemctl", "show", "--value", f"--property={name}", unit).strip()

    def state(self, unit: str) -> str:
        """The active state of a unit, like "active" or "failed"."""
        return self.property(unit, "ActiveState")

    def wait_for_state(self, unit: str, state: str, within: float = LIMIT) -> None:
        until = time.monotonic() + within
        while (found := self.state(unit)) != state:
            assert time.monotonic() < until, f"{unit} is {found}:\n{self.journal(unit)}"
            time.sleep(0.3)

    def systemctl(self, *words: str) -> Done:
        """Run a command of systemctl(1)."""
        return self.run("systemctl", *words, limit=LIMIT)

    def systemctl_well(self, *words: str) -> str:
        done = self.systemctl(*words)
        assert done.code == 0, f"{words}: {done.err}{self.journal(words[-1])}"
        return done.out

    def status(self, unit: str) -> str:
        """The status of a unit, as shown to users, with the last lines of its journal."""
        return self.systemctl("status", "--no-pager", "--full", "--lines=20", unit).out

    def wait_for_status(self, unit: str, text: str) -> None:
        """Wait until the status contains ``text``, if only between two restarts of the unit."""
        until = time.monotonic() + LIMIT
        while text not in (found := self.status(unit)):
            assert time.monotonic() < until, f"{text!r} is not in the status: {found}"

    def journal(self, unit: str) -> str:
        """The messages of the unit, and of systemd about it, since boot."""
        return self.run_well("journalctl", "--no-pager", "--output=cat", f"--unit={unit}")

    def size_of(self, file: str) -> int:
        """The size of a file, which may trigger an automount."""
        return int(self.run_well("stat", "--format=%s", file, limit=LIMIT))

    def is_mounted(self, where: str) -> bool:
        """Whether something is mounted there, apart from autofs."""
        return self.run("findmnt", "--types", "noautofs", where).code == 0

    @contextmanager
    def holding(self, directory: str) -> Iterator[None]:
        """A process, ``sleep``, works in a directory meanwhile; systemd does not know that."""
        script = ["sh", "-c", 'cd "$0" && exec sleep 900', directory]
        self.run_well("systemd-run", "--quiet", "--collect", "--unit=holder", *script)
        try:
            there = f"/proc/{self.property('holder', 'MainPID')}"
            self.eventually("grep", "-q", "sleep", f"{there}/comm", what=f"{directory} is in use")
            yield
        finally:
            self.systemctl_well("stop", "holder")

    def console_lines(self) -> list[str]:
        """The lines on its console, without control sequences."""
        return [line.strip() for line in _CONTROL.sub("", self.messages()).splitlines()]


def _build(
    kernel: Kernel,
    root: SystemdRoot,
    directory: Path,
    files: Mapping[str, str],
    enabled: Sequence[str],
) -> bytes:
    """The initramfs: it mounts the disk, copies our files over it, and starts systemd."""
    archive = _Tree()
    archive.add_program("bin/busybox", Path(need_tool("busybox", "busybox-static")).read_bytes())
    archive.add_program("init", _INIT.encode())
    modules = kernel.files_of(*_MODULES)
    archive.add_file("modules/order", " ".join(module.name for module in modules).encode())
    for module in modules:
        archive.add_file(f"modules/{module.name}", module.read_bytes())
    for path in _compiled(directory / "lazyfs"):
        name = path.relative_to(directory)
        archive.add_file(f"over/{root.packages}/{name}", path.read_bytes())
    for unit in UNITS.glob("*@.service"):
        archive.add_file(f"over/{_SYSTEM}/{unit.name}", unit.read_bytes())
    archive.add_file("over/opt/agent.py", _AGENT.read_bytes())
    archive.add_file(f"over/{_SYSTEM}/agent.service", _AGENT_UNIT.encode())
    archive.enable("agent.service", "sysinit.target")
    archive.add_file("over/etc/systemd/system.conf.d/tests.conf", _MANAGER.encode())
    for unit_name in enabled:
        archive.enable(unit_name, "multi-user.target")
    for name, text in files.items():
        archive.add_file(f"over/{name}", text.encode())
    return archive.finished()


def _compiled(copy: Path) -> list[Path]:
    """The files of lazyfs in a copy, compiled here, since the guest is slow."""
    shutil.copytree(_LAZYFS, copy, ignore=shutil.ignore_patterns("__pycache__"))
    checked = py_compile.PycInvalidationMode.UNCHECKED_HASH  # the archive has no timestamps
    assert compileall.compile_dir(copy, quiet=1, invalidation_mode=checked)
    return [path for path in copy.rglob("*") if path.is_file()]


class _Tree(Archive):
    """An archive that adds the parent directories of files."""

    def __init__(self) -> None:
        super().__init__()
        self._directories: set[str] = set()

    def add_file(self, name: str, content: bytes, mode: int = stat.S_IFREG | 0o644) -> None:
        for parent in [*map(str, Path(name).parents)][-2::-1]:
            if parent not in self._directories:
                self._directories.add(parent)
                self.add(parent, stat.S_IFDIR | 0o755)
        self.add(name, mode, content)

    def add_program(self, name: str, content: bytes) -> None:
        self.add_file(name, content, stat.S_IFREG | 0o755)

    def enable(self, unit: str, target: str) -> None:
        """Like ``systemctl enable`` for a unit with ``WantedBy=`` this target."""
        file = re.sub(r"@.*\.", "@.", unit)
        link = f"over/{_SYSTEM}/{target}.wants/{unit}"
        self.add_file(link, f"/{_SYSTEM}/{file}".encode(), stat.S_IFLNK | 0o777)

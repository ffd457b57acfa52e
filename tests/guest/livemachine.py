"""A machine that boots the live system: its kernel and initrd from us, all else from a server."""

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from real.mounts import need_tool

from .liveroot import Live

# What the kernel says in passing would fall into the lines that are looked for.
USUAL = "console=ttyS0 loglevel=5 panic=1 systemd.show_status=0"

_LOOK_EVERY = 0.2
_DISK = "format=raw,if=virtio"
_END = "reboot: (?:Power down|Restarting system)"


class LiveMachine:
    """One boot. ``with`` starts the machine; whatever is left of it at the end is killed."""

    def __init__(
        self,
        live: Live,
        directory: Path,
        words: str,
        *,
        initrd: Path | None = None,
        disk: Path | None = None,
        medium: Path | None = None,
        netboot: str = "",
        memory: str = "2G",
        life: float = 900.0,
    ) -> None:
        """``words``: of the kernel command line. ``initrd``: another than that with lazyfs.

        ``disk``: one that is written to; ``medium``: one that is not. ``netboot``: the URL of a
        script for iPXE, which boots then: nothing is from us. ``life``: the seconds after which a
        machine that does not end by itself is taken away.
        """
        self.console = directory / "console"
        self._life = life
        network, card = "user,id=net", "virtio-net-pci,netdev=net"
        if netboot:
            ours = []
            network += f",bootfile={netboot}"
            card += ",bootindex=0"  # from QEMU's ROM for it, which is an iPXE
        else:
            ours = ["-kernel", f"{live.kernel}", "-initrd", f"{initrd or live.initrd}"]
            ours += ["-append", f"boot=live ip=dhcp {USUAL} {words}"]
            card += ",romfile="
        self._command = [
            need_tool("qemu-system-x86_64", "qemu-system-x86"),
            *("-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "qemu64", "-smp", "2"),
            *("-m", memory, "-nodefaults", "-display", "none", "-no-reboot"),
            *(*ours, "-serial", f"file:{self.console}"),
            *("-netdev", network, "-device", card),
            *("-device", "virtio-rng-pci"),
            *(() if disk is None else ("-drive", f"file={disk},{_DISK}")),
            *(() if medium is None else ("-drive", f"file={medium},{_DISK},readonly=on")),
        ]

    def __enter__(self) -> Self:
        self.console.unlink(missing_ok=True)  # of an earlier boot
        self._until = time.monotonic() + self._life
        self._qemu = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        return self

    def __exit__(self, *error: object) -> None:
        if self._qemu.poll() is None:
            self._qemu.send_signal(signal.SIGKILL)
        self._qemu.wait(30)

    def said(self) -> str:
        """What is on its console."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Wait until its console shows this."""
        while True:
            ended = self._qemu.poll() is not None
            found = re.search(pattern, self.said())
            if found:
                return found
            assert not ended, f"it ended without {pattern!r}:\n{self.said()[-3000:]}"
            assert time.monotonic() < self._until, f"no {pattern!r}:\n{self.said()[-3000:]}"
            time.sleep(_LOOK_EVERY)

    def marker(self) -> tuple[float, int]:
        """Wait for the unit that says that systemd is through: seconds of uptime, free bytes."""
        found = self.wait_for(r"LIVE: marker at ([\d.]+) with (\d+) kB")
        return float(found[1]), int(found[2]) << 10

    def profile(self) -> str:
        """Wait until it shows the profile that it has recorded (``live.profile``)."""
        found = self.wait_for(r"(?s)LIVE: profile begins\r?\n(.*)LIVE: profile ends")
        return found[1].replace("\r", "")

    def power_off(self) -> float:
        """Wait until it has switched itself off, or wants to start anew; how long that took."""
        asked = float(self.wait_for(r"LIVE: power off at ([\d.]+)")[1])
        done = float(self.wait_for(rf"\[ *([\d.]+)\] {_END}")[1])
        self._qemu.wait(30)
        return done - asked


def scratch_disk(directory: Path) -> Path:
    """A disk of 1 GiB with an ext4 filesystem called "scratch"."""
    disk = directory / "disk"
    with open(disk, "wb") as file:
        file.truncate(1 << 30)
    tool = need_tool("mkfs.ext4", "e2fsprogs")
    subprocess.run([tool, "-q", "-L", "scratch", disk], check=True, timeout=60)
    return disk

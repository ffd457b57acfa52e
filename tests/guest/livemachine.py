"""A machine that boots the live system: kernel and initrd from us, the rest from a server."""

import re
import signal
import subprocess
import time
from pathlib import Path
from typing import Self

from real.mounts import need_tool

from .liveroot import Live

# Boot messages would be mixed into the lines that are searched for.
USUAL = "console=ttyS0 loglevel=5 panic=1 systemd.show_status=0"

_LOOK_EVERY = 0.2
_DISK = "format=raw,if=virtio"
_END = "reboot: (?:Power down|Restarting system)"


class LiveMachine:
    """One boot. ``with`` starts the machine, and kills it at the end if it still runs."""

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
        """``words``: for the kernel command line.

        ``initrd``: instead of the one with lazyfs.
        ``disk``: a writable disk.
        ``medium``: a read-only disk.
        ``netboot``: the URL of a script for iPXE, which then boots, without our kernel and initrd.
        ``life``: the time limit in seconds.
        """
        self.console = directory / "console"
        self._life = life
        network, card = "user,id=net", "virtio-net-pci,netdev=net"
        if netboot:
            ours = []
            network += f",bootfile={netboot}"
            card += ",bootindex=0"  # from QEMU's ROM for it, an iPXE
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
        """Its console output."""
        return self.console.read_text(errors="replace") if self.console.exists() else ""

    def wait_for(self, pattern: str) -> "re.Match[str]":
        """Wait until its console output matches this pattern."""
        while True:
            ended = self._qemu.poll() is not None
            found = re.search(pattern, self.said())
            if found:
                return found
            assert not ended, f"it ended without {pattern!r}:\n{self.said()[-3000:]}"
            assert time.monotonic() < self._until, f"no {pattern!r}:\n{self.said()[-3000:]}"
            time.sleep(_LOOK_EVERY)

    def marker(self) -> tuple[float, int]:
        """Wait for the unit that reports the end of the boot: seconds of uptime, free bytes."""
        found = self.wait_for(r"LIVE: marker at ([\d.]+) with (\d+) kB")
        return float(found[1]), int(found[2]) << 10

    def profile(self) -> str:
        """Wait until it prints the profile that it has recorded (``live.profile``)."""
        found = self.wait_for(r"(?s)LIVE: profile begins\r?\n(.*)LIVE: profile ends")
        return found[1].replace("\r", "")

    def power_off(self) -> float:
        """Wait for its power-off or reboot; returns the seconds from its request."""
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

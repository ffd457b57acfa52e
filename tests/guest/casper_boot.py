"""A guest that boots and powers off without an agent; its only output is its console."""

import subprocess
from pathlib import Path

import pytest
from real.mounts import need_tool


def boot(
    kernel: Path, initrd: Path, parameters: str, console: Path, *, memory: str, limit: float
) -> str:
    """Boot a machine, and wait until it has powered off; returns its console output."""
    command = [
        need_tool("qemu-system-x86_64", "qemu-system-x86"),
        *("-accel", "tcg,thread=multi", "-M", "pc", "-cpu", "qemu64", "-smp", "2"),
        *("-m", memory, "-nodefaults", "-display", "none", "-no-reboot"),
        *("-kernel", f"{kernel}", "-initrd", f"{initrd}"),
        *("-append", f"console=ttyS0 loglevel=5 panic=-1 {parameters}"),
        *("-serial", f"file:{console}"),
        *("-netdev", "user,id=net", "-device", "virtio-net-pci,netdev=net,romfile="),
        *("-device", "virtio-rng-pci"),
    ]
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        pytest.fail(f"after {limit:g} seconds it had not gone down:\n{_said(console)[-4000:]}")
    assert done.returncode == 0, done.stderr
    return _said(console)


def _said(console: Path) -> str:
    return console.read_text(errors="replace") if console.exists() else ""

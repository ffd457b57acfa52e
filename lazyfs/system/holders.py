"""Who has a block device or a mount in use: by /proc and sysfs, which ask nobody.

The device itself is not opened, and nothing in the mount is looked at: they may be dead, and who
asks them would wait.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lazyfs.system.loopdevice import backing_file
from lazyfs.system.mountinfo import all_mounts

_CLASS = Path("/sys/class/block")


def holders(device: str, owner: str | None) -> list[str]:
    """Everything that holds ``device``, like ``/dev/nbd0``, for a person to read.

    ``owner``: the number of a thread whose process may have it open, since it serves it.
    """
    nodes = _nodes(device)
    paths = frozenset(nodes.values())
    return [*_mounts(nodes), *_stacked(paths), *_processes(paths, owner)]


def holders_of_mount(mountpoint: Path) -> list[str]:
    """Everybody who has something of a mount open or works in it, for a person to read."""
    found = []
    for process in _all_processes():
        held = sorted(path for path in _used_by(process) if Path(path).is_relative_to(mountpoint))
        if held:
            found.append(f"{_name_of(process)} (process {process.name}) uses {held[0]}")
    return found


def _nodes(device: str) -> dict[str, str]:
    """The device and its partitions: their paths, by major:minor."""
    name = Path(device).name
    found = {}
    for number in (_CLASS / name / "dev", *sorted((_CLASS / name).glob(f"{name}p*/dev"))):
        try:
            found[number.read_text().strip()] = f"/dev/{number.parent.name}"
        except OSError:  # it has just gone
            continue
    return found


def _mounts(nodes: dict[str, str]) -> Iterator[str]:
    for mounted in all_mounts():
        if mounted.device in nodes:
            yield f"{nodes[mounted.device]} is mounted on {mounted.mountpoint}"


def _stacked(paths: frozenset[str]) -> Iterator[str]:
    """Devices that stand on these: loop devices, and those of the device mapper and the like."""
    for path in sorted(paths):
        for holder in sorted((_CLASS / Path(path).name / "holders").glob("*")):
            yield f"/dev/{holder.name} stands on {path}"
    for entry in sorted(Path("/sys/block").glob("loop*/loop")):
        loop = f"/dev/{entry.parent.name}"
        if str(backing_file(loop)) in paths:
            yield f"{loop} stands on {backing_file(loop)}"


def _processes(paths: frozenset[str], owner: str | None) -> Iterator[str]:
    """Processes that have one of these open; our own does not count."""
    for process in _all_processes():
        if owner and (process / "task" / owner).exists():
            continue
        held = _opened_by(process) & paths
        if held:
            yield f"{_name_of(process)} (process {process.name}) has {' '.join(sorted(held))} open"


def _all_processes() -> list[Path]:
    """All but our own."""
    found = sorted(Path("/proc").glob("[0-9]*"), key=lambda process: int(process.name))
    return [process for process in found if process.name != str(os.getpid())]


def _opened_by(process: Path) -> set[str]:
    """What a process has open, by the names of the links alone: following one may block."""
    try:
        return _targets((process / "fd").iterdir())
    except OSError:  # it has just ended, or is none of our business
        return set()


def _used_by(process: Path) -> set[str]:
    """The same, and where it works, and what it has mapped."""
    places = _targets(process / name for name in ("cwd", "root", "exe"))
    try:
        lines = (process / "maps").read_text(errors="surrogateescape").splitlines()
    except OSError:
        lines = []
    mapped = {fields[5] for line in lines if len(fields := line.split(maxsplit=5)) == 6}
    return _opened_by(process) | places | mapped


def _targets(links: Iterable[Path]) -> set[str]:
    found = set()
    for link in links:
        with suppress(OSError):
            found.add(os.readlink(link))
    return found


def _name_of(process: Path) -> str:
    try:
        return (process / "comm").read_text().strip()
    except OSError:
        return "a process"

"""Finding the users of a block device or a mount through /proc and sysfs, which never block.

The device itself is not opened, and nothing in the mount is accessed: they may be dead, and the
access would hang.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from lazyfs.system.loopdevice import backing_file
from lazyfs.system.mountinfo import all_mounts

_CLASS = Path("/sys/class/block")


def holders(device: str, owner: str | None) -> list[str]:
    """The holders of ``device``, like ``/dev/nbd0``, in human-readable form.

    ``owner``: the id of a thread; its process, which serves the device, is left out.
    """
    nodes = _nodes(device)
    paths = frozenset(nodes.values())
    return [*_mounts(nodes), *_stacked(paths), *_processes(paths, owner)]


def holders_of_mount(mountpoint: Path) -> list[str]:
    """The processes that use files of a mount or work in it, in human-readable form."""
    found = []
    for process in _all_processes():
        held = sorted(path for path in _used_by(process) if Path(path).is_relative_to(mountpoint))
        if held:
            found.append(f"{_name_of(process)} (process {process.name}) uses {held[0]}")
    return found


def _nodes(device: str) -> dict[str, str]:
    """The paths of the device and its partitions, by major:minor."""
    name = Path(device).name
    found = {}
    for number in (_CLASS / name / "dev", *sorted((_CLASS / name).glob(f"{name}p*/dev"))):
        try:
            found[number.read_text().strip()] = f"/dev/{number.parent.name}"
        except OSError:  # just removed
            continue
    return found


def _mounts(nodes: dict[str, str]) -> Iterator[str]:
    for mounted in all_mounts():
        if mounted.device in nodes:
            yield f"{nodes[mounted.device]} is mounted on {mounted.mountpoint}"


def _stacked(paths: frozenset[str]) -> Iterator[str]:
    """Devices on top of these: loop devices, and those of the device mapper and the like."""
    for path in sorted(paths):
        for holder in sorted((_CLASS / Path(path).name / "holders").glob("*")):
            yield f"/dev/{holder.name} stands on {path}"
    for entry in sorted(Path("/sys/block").glob("loop*/loop")):
        loop = f"/dev/{entry.parent.name}"
        if str(backing_file(loop)) in paths:
            yield f"{loop} stands on {backing_file(loop)}"


def _processes(paths: frozenset[str], owner: str | None) -> Iterator[str]:
    """Processes that have one of these open, except our own and the owner's."""
    for process in _all_processes():
        if owner and (process / "task" / owner).exists():
            continue
        held = _opened_by(process) & paths
        if held:
            yield f"{_name_of(process)} (process {process.name}) has {' '.join(sorted(held))} open"


def _all_processes() -> list[Path]:
    """All processes except our own."""
    found = sorted(Path("/proc").glob("[0-9]*"), key=lambda process: int(process.name))
    return [process for process in found if process.name != str(os.getpid())]


def _opened_by(process: Path) -> set[str]:
    """The files that a process has open, by the links' names only: following one may block."""
    try:
        return _targets((process / "fd").iterdir())
    except OSError:  # just ended, or not permitted
        return set()


def _used_by(process: Path) -> set[str]:
    """The files that a process has open or mapped, its program, root and working directory."""
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

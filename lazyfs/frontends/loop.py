"""Loop devices that stand on files of a mount (loop(4))."""

from pathlib import Path


def loops_below(directory: Path) -> list[str]:
    """The loop devices, like ``/dev/loop0``, whose backing file is ``directory`` or lies in it.

    From sysfs, which asks nobody: ``losetup -a`` stats each backing file and hangs with the first
    mount that is stuck.
    """
    found = []
    for entry in sorted(Path("/sys/block").glob("loop*/loop/backing_file")):
        try:
            backing = Path(entry.read_text().rstrip("\n"))
        except OSError:  # detached in the meantime
            continue
        if backing == directory or directory in backing.parents:
            found.append(f"/dev/{entry.parent.parent.name}")
    return found

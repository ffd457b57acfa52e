"""The mounts, from proc(5) mountinfo: accessing the filesystems themselves could block."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

KIND = "fuse.lazyfs"  # the filesystem type of lazyfs mounts
VIEW_ATTRIBUTE = "user.lazyfs.view"  # of a mounted image: the id of the view that it shows
IDENTITY_ATTRIBUTE = "user.lazyfs.identity"  # of a mounted image: its Identity, as JSON
IMAGE_IN_A_TREE = ".lazyfs-image"  # the image's name in a mount that shows its tree

_USER = re.compile(r"(?:^|,)user_id=(\d+)")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One mount. ``device``: major:minor. ``user``: the uid of its owner, for FUSE mounts."""

    mountpoint: Path
    kind: str
    source: str
    device: str
    user: int | None = None


def mount_on(mountpoint: Path) -> Mounted | None:
    """The topmost mount on exactly this path."""
    return next((m for m in reversed(all_mounts()) if m.mountpoint == mountpoint), None)


def all_mounts() -> list[Mounted]:
    """All mounts of this namespace, in order of mounting."""
    return _mounts_of("self")


def mounts_of_init() -> list[Mounted]:
    """All mounts of process 1's namespace; none if that is not permitted.

    They may differ from ours: in a live boot the daemon has its own namespace and root.
    """
    try:
        return _mounts_of("1")
    except OSError:  # hidden in /proc
        return []


def _mounts_of(process: str) -> list[Mounted]:
    text = Path(f"/proc/{process}/mountinfo").read_bytes().decode("utf-8", "surrogateescape")
    return [_parse(line) for line in text.splitlines()]


def _parse(line: str) -> Mounted:
    before, _, after = line.partition(" - ")
    fields, (kind, source, options, *_) = before.split(" "), after.split(" ")
    user = _USER.search(options)
    return Mounted(
        Path(_plain(fields[4])), kind, _plain(source), fields[2], int(user[1]) if user else None
    )


def _plain(field: str) -> str:
    """A field with its octal escapes, which encode bytes, decoded."""
    raw = os.fsencode(field).decode("latin-1")
    return os.fsdecode(_ESCAPE.sub(lambda m: chr(int(m[1], 8)), raw).encode("latin-1"))

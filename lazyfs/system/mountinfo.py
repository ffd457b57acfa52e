"""What is mounted where, by proc(5) mountinfo: asking the filesystems themselves could block."""

import os
import re
from dataclasses import dataclass
from pathlib import Path

KIND = "fuse.lazyfs"  # of our own mounts
CACHE_ATTRIBUTE = "user.lazyfs.cache"  # of a mounted image: the name of its cache
IDENTITY_ATTRIBUTE = "user.lazyfs.identity"  # of a mounted image: its Identity, as JSON
IMAGE_IN_A_TREE = ".lazyfs-image"  # what the image is called where its tree is shown

_USER = re.compile(r"(?:^|,)user_id=(\d+)")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True)
class Mounted:
    """One mount. ``device``: major:minor. ``user``: who mounted it, where FUSE says so."""

    mountpoint: Path
    kind: str
    source: str
    device: str
    user: int | None = None


def mount_on(mountpoint: Path) -> Mounted | None:
    """The topmost mount on exactly this path."""
    return next((m for m in reversed(all_mounts()) if m.mountpoint == mountpoint), None)


def all_mounts() -> list[Mounted]:
    """All mounts of this namespace, in the order in which they were made."""
    return _mounts_of("self")


def mounts_of_init() -> list[Mounted]:
    """All mounts that the first process sees; none where it may not be looked at.

    They may be others than ours: at a live boot the daemon has a namespace and a root of its own.
    """
    try:
        return _mounts_of("1")
    except OSError:  # a /proc that hides it
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
    """A field with its octal escapes undone; they stand for bytes."""
    raw = os.fsencode(field).decode("latin-1")
    return os.fsdecode(_ESCAPE.sub(lambda m: chr(int(m[1], 8)), raw).encode("latin-1"))

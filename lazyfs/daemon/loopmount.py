"""``lazyfs loop``: an image's filesystem mounted in one step, through a loop device.

The image is mounted in a private directory, a loop device is set up on it, and the filesystem on
the loop device is mounted for the user. When the user unmounts it, the loop device is detached; the
image then has no users, and the daemon ends. When the image is complete, the loop device is handed
over to the local copy, and the daemon ends while the mount stays.
"""

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import trio

from lazyfs.core.errors import LazyfsError, MountError
from lazyfs.core.options import MountOptions, OnChange
from lazyfs.daemon.leftovers import RUNTIME, answers, clear_away
from lazyfs.daemon.mount import Consumer, mount
from lazyfs.system import programs
from lazyfs.system.loopdevice import (
    attach,
    backing_file,
    change_backing_file,
    detach,
    kinds_that_would_die,
)
from lazyfs.system.mountinfo import mount_on


@dataclass(frozen=True)
class LoopOptions:
    """How the filesystem on the loop device is mounted.

    ``kind``: its type; None to detect it.
    ``repair``: whether to revive the loop device of a dead daemon.
    """

    filesystem_options: tuple[str, ...] = ()
    kind: str | None = None
    repair: bool = False


def loop_mount(
    options: MountOptions, loop: LoopOptions, report: Callable[[LazyfsError], int]
) -> int:
    """Mount the filesystem in the image on ``options.mountpoint``; returns the exit code.

    Raises MountError.
    """
    if os.geteuid() != 0:
        raise MountError("only root can set up loop devices", "mount without loop, or use sudo")
    dead = _dead_device(options.mountpoint) if loop.repair else None
    if dead is None and not options.mountpoint.is_dir():
        raise MountError(f"{options.mountpoint} is not a directory", f"mkdir {options.mountpoint}")
    clear_away()
    RUNTIME.mkdir(mode=0o700, parents=True, exist_ok=True)
    inner = Path(tempfile.mkdtemp(prefix="loop-", dir=RUNTIME))
    file = inner / options.images[0].name

    async def begin() -> None:
        if dead is None:
            await trio.to_thread.run_sync(_attach_and_mount, file, options.mountpoint, loop)
        else:
            await trio.to_thread.run_sync(_revive, dead, file)

    # The revived filesystem must not see another version of the image.
    if loop.repair:
        cache = replace(options.cache, on_change=OnChange.FAIL, must_exist=True)
        options = replace(options, cache=cache)
    use = Consumer(begin, "loop", options.mountpoint)
    return mount(replace(options, mountpoint=inner), report, use)


def _attach_and_mount(file: Path, mountpoint: Path, loop: LoopOptions) -> None:
    device = attach(file)
    try:
        kind = ["-t", loop.kind] if loop.kind else []
        options = ",".join(("ro", *loop.filesystem_options))
        programs.run("mount", [*kind, "-o", options, device, mountpoint])
    finally:
        detach(device)  # once it is mounted, deferred until it is unmounted


def _dead_device(mountpoint: Path) -> str:
    """The loop device mounted there, whose daemon is dead. Raises MountError."""
    mounted = mount_on(mountpoint)
    device = mounted.source if mounted else ""
    file = backing_file(device) if device.startswith("/dev/loop") else None
    if file is None:
        raise MountError(
            f"no loop device is mounted on {mountpoint}", "see: findmnt " + str(mountpoint)
        )
    if kinds := kinds_that_would_die(device):
        raise MountError(
            f"{' '.join(kinds)} on {mountpoint} cannot be revived: it would not survive the repair",
            f"umount {mountpoint}, and mount it again",
        )
    if answers(file):
        raise MountError(
            f"{device} on {mountpoint} needs no repair: {file} can be read", "use it as it is"
        )
    return device


def _revive(device: str, file: Path) -> None:
    """Put ``file`` under a loop device whose own file died."""
    try:
        change_backing_file(device, file)
    except OSError as error:
        raise MountError(
            f"{device} cannot be moved to {file.name}: {error.strerror}",
            "check that this is the image that it was mounted from",
        ) from error
    clear_away()

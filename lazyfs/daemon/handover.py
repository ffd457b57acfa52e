"""Hand-over: when an image is complete, loop devices on its file move to the local copy.

The backing file of a read-only loop device can be changed under a mounted filesystem. Reads then
run at the speed of the local disk, without the daemon.

A view that is a part of its image moves to a second loop device, which shows that part of the copy:
the offset and the file of the first one cannot be changed in one step, and between two steps it
would show wrong bytes.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import ControlError
from lazyfs.core.ranges import Span
from lazyfs.images.image import Image
from lazyfs.system.loopdevice import (
    change_backing_file,
    kinds_that_would_die,
    loops_below,
    stands_on,
)

LOOK_EVERY = 2.0  # seconds between two searches for loop devices, which only read sysfs

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """The result for one loop device. ``stays``: why it was not moved; empty if it was."""

    device: str
    stays: str = ""


@dataclass(frozen=True)
class LocalCopy:
    """The file that contains an image once it is complete.

    ``window``: the bytes of it that make up the view; None for all of them.
    """

    file: Path
    window: Span | None = None

    @classmethod
    def of(cls, image: Image) -> "LocalCopy | None":
        """The copy of an image's view; None if no file on disk could take over."""
        if image.data_file is None or image.window is None:
            return None
        return cls(image.data_file, image.window if image.layers else None)


@dataclass(frozen=True)
class ExportedFile:
    """An image and the file that shows it.

    ``copy``: None if nothing could take over.
    ``filesystem``: major:minor of the mount with ``file``.
    """

    image: Device
    copy: LocalCopy | None
    file: Path
    filesystem: str


async def hand_over_when_complete(exported: ExportedFile) -> None:
    """Move the loop devices on an image's file to the local copy, once it is complete.

    Runs until cancelled, for loop devices that are set up later.
    """
    if exported.copy is None:
        return
    staying: set[str] = set()
    while True:
        await exported.image.wait_complete()
        found = set(loops_below(exported.file))
        for device in sorted(found - staying):
            await _moved(exported, device, exported.copy)
        staying = found & set(loops_below(exported.file))
        await trio.sleep(LOOK_EVERY)


async def hand_over(exported: ExportedFile) -> list[Outcome]:
    """Move the loop devices on the file of an image now; returns the outcome for each.

    Raises ControlError if the image is not complete, or has no copy.
    """
    if exported.copy is None:
        raise ControlError(
            f"{exported.file.name} has no cache on disk that could take over",
            "mount it without --no-cache",
        )
    if not await _is_complete(exported.image):
        raise ControlError(
            f"{exported.file.name} is not complete", "lazyfs fill --wait completes it"
        )
    found = loops_below(exported.file)
    return [await _moved(exported, device, exported.copy) for device in found]


async def _moved(exported: ExportedFile, device: str, copy: LocalCopy) -> Outcome:
    """Move one loop device to ``copy``, unless it must stay or the image is not complete."""

    def still_complete() -> bool:
        return trio.from_thread.run(_is_complete, exported.image)

    try:
        # In a thread: the kernel waits for reads in flight, which this event loop answers.
        stays = await trio.to_thread.run_sync(
            _hand_over, device, exported.filesystem, copy, still_complete
        )
    except OSError as error:
        stays = str(error.strerror)
        log.warning("%s stays on %s: %s", device, exported.file, stays)
    return Outcome(device, stays)


async def _is_complete(image: Device) -> bool:
    with trio.move_on_after(0.5):  # a complete image returns at once
        await image.wait_complete()
        return True
    return False


def _hand_over(
    device: str, filesystem: str, copy: LocalCopy, still_complete: Callable[[], bool]
) -> str:
    """Move a loop device; returns why it stays, empty if it was moved. Raises OSError."""
    if not stands_on(device, filesystem):
        return "it stands on something else"
    if kinds := kinds_that_would_die(device):
        log.info("%s stays: %s would not survive the change", device, *kinds)
        return f"{', '.join(kinds)} would not survive the change"
    if not change_backing_file(device, copy.file, still_complete, copy.window):
        return "the image is not complete any more"
    log.info("%s now stands on the complete copy %s", device, os.readlink(copy.file))
    return ""

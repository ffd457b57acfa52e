"""Hand-over: when an image is complete, what stands on its file moves to the local copy.

A read-only loop device lets its backing file be changed under a mounted filesystem. From then on
reads run at the speed of the local disk, and the daemon is no longer needed for them.
"""

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import ControlError
from lazyfs.system.loopdevice import (
    change_backing_file,
    kinds_that_would_die,
    loops_below,
    stands_on,
)

LOOK_EVERY = 2.0  # seconds between two looks for loop devices; sysfs is asked, and nobody else

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one loop device. ``stays``: why it was not moved; empty if it was."""

    device: str
    stays: str = ""


@dataclass(frozen=True)
class Exposed:
    """An image as the file that others see.

    ``copy``: the file that is the whole image once it is complete; None without a cache on disk.
    ``filesystem``: major:minor of the mount that ``file`` lies on.
    """

    image: Device
    copy: Path | None
    file: Path
    filesystem: str


async def hand_over_when_complete(exposed: Exposed) -> None:
    """While an image is complete, move the loop devices on its file to the local copy.

    Those that are set up later, too: until cancelled.
    """
    if exposed.copy is None:
        return
    staying: set[str] = set()
    while True:
        await exposed.image.wait_complete()
        found = set(loops_below(exposed.file))
        for device in sorted(found - staying):
            await _moved(exposed, device, exposed.copy)
        staying = found & set(loops_below(exposed.file))
        await trio.sleep(LOOK_EVERY)


async def hand_over(exposed: Exposed) -> list[Outcome]:
    """Move the loop devices on the file of an image now; says what became of each.

    Raises ControlError if the image is not complete, or has no copy.
    """
    if exposed.copy is None:
        raise ControlError(
            f"{exposed.file.name} has no cache on disk that could take over",
            "mount it without --no-cache",
        )
    if not await _is_complete(exposed.image):
        raise ControlError(
            f"{exposed.file.name} is not complete", "lazyfs fill --wait completes it"
        )
    found = loops_below(exposed.file)
    return [await _moved(exposed, device, exposed.copy) for device in found]


async def _moved(exposed: Exposed, device: str, copy: Path) -> Outcome:
    """Move one loop device to ``copy``, unless it has to stay, or the image is not complete."""

    def still_complete() -> bool:
        return trio.from_thread.run(_is_complete, exposed.image)

    try:
        # In a thread: the kernel waits for reads under way, which this very loop answers.
        stays = await trio.to_thread.run_sync(
            _hand_over, device, exposed.filesystem, copy, still_complete
        )
    except OSError as error:
        stays = str(error.strerror)
        log.warning("%s stays on %s: %s", device, exposed.file, stays)
    return Outcome(device, stays)


async def _is_complete(image: Device) -> bool:
    with trio.move_on_after(0.5):  # which a complete one does not need
        await image.wait_complete()
        return True
    return False


def _hand_over(device: str, filesystem: str, copy: Path, still_complete: Callable[[], bool]) -> str:
    """Move a loop device; returns why it stays, or nothing if it was moved. Raises OSError."""
    if not stands_on(device, filesystem):
        return "it stands on something else"
    if kinds := kinds_that_would_die(device):
        log.info("%s stays: %s would not survive the change", device, *kinds)
        return f"{', '.join(kinds)} would not survive the change"
    if not change_backing_file(device, copy, still_complete):
        return "the image is not complete any more"
    log.info("%s now stands on the complete copy %s", device, os.readlink(copy))
    return ""

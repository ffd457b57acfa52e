"""Hand-over: when an image is complete, what stands on its file moves to the local copy.

A read-only loop device lets its backing file be changed under a mounted filesystem. From then on
reads run at the speed of the local disk, and the daemon is no longer needed for them.
"""

import logging
import os
from collections.abc import Callable
from pathlib import Path

import trio

from lazyfs.device import Device
from lazyfs.frontends.loop import (
    change_backing_file,
    kinds_that_would_die,
    loops_below,
    stands_on,
)
from lazyfs.stack import Image

LOOK_EVERY = 2.0  # seconds between two looks for loop devices; sysfs is asked, and nobody else

log = logging.getLogger(__name__)


async def hand_over_when_complete(image: Image, file: Path, filesystem: str) -> None:
    """While ``image`` is complete, move the loop devices on ``file`` to the local copy.

    Those that are set up later, too: until cancelled. ``filesystem``: major:minor of the mount that
    ``file`` lies on.
    """
    if image.local_copy is None:
        return
    staying: set[str] = set()
    while True:
        await image.device.wait_complete()
        found = set(loops_below(file))
        for device in sorted(found - staying):
            await hand_over(device, file, filesystem, image.local_copy, image.device)
        staying = found & set(loops_below(file))
        await trio.sleep(LOOK_EVERY)


async def hand_over(device: str, file: Path, filesystem: str, copy: Path, image: Device) -> None:
    """Move one loop device from ``file`` to ``copy``, unless it has to stay; that is said.

    Nothing is moved if ``image`` is not complete any more.
    """

    def still_complete() -> bool:
        return trio.from_thread.run(_is_complete, image)

    try:
        # In a thread: the kernel waits for reads under way, which this very loop answers.
        await trio.to_thread.run_sync(_hand_over, device, filesystem, copy, still_complete)
    except OSError as error:
        log.warning("%s stays on %s: %s", device, file, error.strerror)


async def _is_complete(image: Device) -> bool:
    with trio.move_on_after(0.5):  # which a complete one does not need
        await image.wait_complete()
        return True
    return False


def _hand_over(
    device: str, filesystem: str, copy: Path, still_complete: Callable[[], bool]
) -> None:
    if not stands_on(device, filesystem):
        return
    if kinds := kinds_that_would_die(device):
        log.info("%s stays: %s would not survive the change", device, *kinds)
        return
    if change_backing_file(device, copy, still_complete):
        log.info("%s now stands on the complete copy %s", device, os.readlink(copy))

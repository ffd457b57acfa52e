"""Hand-over: when an image is complete, what stands on its file moves to the local copy.

A read-only loop device lets its backing file be changed under a mounted filesystem. From then on
reads run at the speed of the local disk, and the daemon is no longer needed for them.
"""

import logging
from pathlib import Path

import trio

from lazyfs.frontends.loop import change_backing_file, kinds_that_would_die, loops_below
from lazyfs.stack import Image

log = logging.getLogger(__name__)


async def hand_over_when_complete(image: Image, file: Path) -> None:
    """When ``image`` is complete, move the loop devices on ``file`` to the local copy."""
    if image.local_copy is None:
        return
    await image.device.wait_complete()
    for device in loops_below(file):
        if kinds := kinds_that_would_die(device):
            log.info("%s stays on %s: %s would not survive the change", device, file, *kinds)
            continue
        try:
            # In a thread: the kernel waits for reads under way, which this very loop answers.
            await trio.to_thread.run_sync(change_backing_file, device, image.local_copy)
        except OSError as error:
            log.warning("%s stays on %s: %s", device, file, error.strerror)
        else:
            log.info("%s now stands on the complete copy %s", device, image.local_copy)

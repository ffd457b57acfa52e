"""A Device that writes down what is read through it, for a profile."""

import logging
from pathlib import Path

import trio

from lazyfs.device import Device
from lazyfs.prefetch.profile import Profile, Recording, as_text
from lazyfs.ranges import clamp
from lazyfs.view import DeviceView
from lazyfs.wholefiles import write_whole

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0  # seconds: what a machine that is switched off may lose


class Recorder(DeviceView):
    """What readers ask of ``below``, in a file. It must see reads before anything joins them."""

    def __init__(self, below: Device, url: str, file: Path) -> None:
        """``url``: without secrets, for the profile. ``file``: written when ``run`` is running."""
        super().__init__(below)
        self._url = url
        self._file = file
        self._recording = Recording()
        self._changed = True

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self.identity.size)
        self._changed = self._recording.note(trio.current_time(), span) or self._changed
        return await super().read(offset, length)

    async def run(self) -> None:
        """Save now and then, and once more in the end, until cancelled."""
        try:
            while True:
                await self._save()
                await trio.sleep(SAVE_EVERY)
        finally:
            await self._save()

    async def _save(self) -> None:
        """Write down what is new. What goes wrong with it is no reader's trouble."""
        if not self._changed:
            return
        self._changed = False
        found = self._recording.profile(self._url, self.identity)
        try:
            with trio.CancelScope(shield=True):  # what was read last is in the end's save only
                await trio.to_thread.run_sync(_write, self._file, found)
        except OSError as error:
            self._changed = True
            log.error("the profile %s cannot be written: %s", self._file, error.strerror)


def _write(file: Path, profile: Profile) -> None:
    write_whole(file, as_text(profile).encode(), 0o666)

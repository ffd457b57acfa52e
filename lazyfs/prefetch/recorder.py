"""A Device that writes down what is read through it, for a profile."""

import logging
from pathlib import Path

import trio

from lazyfs.core.device import Device
from lazyfs.core.errors import ProfileError
from lazyfs.core.ranges import clamp
from lazyfs.core.view import DeviceView
from lazyfs.prefetch.profile import Profile, Recording, as_text
from lazyfs.system.atomicfile import write_whole

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0  # seconds: what a machine that is switched off may lose


class Recorder(DeviceView):
    """What readers ask of ``below``, in a file. It must see reads before anything joins them."""

    def __init__(self, below: Device, url: str) -> None:
        """``url``: without secrets, for the profile. Nothing is recorded until ``record_to``."""
        super().__init__(below)
        self._url = url
        self._file: Path | None = None
        self._recording = Recording()
        self._changed = False
        self._failing = False

    @property
    def file(self) -> Path | None:
        """Where the profile goes; None if nothing is recorded."""
        return self._file

    async def record_to(self, file: Path | None) -> None:
        """Begin a new profile in ``file``, which is written while ``run`` runs; or none any more.

        What was recorded before is saved in its own file. Raises ProfileError if ``file`` cannot be
        written; all is as it was then.
        """
        await self._save()
        begun = Recording()
        if file is not None:
            try:
                empty = begun.profile(self._url, self.identity)
                await trio.to_thread.run_sync(_write, file, empty)
            except OSError as error:
                raise ProfileError(
                    f"{file} cannot be written: {error.strerror}", "name another file"
                ) from error
        self._file, self._recording, self._changed = file, begun, False

    async def read(self, offset: int, length: int) -> bytes:
        if self._file is not None:
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
        if not self._changed or self._file is None:
            return
        self._changed = False
        found = self._recording.profile(self._url, self.identity)
        try:
            with trio.CancelScope(shield=True):  # what was read last is in the end's save only
                await trio.to_thread.run_sync(_write, self._file, found)
        except OSError as error:
            self._changed = True
            if not self._failing:
                log.error("the profile %s cannot be written: %s", self._file, error.strerror)
            self._failing = True
        else:
            self._failing = False


def _write(file: Path, profile: Profile) -> None:
    write_whole(file, as_text(profile).encode(), 0o666)

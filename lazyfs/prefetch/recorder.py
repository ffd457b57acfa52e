"""A Device that records the reads through it in a profile."""

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

SAVE_EVERY = 30.0  # seconds: the most that a power cut may cost


class Recorder(DeviceView):
    """Records the reads of ``below`` in a file. Must see reads before any layer merges them."""

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
        """The file of the profile; None if nothing is recorded."""
        return self._file

    async def record_to(self, file: Path | None) -> None:
        """Begin a new profile in ``file``, which ``run`` writes; None stops recording.

        The profile recorded so far is saved in its own file. Raises ProfileError if ``file`` cannot
        be written; nothing has changed then.
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
        """Save regularly, and once more at the end, until cancelled."""
        try:
            while True:
                await self._save()
                await trio.sleep(SAVE_EVERY)
        finally:
            await self._save()

    async def _save(self) -> None:
        """Save the profile if it has changed. Errors are logged, and fail no reader."""
        if not self._changed or self._file is None:
            return
        self._changed = False
        found = self._recording.profile(self._url, self.identity)
        try:
            with trio.CancelScope(shield=True):  # the last reads are only in the final save
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

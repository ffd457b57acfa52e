"""A Device that writes down what is read through it, for a profile."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from lazyfs.device import Device, Identity, Link, Priority, Statistics
from lazyfs.prefetch.profile import Profile, Recording, as_text
from lazyfs.ranges import clamp
from lazyfs.wholefiles import write_whole

log = logging.getLogger(__name__)

SAVE_EVERY = 30.0  # seconds: what a machine that is switched off may lose


class Recorder:
    """What readers ask of ``below``, in a file. It must see reads before anything joins them."""

    def __init__(self, below: Device, url: str, file: Path) -> None:
        """``url``: without secrets, for the profile. ``file``: written when ``run`` is running."""
        self._below = below
        self._url = url
        self._file = file
        self._recording = Recording()
        self._changed = True

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self._below.identity.size)
        self._changed = self._recording.note(trio.current_time(), span) or self._changed
        return await self._below.read(offset, length)

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        await self._below.ensure(offset, length, priority)

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        return self._below.cached(offset, length)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        return await self._below.zeros(offset, length)

    async def wait_complete(self) -> None:
        await self._below.wait_complete()

    def statistics(self) -> Statistics:
        return self._below.statistics()

    async def aclose(self) -> None:
        await self._below.aclose()

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
        found = self._recording.profile(self._url, self._below.identity)
        try:
            with trio.CancelScope(shield=True):  # what was read last is in the end's save only
                await trio.to_thread.run_sync(_write, self._file, found)
        except OSError as error:
            self._changed = True
            log.error("the profile %s cannot be written: %s", self._file, error.strerror)


def _write(file: Path, profile: Profile) -> None:
    write_whole(file, as_text(profile).encode(), 0o666)

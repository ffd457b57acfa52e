"""A Device that writes down what is read through it, for a profile."""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

import trio

from lazyfs.device import Device, Identity, Link, Priority, Statistics
from lazyfs.prefetch.profile import Recording, as_text
from lazyfs.ranges import clamp

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

    @property
    def identity(self) -> Identity:
        return self._below.identity

    @property
    def link(self) -> Link:
        return self._below.link

    async def read(self, offset: int, length: int) -> bytes:
        span = clamp(offset, length, self._below.identity.size)
        self._recording.note(trio.current_time(), span)
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
                await trio.sleep(SAVE_EVERY)
                self._save()
        finally:
            self._save()

    def _save(self) -> None:
        """Write the file whole or not at all. What goes wrong with it is no reader's trouble."""
        text = as_text(self._recording.profile(self._url, self._below.identity))
        partial = self._file.with_name(self._file.name + ".new")
        try:
            partial.write_text(text)
            os.replace(partial, self._file)
        except OSError as error:
            log.error("the profile %s cannot be written: %s", self._file, error.strerror)

"""The failures of an image, for readers and the status. Each change of state is logged once.

Transient failures belong to the host: its slots hold requests back and log them. This module keeps
the failures that retrying does not cure, such as a refusal or another version of the image, and
reads that timed out.
"""

import logging

import trio

from lazyfs.core.device import Source, Trouble
from lazyfs.core.errors import LazyfsError, ReadTimeout

log = logging.getLogger(__name__)


class Health:
    """The health of one image."""

    def __init__(self, name: str, source: Source) -> None:
        """``name``: the image, for messages."""
        self._name = name
        self._source = source
        self._failure: Trouble | None = None  # one that retrying does not cure
        self._logged = False

    @property
    def trouble(self) -> Trouble | None:
        """The failure that keeps data from arriving; None for none."""
        return self._failure or self._source.trouble

    def gave_up(self, error: LazyfsError) -> None:
        """Note a failure that retrying does not cure."""
        since = self._failure.since if self._failure else trio.current_time()
        self._failure = Trouble(error, since)
        self._log(error)

    def timed_out(self, seconds: float) -> ReadTimeout:
        """Note that a read timed out after ``seconds``; returns its error."""
        trouble = self.trouble
        reason = f" (last failure: {trouble.error.message})" if trouble else ""
        error = ReadTimeout(f"{self._name}: no data within {seconds:g} seconds{reason}")
        self._log(error)
        return error

    def arrived(self) -> None:
        """Note that data have arrived. Must be called before the host's health is updated."""
        if self._logged and self._source.trouble is None:  # else the host's recovery is logged
            log.info("%s: data are coming in again", self._name)
        self._failure, self._logged = None, False

    def _log(self, error: LazyfsError) -> None:
        if not self._logged:
            self._logged = True
            log.error("%s", error)

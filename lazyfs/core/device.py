"""The interface that every layer implements, and its types.

A Device has no cursor: each read gives its offset, so any number of readers share one Device.
Prefetch is a hint passed down through ``ensure``; it is never a second way to read.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple, Protocol

from lazyfs.core.errors import LazyfsError, TransientError


class Priority(IntEnum):
    """How urgent a range is; a lower number goes first."""

    DEMAND = 0  # a reader waits for it
    READAHEAD = 1  # a reader is expected there soon
    PRELOAD = 2  # expected by a profile or a pattern
    FILL = 3  # no reader is expected there; it completes the image


@dataclass(frozen=True)
class Identity:
    """The validators that identify one version of an image.

    ``size``: bytes.
    ``etag``: a strong entity tag with its quotes, or None (RFC 9110 section 8.8.3).
    ``last_modified``: the Last-Modified field as the server sent it, or None.
    ``weak_etag``: a weak entity tag without its ``W/``, or None. Equal ones say nothing about the
    bytes (section 8.8.1), so it pins nothing; different ones show a change.
    """

    size: int
    etag: str | None = None
    last_modified: str | None = None
    weak_etag: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether it has a validator that tells versions of the image apart."""
        return self.etag is not None or self.last_modified is not None

    def matches(self, other: "Identity") -> bool:
        """Whether ``other``, seen later, is the same version as this one.

        The entity tag decides if this identity has one. A weak tag that becomes a strong one a
        second after the file was written (Apache) still matches.
        """
        if self.size != other.size:
            return False
        if self.etag is not None:
            return self.etag == other.etag
        tag = other.etag or other.weak_etag
        if self.weak_etag is not None and tag is not None and self.weak_etag != tag:
            return False
        return self.last_modified is None or self.last_modified == other.last_modified


@dataclass(frozen=True)
class Statistics:
    """The counts of a Device since it was opened; in bytes unless another unit is named."""

    size: int = 0  # of the image
    cached: int = 0  # held locally
    wanted: int = 0  # requested by readers
    hits: int = 0  # reads that were served from the cache at once
    misses: int = 0  # reads that had to wait
    fetched: int = 0  # sent by the source
    prefetched: int = 0  # of these, fetched before any read of them
    unused: int = 0  # of these, not read yet
    requests: int = 0  # ranges requested from the source
    under_way: int = 0  # requests in flight
    failures: int = 0  # requests that failed
    damaged: int = 0  # cached blocks that failed their checksum and were dropped
    evicted: int = 0  # blocks evicted for the cache's limit
    rate: float = 0.0  # of the link, in bytes per second; 0 until known
    round_trip: float = 0.0  # seconds; 0 until known


class Link(Protocol):
    """The estimates for the link to a source; each value is 0 until it has been measured."""

    @property
    def round_trip(self) -> float:
        """Seconds from a request to the first byte, with nothing else in flight."""
        ...

    @property
    def rate(self) -> float:
        """Bytes per second, over all connections together."""
        ...

    @property
    def bandwidth_delay(self) -> int:
        """Bytes that must be in flight to use the whole link."""
        ...


class Trouble(NamedTuple):
    """The failure that keeps data from arriving. ``since``: trio time of the first in a row."""

    error: LazyfsError
    since: float


class Device(Protocol):
    """A readable image, or a view of one.

    Ranges are clamped to the image: ``cached``, ``zeros`` and ``ready`` refer to the part of a
    range inside it.
    """

    @property
    def identity(self) -> Identity: ...

    @property
    def link(self) -> Link: ...

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer than ``length`` only at the end of the image.

        Raises a LazyfsError.
        """
        ...

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """Hint that these bytes will be wanted. Returns at once and never fails."""
        ...

    def ready(self, offset: int, length: int) -> bool:
        """Whether a read of these bytes would return quickly and without waiting.

        A front end may then read inline, blocking all other readers only for that long.
        """
        ...

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Runs of these bytes, in order: their lengths, and whether they are held locally."""
        ...

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """Runs of these bytes, in order: their lengths, and whether they are known to be zeros.

        At least the first; nothing is fetched for it. Raises a LazyfsError.
        """
        ...

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        """Wait until every byte of the image, or of a range, is held locally and verified."""
        ...

    def statistics(self) -> Statistics: ...

    async def aclose(self) -> None: ...


Stream = AbstractAsyncContextManager[AsyncIterator[bytes | bytearray]]


class Slot(Protocol):
    """The right to have one request in flight to one host, until ``release``.

    It gives access to that host's streams, link and health.
    """

    @property
    def last(self) -> bool:
        """Whether no other slot of the host is free: another request would have to wait."""
        ...

    @property
    def link(self) -> Link:
        """The link to this slot's host."""
        ...

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        """Streams for several ranges (offset, length), requested together where that saves time.

        Each stream yields its bytes in order, in pieces of any length, as they arrive: exactly
        ``length`` bytes of this identity, or a SourceError; bytes yielded before the error are
        valid. Streams must be entered and left one after the other, in their order.
        """
        ...

    def failed(self, error: TransientError) -> None:
        """Note a request that failed and may succeed later: the host gets a back-off."""
        ...

    def succeeded(self) -> None:
        """Note that the host has sent requested data."""
        ...

    def release(self) -> None: ...


class Source(Protocol):
    """The origin of one image's bytes."""

    @property
    def identity(self) -> Identity:
        """The image's identity; known after ``open`` or ``expect``."""
        ...

    @property
    def opening(self) -> bytes:
        """The image's first bytes, as far as ``open`` has fetched them."""
        ...

    @property
    def link(self) -> Link:
        """The link that the next request would use."""
        ...

    @property
    def trouble(self) -> Trouble | None:
        """The failure that keeps the source from answering; None for none."""
        ...

    async def open(self) -> Identity:
        """Get the image's current identity, and pin that version. Raises a SourceError."""
        ...

    def expect(self, identity: Identity) -> None:
        """Assume this identity, known from an earlier run, since the image cannot be opened."""
        ...

    async def run(self) -> None:
        """Run the source's background work, until cancelled."""
        ...

    async def slot(self, priority: Priority) -> Slot:
        """Wait for a slot for one request at this priority."""
        ...

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """As ``Device.zeros``. Raises a SourceError."""
        ...

    async def rest(self) -> None:
        """Close idle connections: no request is expected for a while."""
        ...

    async def aclose(self) -> None:
        """Release the source's own resources. No request may be in flight."""
        ...

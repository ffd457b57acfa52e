"""The one verb set that every layer speaks, and the words it uses.

A Device has no cursor: each read names its offset, so any number of readers share one Device.
Prefetch is a hint sent down through ``ensure``; it is never a second way to read.
"""

from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol


class Priority(IntEnum):
    """How urgent a range is; a lower number goes first."""

    DEMAND = 0  # somebody waits for it
    READAHEAD = 1  # a reader is expected there soon
    PRELOAD = 2  # somebody said that it will be wanted
    FILL = 3  # nobody is expected there; it completes the image


@dataclass(frozen=True)
class Identity:
    """What pins one version of an image's content.

    ``size``: bytes. ``etag``: a strong entity tag, with its quotes, or None (RFC 9110 section
    8.8.3). ``last_modified``: the Last-Modified field as the server wrote it, or None.
    ``weak_etag``: of a weak entity tag what stands behind ``W/``, or None. That two are alike
    promises nothing about bytes (section 8.8.1), so it pins nothing; that they differ says enough.
    """

    size: int
    etag: str | None = None
    last_modified: str | None = None
    weak_etag: str | None = None

    @property
    def pinned(self) -> bool:
        """Whether a later answer can be told from another version of the image."""
        return self.etag is not None or self.last_modified is not None

    def matches(self, other: "Identity") -> bool:
        """Whether ``other``, seen later, is the same version as this one.

        The entity tag decides where this one has it. A server that gives a fresh file a weak tag
        and the same as a strong one a second later (Apache) is still recognised.
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
    """What a Device has done so far: counts; bytes unless another unit is named."""

    size: int = 0  # of the image
    cached: int = 0  # held locally
    wanted: int = 0  # asked for by readers
    hits: int = 0  # reads that were served from the cache at once
    misses: int = 0  # reads that had to wait
    fetched: int = 0  # sent by the source
    prefetched: int = 0  # of these, before anybody asked for them
    unused: int = 0  # of these, still not asked for by anybody
    requests: int = 0  # ranges asked of the source
    under_way: int = 0  # requests that have not ended yet
    failures: int = 0  # requests that did not end well
    damaged: int = 0  # cached blocks that failed their checksum and were dropped
    evicted: int = 0  # blocks that went to keep to the cache's limit
    rate: float = 0.0  # bytes a second that the link brings; 0 until known
    round_trip: float = 0.0  # seconds; 0 until known


class Link(Protocol):
    """What is known of the way to a source; each value is 0 until it has been measured."""

    @property
    def round_trip(self) -> float:
        """Seconds from asking to the first byte, when nothing else is under way."""
        ...

    @property
    def rate(self) -> float:
        """Bytes a second, over all connections together."""
        ...

    @property
    def bandwidth_delay(self) -> int:
        """Bytes that must be under way to use all of the link."""
        ...


class Device(Protocol):
    """A readable image, or a view of one."""

    @property
    def identity(self) -> Identity: ...

    @property
    def link(self) -> Link: ...

    async def read(self, offset: int, length: int) -> bytes:
        """The bytes at ``offset``; fewer than ``length`` only at the end of the image.

        Raises a LazyfsError when they cannot be had.
        """
        ...

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        """Hint that these bytes will be wanted. Returns at once and never fails."""
        ...

    def cached(self, offset: int, length: int) -> Iterator[tuple[int, bool]]:
        """Runs of these bytes, in order: their lengths, and whether they are held locally."""
        ...

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """Runs of these bytes, in order: their lengths, and whether they are known to be zeros.

        At least the first; nothing is fetched for it. Raises a LazyfsError.
        """
        ...

    async def wait_complete(self) -> None:
        """Wait until every byte is held locally and known to be right."""
        ...

    def statistics(self) -> Statistics: ...

    async def aclose(self) -> None: ...


class Lane(Protocol):
    """The right to have one request under way; given back by ``release``.

    ``last``: no other is left, so what is waiting would have to wait for one.
    """

    @property
    def last(self) -> bool: ...

    def release(self) -> None: ...


class Source(Protocol):
    """Where the bytes of one image come from."""

    @property
    def identity(self) -> Identity: ...

    @property
    def link(self) -> Link: ...

    def streams(
        self, ranges: Sequence[tuple[int, int]]
    ) -> Sequence[AbstractAsyncContextManager[AsyncIterator[bytes | bytearray]]]:
        """The bytes of several ranges (offset, length), asked for together where that saves time.

        Each stream brings its bytes in order, in pieces of any length, as they come in: exactly
        ``length`` bytes of this very identity, or a SourceError; what was handed out before the
        error is right. Streams are to be entered and left one after the other, in their order.
        """
        ...

    async def lane(self, priority: Priority) -> Lane:
        """Wait for the right to start one request at this priority."""
        ...

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """What ``Device.zeros`` says. Raises a SourceError."""
        ...

    async def rest(self) -> None:
        """Nothing more is expected: keep no connection open until it is asked again."""
        ...

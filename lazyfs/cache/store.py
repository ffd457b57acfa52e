"""The interface between the block cache and its storage, on disk or in memory."""

from collections.abc import Container, Iterator
from typing import Protocol

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

Pages = list[tuple[int, bytes]]  # of the bitmap: number and content


class Store(Protocol):
    """Storage for the bytes of blocks. The plan keeps track of which blocks are present."""

    block_size: int
    present: Bitmap  # the blocks found on opening; the plan owns it from then on

    def verify(self, blocks: Span) -> list[int]:
        """The damaged ones of these present blocks, which may not be served."""
        ...

    def read(self, span: Span) -> bytes:
        """Read a span (in bytes) whose blocks are present and verified."""
        ...

    def put(self, block: int, content: bytes | memoryview) -> None:
        """Store whole blocks from ``block`` on. Never fails."""
        ...

    def evict(self, held: Container[int]) -> list[int]:
        """Enforce the limit; returns the evicted blocks, none of them in ``held``."""
        ...

    @property
    def settled(self) -> bool:
        """Whether all stored blocks are in their final place, none temporarily in memory."""
        ...

    @property
    def prefetch_limit(self) -> int | None:
        """Bytes that may be kept ahead of readers; None for no limit."""
        ...

    def note(self, pages: Pages) -> bool:
        """Write these pages of the bitmap, so that they survive the end of this process.

        Returns whether there is something to sync now. Raises OSError.
        """
        ...

    def sync(self) -> None:
        """Sync all written data to disk. Runs in a thread. Raises OSError."""
        ...

    def close(self) -> None: ...


def cut(
    first: int, content: bytes | memoryview, block_size: int
) -> Iterator[tuple[int, bytes | memoryview]]:
    """The blocks in ``content``, which begins with block number ``first``."""
    for start in range(0, len(content), block_size):
        yield first + start // block_size, content[start : start + block_size]

"""What keeps the bytes of blocks: what the block cache asks of it, on disk and in memory alike."""

from collections.abc import Container, Iterator
from typing import Protocol

from lazyfs.cache.bitmap import Bitmap
from lazyfs.core.ranges import Span

Pages = list[tuple[int, bytes]]  # of the bitmap: number and content


class Store(Protocol):
    """Keeps the bytes of blocks. Which blocks are present is the plan's to know."""

    block_size: int
    present: Bitmap  # the blocks found at opening; the plan owns it from then on

    def verify(self, blocks: Span) -> list[int]:
        """Those of these present blocks that may not be served, because they are damaged."""
        ...

    def read(self, span: Span) -> bytes:
        """The bytes of a span (bytes) whose blocks are present and verified."""
        ...

    def put(self, block: int, content: bytes | memoryview) -> None:
        """Keep whole blocks from ``block`` on, somewhere: this does not fail."""
        ...

    def evict(self, held: Container[int]) -> list[int]:
        """Keep to the limit; returns the blocks that went for it, none of them in ``held``."""
        ...

    @property
    def settled(self) -> bool:
        """Whether all that was put is in its place, and not in a makeshift one."""
        ...

    @property
    def prefetch_limit(self) -> int | None:
        """Bytes that may be kept for readers who have not come yet; None for any number."""
        ...

    def note(self, pages: Pages) -> bool:
        """Write these pages of the bitmap; from then on they survive the end of this process.

        Returns whether there is something to sync now. Raises OSError.
        """
        ...

    def sync(self) -> None:
        """Make all that was written survive a power cut. Runs in a thread. Raises OSError."""
        ...

    def close(self) -> None: ...


def cut(
    first: int, content: bytes | memoryview, block_size: int
) -> Iterator[tuple[int, bytes | memoryview]]:
    """The blocks in ``content``, which begins with block number ``first``."""
    for start in range(0, len(content), block_size):
        yield first + start // block_size, content[start : start + block_size]

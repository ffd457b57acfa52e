"""Blocks kept in memory."""

import itertools
from collections import OrderedDict
from collections.abc import Container, Iterator

from lazyfs.cache.bitmap import Bitmap
from lazyfs.cache.store import Pages, cut
from lazyfs.core.ranges import Span


class MemoryStore:
    """A Store in memory that evicts the least recently used blocks first.

    Keeps at most ``limit`` bytes, plus the blocks that readers wait for: otherwise a read that
    needs more than the limit would never end.
    """

    settled = True

    def __init__(self, size: int, block_size: int, limit: int) -> None:
        self.block_size = block_size
        self.present = Bitmap(-(-size // block_size))
        self._most = max(1, limit // block_size)
        self.prefetch_limit = limit // 2  # the rest is for blocks in use
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def __contains__(self, block: int) -> bool:
        return block in self._blocks

    def __iter__(self) -> Iterator[int]:
        """The stored blocks, least recently used first."""
        return iter(self._blocks)

    @property
    def empty(self) -> bool:
        return not self._blocks

    def peek(self, block: int) -> bytes:
        """A block's bytes; does not count as a use."""
        return self._blocks[block]

    def drop(self, block: int) -> None:
        del self._blocks[block]

    def verify(self, blocks: Span) -> list[int]:  # noqa: ARG002
        return []

    def read(self, span: Span) -> bytes:
        pieces = []
        position = span.start
        while position < span.stop:
            block, skip = divmod(position, self.block_size)
            self._blocks.move_to_end(block)
            piece = self._blocks[block][skip : skip + span.stop - position]
            pieces.append(piece)
            position += len(piece)
        return b"".join(pieces)

    def put(self, block: int, content: bytes | memoryview) -> None:
        for number, piece in cut(block, content, self.block_size):
            self._blocks[number] = bytes(piece)

    def evict(self, held: Container[int]) -> list[int]:
        excess = len(self._blocks) - self._most
        if excess <= 0:
            return []
        gone = list(itertools.islice((b for b in self._blocks if b not in held), excess))
        for block in gone:
            del self._blocks[block]
        return gone

    def note(self, pages: Pages) -> bool:  # noqa: ARG002
        return False  # memory ends with the process

    def sync(self) -> None:
        """Nothing to sync: memory does not survive a power cut."""

    def close(self) -> None:
        self._blocks.clear()

"""Reading a mounted image past the page cache: each read is one request to the daemon."""

import contextlib
import mmap
import os
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from .figures import Figures

LONGEST = 128 << 10  # bytes that the kernel reads in one request on any mount


class Original:
    """The original image. Thread-safe."""

    def __init__(self, path: Path) -> None:
        self.size = path.stat().st_size
        with path.open("rb") as file:
            self._content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def part(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]


class DirectReader:
    """One reader of a mounted image, with comparison and counts; ``with`` opens and closes it."""

    def __init__(self, mounted: Path, original: Original, figures: Figures) -> None:
        self._mounted = mounted
        self._original = original
        self._figures = figures
        self._buffer = mmap.mmap(-1, LONGEST)
        self.longest = 0.0  # seconds that a read took, successful or not

    def __enter__(self) -> Self:
        self._fd = os.open(self._mounted, os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with contextlib.suppress(OSError):  # close(2) fails if the daemon is dead
            os.close(self._fd)

    def read(self, offset: int, length: int) -> bool:
        """Read; returns whether the data was right. Raises OSError."""
        assert length <= LONGEST
        began = time.monotonic()
        try:
            got = os.preadv(self._fd, [memoryview(self._buffer)[:length]], offset)
        finally:
            self.longest = max(self.longest, time.monotonic() - began)
        right = self._buffer[:got] == self._original.part(offset, length)
        self._figures.add(reads=1, wrong_reads=not right)
        return right

"""A Device as a file object, for blocking code in a thread."""

import io
import os

import trio

from lazyfs.core.device import Device


class DeviceFile(io.RawIOBase):
    """A Device with a file position. For use by one thread other than the event loop's."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        bases = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size}
        self._position = max(0, bases[whence] + offset)
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        left = max(0, self._size - self._position)
        length = left if size is None or size < 0 else min(size, left)
        content: bytes = trio.from_thread.run(self._device.read, self._position, length)
        self._position += len(content)
        return content

    @property
    def _size(self) -> int:
        return self._device.identity.size

"""Running sans-I/O readers: generators that request ranges of bytes, served from a Device."""

from collections.abc import Generator
from typing import TypeVar

from lazyfs.core.device import Device

T = TypeVar("T")


async def run(reader: Generator[tuple[int, int], bytes, T], device: Device) -> T:
    """Run a reader to its end; returns its result.

    A reader yields the offset and length that it needs, and is sent those bytes; fewer only at the
    end of the image. Raises the exceptions of the reader and the Device.
    """
    try:
        wanted = next(reader)
        while True:
            wanted = reader.send(await device.read(*wanted))
    except StopIteration as end:
        result: T = end.value
        return result

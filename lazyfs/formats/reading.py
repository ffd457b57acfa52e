"""Driving a sans-IO reader: a generator asks for ranges of bytes, and a Device has them."""

from collections.abc import Generator
from typing import TypeVar

from lazyfs.core.device import Device

T = TypeVar("T")


async def run(reader: Generator[tuple[int, int], bytes, T], device: Device) -> T:
    """Run a reader to its end, and return its result.

    A reader yields the offset and the length of what it needs, and is sent those bytes; fewer only
    at the end of the image. Raises what the reader or the Device raises.
    """
    try:
        wanted = next(reader)
        while True:
            wanted = reader.send(await device.read(*wanted))
    except StopIteration as end:
        result: T = end.value
        return result

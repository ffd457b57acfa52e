"""Read-ahead in front of a Device: hints go down before the read, and never instead of it."""

from fakes import RecordingDevice, noise

from lazyfs.core.device import Priority, Statistics
from lazyfs.core.options import ReadAheadLimit
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.readahead import FIRST_WINDOW

KIB = 1 << 10


async def test_a_sequential_reader_sends_hints_down() -> None:
    below = RecordingDevice(noise(1000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit())
    first = await prefetcher.read(0, 64 * KIB)
    second = await prefetcher.read(64 * KIB, 64 * KIB)
    assert first + second == below.content[: 128 * KIB]
    assert below.calls == [
        ("read", 0, 64 * KIB),
        ("ensure", 128 * KIB, FIRST_WINDOW, Priority.READAHEAD),
        ("read", 64 * KIB, 64 * KIB),
    ]


async def test_who_reads_what_was_told_beforehand_is_not_read_ahead_of() -> None:
    below = RecordingDevice(noise(1000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit())
    await prefetcher.ensure(0, 192 * KIB, Priority.PRELOAD)
    for offset in range(0, 192 * KIB, 64 * KIB):
        await prefetcher.read(offset, 64 * KIB)
    hints = [call for call in below.calls if call[0] == "ensure"]
    assert hints == [("ensure", 0, 192 * KIB, Priority.PRELOAD)]
    await prefetcher.read(192 * KIB, 64 * KIB)
    assert below.calls[-2][0] == "ensure"


async def test_single_reads_send_no_hints() -> None:
    below = RecordingDevice(noise(8000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit())
    for offset in (7000 * KIB, 100 * KIB, 3500 * KIB):
        assert await prefetcher.read(offset, 10) == below.content[offset : offset + 10]
    assert {call[0] for call in below.calls} == {"read"}


async def test_hints_end_with_the_image() -> None:
    below = RecordingDevice(noise(150 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit())
    for offset in range(0, 192 * KIB, 64 * KIB):
        await prefetcher.read(offset, 64 * KIB)
    hints = [call for call in below.calls if call[0] == "ensure"]
    assert hints == [("ensure", 128 * KIB, 22 * KIB, Priority.READAHEAD)]


async def test_the_rest_of_a_device_is_passed_through() -> None:
    below = RecordingDevice(b"abc")
    prefetcher = Prefetcher(below, ReadAheadLimit())
    assert prefetcher.identity is below.identity
    assert prefetcher.statistics() == Statistics(size=3, cached=7)
    await prefetcher.ensure(1, 2, Priority.DEMAND)
    await prefetcher.aclose()
    assert below.calls == [("ensure", 1, 2, Priority.DEMAND), ("aclose",)]

"""Read-ahead in front of a Device: hints go down before the read, and never instead of it."""

import pytest
from fakes import RecordingDevice, noise

from lazyfs.core.device import Priority, Statistics
from lazyfs.core.options import Prefetch, ReadAheadLimit
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.readahead import FIRST_WINDOW
from lazyfs.testing.memory import KnownLink

KIB = 1 << 10


async def test_a_sequential_reader_sends_hints_down() -> None:
    below = RecordingDevice(noise(1000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 4096)
    first = await prefetcher.read(0, 64 * KIB)
    second = await prefetcher.read(64 * KIB, 64 * KIB)
    assert first + second == below.content[: 128 * KIB]
    assert [call for call in below.calls if call[0] != "cached"] == [
        ("read", 0, 64 * KIB),
        ("ensure", 128 * KIB, FIRST_WINDOW, Priority.READAHEAD),
        ("read", 64 * KIB, 64 * KIB),
    ]


async def test_who_reads_what_was_told_beforehand_is_not_read_ahead_of() -> None:
    below = RecordingDevice(noise(1000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 4096)
    await prefetcher.ensure(0, 192 * KIB, Priority.PRELOAD)
    for offset in range(0, 192 * KIB, 64 * KIB):
        await prefetcher.read(offset, 64 * KIB)
    hints = [call for call in below.calls if call[0] == "ensure"]
    assert hints == [("ensure", 0, 192 * KIB, Priority.PRELOAD)]
    await prefetcher.read(192 * KIB, 64 * KIB)
    assert below.calls[-2][0] == "ensure"


class Missing(RecordingDevice):
    """Nothing of it is here: each read has to wait."""

    def __init__(self, content: bytes, bandwidth_delay: int) -> None:
        super().__init__(content)
        self.link = KnownLink(0.02, 25e6, bandwidth_delay)

    def ready(self, offset: int, length: int) -> bool:
        return False

    @property
    def hints(self) -> list[tuple[object, ...]]:
        return [call[1:3] for call in self.calls if call[0] == "ensure"]


async def test_neighbourhood_of_a_miss_is_hinted_in_whole_blocks_without_the_missed_ones() -> None:
    below = Missing(noise(2000 * KIB), 400 * KIB)
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 32 * KIB)
    await prefetcher.read(1000 * KIB, 10)
    assert below.hints == [(1024 * KIB, 448 * KIB), (864 * KIB, 128 * KIB)]


@pytest.mark.parametrize(
    ("prefetch", "hinted"),
    [
        (Prefetch.NONE, 0),
        (Prefetch.METADATA, 0),
        (Prefetch.AUTO, 600 * KIB),
        (Prefetch.EAGER, 1600 * KIB),
    ],
)
async def test_neighbourhood_is_as_wide_as_the_user_wants(prefetch: Prefetch, hinted: int) -> None:
    below = Missing(noise(8000 * KIB), 400 * KIB)
    prefetcher = Prefetcher(below, ReadAheadLimit(), prefetch, 4096)
    await prefetcher.read(4000 * KIB, 4096)
    assert sum(int(str(length)) for _, length in below.hints) == hinted


async def test_neighbourhood_of_nothing_is_hinted_where_nothing_is_to_be_prefetched() -> None:
    below = Missing(noise(8000 * KIB), 400 * KIB)
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.NONE, 4096)
    for offset in range(0, 1000 * KIB, 64 * KIB):
        await prefetcher.read(offset, 64 * KIB)
    assert below.hints == []


async def test_single_reads_of_what_is_here_send_no_hints() -> None:
    below = RecordingDevice(noise(8000 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 4096)
    for offset in (7000 * KIB, 100 * KIB, 3500 * KIB):
        assert await prefetcher.read(offset, 10) == below.content[offset : offset + 10]
    assert {call[0] for call in below.calls} == {"read", "cached"}


async def test_hints_end_with_the_image() -> None:
    below = RecordingDevice(noise(150 * KIB))
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 4096)
    for offset in range(0, 192 * KIB, 64 * KIB):
        await prefetcher.read(offset, 64 * KIB)
    hints = [call for call in below.calls if call[0] == "ensure"]
    assert hints == [("ensure", 128 * KIB, 22 * KIB, Priority.READAHEAD)]


async def test_the_rest_of_a_device_is_passed_through() -> None:
    below = RecordingDevice(b"abc")
    prefetcher = Prefetcher(below, ReadAheadLimit(), Prefetch.AUTO, 4096)
    assert prefetcher.identity is below.identity
    assert prefetcher.statistics() == Statistics(size=3, cached=7)
    await prefetcher.ensure(1, 2, Priority.DEMAND)
    await prefetcher.aclose()
    assert below.calls == [("ensure", 1, 2, Priority.DEMAND), ("aclose",)]

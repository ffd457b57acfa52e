"""A bad medium: its faults are where they are each time, as many as were asked for, and no more."""

import math

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock

from lazyfs.core.device import Device, Priority
from lazyfs.core.errors import SourceError, Unreachable
from lazyfs.core.ranges import Span
from lazyfs.testing.damage import CELL, Faults, hits
from lazyfs.testing.evil import EvilDevice
from lazyfs.testing.memory import MemoryDevice

SEEDS = st.integers(0, (1 << 64) - 1)
DENSITIES = st.sampled_from((1e-6, 1e-3, 0.05, 0.5, 1.0))
OFFSETS = st.integers(0, 3 * CELL)
CONTENTS = st.binary(max_size=300)


def differences(one: bytes, other: bytes) -> int:
    """Bits in which two contents of one length differ."""
    assert len(one) == len(other)
    both = int.from_bytes(one, "little") ^ int.from_bytes(other, "little")
    return both.bit_count()


# Hits


@settings(deadline=None)
@given(seed=SEEDS, density=DENSITIES, edges=st.lists(OFFSETS, min_size=3, max_size=3))
def test_a_range_has_the_hits_of_its_parts(seed: int, density: float, edges: list[int]) -> None:
    start, middle, stop = sorted(edges)
    parts = [*hits(seed, density, Span(start, middle)), *hits(seed, density, Span(middle, stop))]
    assert list(hits(seed, density, Span(start, stop))) == parts
    assert parts == sorted(set(parts))
    assert all(8 * start <= bit < 8 * stop for bit in parts)


@settings(deadline=None)
@given(seed=SEEDS, density=st.sampled_from((0.001, 0.01, 0.1, 0.9)))
def test_as_many_bits_are_hit_as_the_density_says(seed: int, density: float) -> None:
    bits = 8 * CELL * 8
    found = sum(1 for _ in hits(seed, density, Span(0, 8 * CELL)))
    deviation = math.sqrt(bits * density * (1 - density))
    assert abs(found - bits * density) < 7 * deviation


@given(seed=SEEDS)
def test_the_limits_of_density(seed: int) -> None:
    assert list(hits(seed, 0.0, Span(0, CELL))) == []
    assert list(hits(seed, 1.0, Span(5, 9))) == list(range(40, 72))


def test_hits_are_spread_over_a_medium_of_any_size() -> None:
    far = 1 << 60
    near_hits = set(hits(1, 0.01, Span(0, CELL)))
    far_hits = {bit - 8 * far for bit in hits(1, 0.01, Span(far, far + CELL))}
    assert near_hits
    assert far_hits
    assert near_hits != far_hits


# What becomes of content


@given(offset=OFFSETS, content=CONTENTS, read=st.integers(0, 9), seed=SEEDS)
def test_a_medium_without_faults_changes_nothing(
    offset: int, content: bytes, read: int, seed: int
) -> None:
    faults = Faults(seed)
    assert faults.spoil(offset, content, read) == content
    assert not faults.fails(read)
    assert not faults.unreadable_in(Span(offset, offset + 1))
    assert faults.wait(read) == 0


@given(offset=OFFSETS, content=CONTENTS, cut=st.integers(0, 300), seed=SEEDS, density=DENSITIES)
def test_stuck_bits_are_the_same_in_every_read_of_any_shape(
    offset: int, content: bytes, cut: int, seed: int, density: float
) -> None:
    faults = Faults(seed, stuck=density)
    whole = faults.spoil(offset, content, read=0)
    assert faults.spoil(offset, content, read=1) == whole
    parts = faults.spoil(offset, content[:cut], 2) + faults.spoil(offset + cut, content[cut:], 3)
    assert parts == whole
    assert faults.spoil(offset, whole, read=4) == whole


@given(seed=SEEDS, offset=OFFSETS)
def test_a_stuck_bit_hides_what_was_written(seed: int, offset: int) -> None:
    faults = Faults(seed, stuck=0.1)
    zeros, ones = bytes(1000), b"\xff" * 1000
    read_zeros, read_ones = (faults.spoil(offset, c, 0) for c in (zeros, ones))
    stuck = 8000 - differences(read_zeros, read_ones)
    assert 500 < stuck < 1100
    at_one, at_zero = differences(zeros, read_zeros), differences(ones, read_ones)
    assert at_one + at_zero == stuck
    assert min(at_one, at_zero) > 0


@given(seed=SEEDS, offset=OFFSETS)
def test_rays_strike_elsewhere_in_each_read(seed: int, offset: int) -> None:
    faults = Faults(seed, rays=0.1)
    reads = [faults.spoil(offset, bytes(1000), read) for read in range(3)]
    assert len(set(reads)) == 3
    assert all(0 < differences(bytes(1000), read) < 2000 for read in reads)
    assert faults.spoil(offset, bytes(1000), 1) == reads[1]


@given(seed=SEEDS)
def test_reads_fail_and_wait_as_often_as_told(seed: int) -> None:
    faults = Faults(seed, failing=0.25, delay=2.0)
    assert 150 < sum(faults.fails(read) for read in range(1000)) < 350
    waits = [faults.wait(read) for read in range(1000)]
    assert all(0 <= wait <= 2 for wait in waits)
    assert 0.8 < sum(waits) / 1000 < 1.2
    assert all(Faults(seed, failing=1.0).fails(read) for read in range(100))


@given(
    bad=st.tuples(st.integers(0, 50), st.integers(1, 20)),
    wanted=st.tuples(st.integers(0, 80), st.integers(0, 20)),
)
def test_what_cannot_be_read_is_what_was_named(
    bad: tuple[int, int], wanted: tuple[int, int]
) -> None:
    unreadable = Span(bad[0], bad[0] + bad[1])
    span = Span(wanted[0], wanted[0] + wanted[1])
    common = set(range(*unreadable)) & set(range(*span))
    assert Faults(unreadable=(unreadable,)).unreadable_in(span) == bool(common)


# The Device


class Still(MemoryDevice):
    """A Device that has its content in memory, and writes down what it is asked."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.asked: list[str] = []

    async def ensure(self, offset: int, length: int, priority: Priority) -> None:
        self.asked.append("ensure")

    async def wait_complete(self, offset: int = 0, length: int | None = None) -> None:
        self.asked.append("wait_complete")

    async def aclose(self) -> None:
        self.asked.append("aclose")


CONTENT = bytes(range(256)) * 40


def evil(faults: Faults) -> Device:
    return EvilDevice(Still(CONTENT), faults)


async def test_a_device_without_faults_reads_and_is_what_lies_below() -> None:
    still = Still(CONTENT)
    device: Device = EvilDevice(still, Faults())
    assert await device.read(100, 5000) == CONTENT[100:5100]
    assert await device.read(len(CONTENT) - 3, 10) == CONTENT[-3:]
    assert (device.identity, device.link) == (still.identity, still.link)
    assert device.statistics() == still.statistics()
    await device.ensure(0, 1, Priority.FILL)
    await device.wait_complete()
    await device.aclose()
    assert still.asked == ["ensure", "wait_complete", "aclose"]


async def test_stuck_bits_of_a_device_do_not_depend_on_how_it_is_read() -> None:
    device = evil(Faults(7, stuck=0.01))
    whole = await device.read(0, len(CONTENT))
    assert whole != CONTENT
    assert b"".join([await device.read(at, 1000) for at in range(0, len(CONTENT), 1000)]) == whole


async def test_rays_of_a_device_differ_from_read_to_read() -> None:
    device = evil(Faults(7, rays=0.01))
    assert await device.read(0, 4096) != await device.read(0, 4096)


async def test_a_bad_place_fails_always_and_its_neighbours_never() -> None:
    device = evil(Faults(unreadable=(Span(1000, 1010),)))
    for _ in range(3):
        with pytest.raises(SourceError, match="cannot be read"):
            await device.read(990, 11)
        assert await device.read(990, 10) == CONTENT[990:1000]
        assert await device.read(1010, 10) == CONTENT[1010:1020]


async def test_some_reads_fail_by_chance_and_others_do_not() -> None:
    device = evil(Faults(3, failing=0.5))
    failed = 0
    for _ in range(40):
        try:
            assert await device.read(0, 10) == CONTENT[:10]
        except Unreachable:
            failed += 1
    assert 8 < failed < 32


async def test_reads_are_delayed_by_no_more_than_was_said(autojump_clock: MockClock) -> None:
    device = evil(Faults(3, delay=5.0))
    began = trio.current_time()
    for _ in range(10):
        await device.read(0, 10)
    assert 5 < trio.current_time() - began < 45

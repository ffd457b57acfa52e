"""Damage of a cache's files between two mounts: it costs fetches or a clear error, never bytes."""

import contextlib
import itertools
import os
import random
import shutil
import signal
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from lazyfs.core.errors import CacheError, LazyfsError
from lazyfs.core.options import CacheOptions, MountOptions
from lazyfs.testing.damage import Faults
from lazyfs.testing.evil import EvilDevice

from .figures import Figures
from .model import NAME, Announce, LocalFile, Reader, running_stack, stack_options
from .server import CloseBeforeAnswer, FaultServer

BLOCK = 4096
CONTENT = random.Random(5).randbytes(70 * BLOCK + 99)
FILES = ("data", "bitmap", "sums", "meta.json")
PATIENCE = 0.3  # seconds that a read waits for a server that is gone
MARGIN = 2.0  # seconds by which a busy machine may be late

# What may be said of damage, and of a server that is gone.
SAYINGS = (
    "cached blocks .* were damaged; fetching them again",
    "starting afresh|started afresh",
    "serving what is cached",
    "; retrying",
    "no data within",
)


class Site:
    """A server, and a cache with all of its image in it."""

    def __init__(self, server: FaultServer, full: Path, figures: Figures) -> None:
        self._server = server
        self._full = full
        self._figures = figures

    @contextlib.contextmanager
    def cache(self) -> Iterator[Path]:
        """A copy of the full cache: where its files are."""
        with tempfile.TemporaryDirectory() as directory:
            shutil.copytree(self._full, directory, dirs_exist_ok=True)
            (place,) = Path(directory).glob(f"{NAME}-*")
            yield place

    def fill(self) -> None:
        self._mount_and_read(self._full, 30.0)

    def read_everything(self, place: Path) -> None:
        """Mount and read: not a byte may be wrong, or missing."""
        assert self._mount_and_read(place.parent, 30.0) == 0

    def read_offline(self, place: Path) -> None:
        """The same while the server is out of reach: what is missing is an error."""
        self._server.script = lambda _: CloseBeforeAnswer()
        try:
            failed = self._mount_and_read(place.parent, PATIENCE)
        finally:
            self._server.script = lambda _: None
        self._figures.add(failed_reads_offline=failed)

    def _mount_and_read(self, cache: Path, timeout: float) -> int:
        """Returns how many reads failed."""
        options = CacheOptions(cache, block_size=BLOCK)
        with time_limit(15):
            return trio.run(self._read, stack_options(self._server.url(NAME), options, timeout))

    async def _read(self, options: MountOptions) -> int:
        async with running_stack(options) as device:
            reader = Reader(device, CONTENT, self._figures, limit=options.timeout + MARGIN)
            ranges = [(start, 5 * BLOCK) for start in range(0, len(CONTENT), 5 * BLOCK)]
            good = await reader.read_together(ranges)
            self._figures.add(mounts=1, damaged_blocks=device.statistics().damaged)
            return len(ranges) - len(good)


class Blocked(Exception):
    """A call did not return. No OSError, which might be taken for one of the call's own."""


@contextlib.contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Raise Blocked in what holds the whole thread, where trio's limits do not reach."""

    def ring(number: int, frame: object) -> None:
        raise Blocked(f"it blocked for {seconds:g} seconds")

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, figures: Figures) -> Iterator[Site]:
    with FaultServer(**{NAME: CONTENT}) as server:
        site = Site(server, tmp_path_factory.mktemp("full"), figures)
        site.fill()
        yield site


@pytest.fixture(autouse=True)
def _sayings(expected_log: Announce) -> None:
    for pattern in SAYINGS:
        expected_log(pattern, required=False)


# Bits

DENSITIES = {
    "data": st.sampled_from((0.0, 1e-7, 1e-6, 1e-5, 1e-3)),
    "bitmap": st.sampled_from((0.0, 1e-4, 1e-2, 0.5)),
    "sums": st.sampled_from((0.0, 1e-3, 1e-2, 0.5)),
    "meta.json": st.sampled_from((0.0, 0.0, 1e-3, 1e-2)),
}


def test_bits_of_the_files_that_flip_or_stick(site: Site, figures: Figures, long: bool) -> None:
    @settings(max_examples=400 if long else 60, deadline=None)
    @given(
        seed=st.integers(0, 1 << 32),
        stuck=st.fixed_dictionaries(DENSITIES),
        rays=st.fixed_dictionaries(DENSITIES),
        offline=st.booleans(),
    )
    def check(seed: int, stuck: dict[str, float], rays: dict[str, float], *, offline: bool) -> None:
        with site.cache() as place:
            for number, name in enumerate(FILES):
                faults = Faults(seed + number, stuck=stuck[name], rays=rays[name])
                figures.add(damaged_files=spoil(place / name, faults))
            if offline:
                with contextlib.suppress(LazyfsError):
                    site.read_offline(place)
            site.read_everything(place)

    check()


def spoil(path: Path, faults: Faults) -> bool:
    """Have the file hold what a bad disk makes of it; returns whether that is another content."""
    device = EvilDevice(LocalFile(path), faults)
    before = path.read_bytes()
    path.write_bytes(trio.run(device.read, 0, len(before)))
    return path.read_bytes() != before


# Whole files

Damage = Callable[[Path], None]


def truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 3)


def extended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more" * 5000)


def emptied(path: Path) -> None:
    os.truncate(path, 0)


def removed(path: Path) -> None:
    path.unlink()


def zeroed(path: Path) -> None:
    path.write_bytes(bytes(path.stat().st_size))


def all_ones(path: Path) -> None:
    path.write_bytes(b"\xff" * path.stat().st_size)


def moved_by_a_block(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[BLOCK:] + content[:BLOCK])


def moved_by_a_sum(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[8:] + content[:8])


def a_dangling_link(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_full_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/full")


def a_link_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


MENDED = (
    truncated,
    extended,
    emptied,
    removed,
    zeroed,
    all_ones,
    moved_by_a_block,
    moved_by_a_sum,
)
REFUSED = (a_directory, a_pipe, a_full_device, a_link_to_itself, a_dangling_link)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", MENDED)
def test_a_file_that_is_not_what_it_was_costs_fetches(
    site: Site, figures: Figures, damage: Damage, name: str
) -> None:
    with site.cache() as place:
        damage(place / name)
        figures.add(damaged_files=1)
        with contextlib.suppress(LazyfsError):
            site.read_offline(place)
        site.read_everything(place)


@pytest.mark.parametrize(("damage", "name"), [*itertools.product(REFUSED, FILES)])
def test_what_cannot_be_a_file_of_a_cache_is_refused_by_its_name(
    site: Site, figures: Figures, damage: Damage, name: str
) -> None:
    with site.cache() as place:
        damage(place / name)
        figures.add(damaged_files=1)
        with pytest.raises(CacheError) as caught:
            site.read_everything(place)
        assert str(place) in caught.value.message
        assert caught.value.cure
        shutil.rmtree(place)  # what the cure says: that place is free again
        site.read_everything(place)


@pytest.mark.parametrize("pair", [*itertools.combinations(FILES, 2)], ids=" and ".join)
def test_files_that_took_the_place_of_each_other(
    site: Site, figures: Figures, pair: tuple[str, str]
) -> None:
    with site.cache() as place:
        one, other = (place / name for name in pair)
        one_content, other_content = one.read_bytes(), other.read_bytes()
        one.write_bytes(other_content)
        other.write_bytes(one_content)
        figures.add(damaged_files=2)
        site.read_everything(place)


@pytest.mark.parametrize("content", [b"", bytes(5)], ids=repr)
def test_a_lock_file_as_power_cuts_leave_it_is_taken(site: Site, content: bytes) -> None:
    with site.cache() as place:
        (place / "lock").write_bytes(content)
        site.read_everything(place)


def test_a_bitmap_of_all_ones_is_believed_in_nothing(site: Site, figures: Figures) -> None:
    """Neither where there are holes, nor where there is rot."""
    with site.cache() as place:
        all_ones(place / "bitmap")
        zeroed(place / "data")
        emptied(place / "sums")
        site.read_everything(place)

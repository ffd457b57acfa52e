"""kill -9 at any moment: what a daemon had noted in its cache is served by the next one.

Each round loads a mount with readers and a fill, kills its daemon, and mounts again without the
server: every block that the bitmap names must be there, and right.
"""

import random
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from real.images import MIB, Images
from real.mounts import Lab, Mounted
from real.servers import Nginx
from real.test_fill import statistics

from lazyfs.core.ranges import Span

from .direct import LONGEST, DirectReader, Original
from .figures import Figures

BLOCK = 32 << 10
READERS = 3
CONNECTIONS = 4
RATE = 3 * MIB  # bytes a second and connection: a kill meets requests that are under way
UNDER_WAY = 2 * CONNECTIONS * MIB  # bytes that requests have brought, and not noted yet
LIFE = 0.5  # seconds from the mount to the kill, at most
OPTIONS = ("--timeout", "10", "--connections", str(CONNECTIONS), "--block-size", "32K")


@pytest.fixture
def server(images: Images) -> Iterator[Nginx]:
    server = Nginx(images.root)
    server.rate = RATE
    with server:
        yield server


def test_kills_under_load(
    lab: Lab, images: Images, server: Nginx, figures: Figures, long: bool
) -> None:
    path = images.random()
    rounds = Rounds(lab, server.url(path.name), Original(path), figures)
    for seed in range(200 if long else 25):
        before = rounds.kill_under_load(random.Random(seed))
        server.stop()
        rounds.check_offline(before)
        server.start()
    rounds.check_online()


def test_kills_while_blocks_make_room_for_others(
    lab: Lab, images: Images, server: Nginx, figures: Figures, long: bool
) -> None:
    """A bit may outlive its block then; that is no reason for a wrong byte."""
    path = images.random()
    rounds = Rounds(lab, server.url(path.name), Original(path), figures, "--cache-size", "16M")
    for seed in range(10 if long else 3):
        rounds.kill_under_load(random.Random(seed), life=3.0)
        rounds.check_online()


class Rounds:
    """A cache that lives from kill to kill."""

    def __init__(
        self, lab: Lab, url: str, original: Original, figures: Figures, *options: str
    ) -> None:
        self._lab = lab
        self._words = [*OPTIONS, *options, url]
        self._original = original
        self._figures = figures
        self._at = lab.mountpoint()

    def kill_under_load(self, chance: random.Random, life: float = LIFE) -> int:
        """Returns how many bytes were cached just before."""
        if len(self._noted()) * BLOCK > self._original.size // 2:
            shutil.rmtree(self._lab.cache)  # so that there is something to fetch
        more = ("--fill",) if chance.random() < 0.5 else ()
        with (
            self._lab.mounted(*more, *self._words, at=self._at, troubled=True) as mounted,
            ThreadPoolExecutor(READERS) as pool,
        ):
            readers = [
                pool.submit(self._load, mounted.image, chance.random()) for _ in range(READERS)
            ]
            time.sleep(chance.random() * life)  # any moment will do
            cached = mounted.cached()
            mounted.signal(signal.SIGKILL)
            mounted.wait_until_ended()
            assert all(reader.result(30) for reader in readers), "wrong bytes under load"
        self._figures.add(kills=1)
        return cached

    def check_offline(self, cached_before: int) -> None:
        """Without the server, all that the bitmap names is served."""
        blocks = self._noted()
        assert cached_before - len(blocks) * BLOCK <= UNDER_WAY, "more was lost than was under way"
        with self._lab.mounted(*self._words, at=self._at, troubled=True) as mounted:
            lost = self._read(mounted, blocks)
            self._figures.add(blocks_compared=len(blocks), bytes_lost=lost)
            assert lost == 0
            assert [line for line in mounted.complaints() if "damaged" in line] == []

    def check_online(self) -> None:
        """With the server, all is served: what the bitmap names, and what it does not."""
        chance = random.Random(1)
        blocks = self._noted()
        with (
            self._lab.mounted(*self._words, troubled=True) as mounted,
            DirectReader(mounted.image, self._original, self._figures) as reader,
        ):
            assert self._read(mounted, blocks) == 0
            self._figures.add(bits_without_a_block=statistics(mounted)["damaged"])
            for _ in range(50):
                assert reader.read(*self._somewhere(chance))

    def _load(self, image: Path, seed: float) -> bool:
        """Read until the daemon is gone; returns whether all was right."""
        chance = random.Random(seed)
        with DirectReader(image, self._original, self._figures) as reader:
            try:
                while reader.read(*self._somewhere(chance)):
                    pass
            except OSError:
                return True
        return False

    def _somewhere(self, chance: random.Random) -> tuple[int, int]:
        length = chance.choice((4096, BLOCK, LONGEST))
        return chance.randrange(self._original.size // 4096) * 4096, length

    def _noted(self) -> list[int]:
        """The blocks that the bitmap names, if there is one yet."""
        content = b"".join(file.read_bytes() for file in self._lab.cache.glob("*/bitmap"))
        bits = int.from_bytes(content, "little")
        return [n for n in range(bits.bit_length()) if bits >> n & 1]

    def _read(self, mounted: Mounted, blocks: list[int]) -> int:
        """Read and compare these blocks; returns how many bytes could not be had."""
        lost = 0
        with DirectReader(mounted.image, self._original, self._figures) as reader:
            for run in runs(blocks, LONGEST // BLOCK):
                try:
                    assert reader.read(run.start * BLOCK, run.length * BLOCK), f"{run} is wrong"
                except OSError:
                    lost += run.length * BLOCK
        return lost


def runs(blocks: list[int], longest: int) -> Iterator[Span]:
    """Neighbours joined, in order, at most so many together."""
    run = Span(0, 0)
    for block in blocks:
        if block == run.stop and run.length < longest:
            run = Span(run.start, block + 1)
        else:
            if run.length:
                yield run
            run = Span(block, block + 1)
    if run.length:
        yield run

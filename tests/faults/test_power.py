"""Power cuts: what a disk makes of writes that nobody synced costs fetches, never right bytes.

The disk below the store is simulated: a write that was not synced may have reached it or not, each
sector for itself, in any order; the length of a new file may be lost; a sync may fail and forget
what it should have written, as Linux does. What was stored before a sync that succeeded is there
afterwards.
"""

import contextlib
import itertools
import random
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from lazyfs.cache.disk import DiskStore, open_disk_store
from lazyfs.cache.files import File, Opener
from lazyfs.cache.layout import CacheLock, Layout
from lazyfs.core.device import Identity
from lazyfs.core.ranges import Span, bytes_of

from .figures import Figures

BLOCK = 4096
COUNT = 150  # blocks: their checksums fill more than two sectors
SECTOR = 512  # bytes that a disk writes whole or not at all
CONTENT = random.Random(11).randbytes((COUNT - 1) * BLOCK + 1234)
IDENTITY = Identity(len(CONTENT), '"v1"')
URL = "http://host/image.raw"


class PowerCut(Exception):
    """Raised out of a call that never came to its end."""


class Inode:
    """One file: what is on the disk, and what the kernel has of it in memory."""

    def __init__(self, content: bytes) -> None:
        self.disk = bytearray(content)
        self.memory = bytearray(content)
        self.unsynced: dict[int, list[bytes]] = {}  # by sector: every version since the last sync
        self.length_on_disk = 0  # until a sync has said how long the file is

    def write(self, content: bytes | memoryview, offset: int) -> None:
        self.memory[offset : offset + len(content)] = content
        for sector in range(offset // SECTOR, -(-(offset + len(content)) // SECTOR)):
            version = bytes(self.memory[sector * SECTOR : (sector + 1) * SECTOR])
            self.unsynced.setdefault(sector, []).append(version)

    def sync(self) -> None:
        for sector, versions in self.unsynced.items():
            self._to_disk(sector, versions[-1])
        self.unsynced.clear()
        self.length_on_disk = len(self.memory)

    def fail_to_sync(self, chance: random.Random) -> None:
        """Some sectors were written; the others are forgotten, some of them already unreadable."""
        for sector, versions in self.unsynced.items():
            where = slice(sector * SECTOR, (sector + 1) * SECTOR)
            fate = chance.choice(("written", "forgotten", "still in memory"))
            if fate == "written":
                self._to_disk(sector, versions[-1])
            elif fate == "forgotten":
                self.memory[where] = self.disk[where]
        self.unsynced.clear()

    def cut(self, chance: random.Random, lost: float) -> None:
        """The power goes: of each unsynced sector any version may be on the disk, or none."""
        length = self.length_on_disk
        for sector, versions in self.unsynced.items():
            if chance.random() >= lost:
                self._to_disk(sector, chance.choice(versions))
                length = max(length, min((sector + 1) * SECTOR, len(self.memory)))
        self.unsynced.clear()
        if chance.random() < lost:
            del self.disk[length:]
        self.memory = bytearray(self.disk)
        self.length_on_disk = len(self.disk)

    def _to_disk(self, sector: int, content: bytes) -> None:
        self.disk[sector * SECTOR : (sector + 1) * SECTOR] = content


class Disk:
    """Files that outlive those who have them open, and a power cut as well as a disk does."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._inodes: dict[str, Inode] = {}
        self.syncs_until_failure: int | None = None
        self.failure: Exception = PowerCut()

    def open(self, path: Path, length: int) -> "ShakyFile":
        inode = self._inodes.setdefault(path.name, Inode(bytes(length)))
        for content in (inode.memory, inode.disk):
            content.extend(bytes(length - len(content)))
        return ShakyFile(path, length, self, inode)

    def sync(self, inode: Inode) -> None:
        if self.syncs_until_failure == 0:
            self.syncs_until_failure = None
            if isinstance(self.failure, OSError):
                inode.fail_to_sync(self._chance)
            raise self.failure
        if self.syncs_until_failure is not None:
            self.syncs_until_failure -= 1
        inode.sync()

    def cut(self, lost: float) -> int:
        """The power goes; returns how many sectors had not been synced."""
        unsynced = sum(len(inode.unsynced) for inode in self._inodes.values())
        for inode in self._inodes.values():
            inode.cut(self._chance, lost)
        return unsynced


class ShakyFile(File):
    """A file of a ``Disk``."""

    def __init__(self, path: Path, length: int, disk: Disk, inode: Inode) -> None:
        super().__init__(path, 0)  # so that there is one where others look for it
        self.length = length
        self._disk = disk
        self._inode = inode

    def read(self, span: Span) -> bytes:
        return bytes(self._inode.memory[span.start : span.stop])

    def write(self, content: bytes | memoryview, offset: int) -> None:
        self._inode.write(content, offset)

    def extents(self) -> Iterator[Span]:
        yield Span(0, self.length)

    def punch(self, span: Span) -> None:
        self._inode.write(bytes(span.length), span.start)

    def sync(self) -> None:
        self._disk.sync(self._inode)


def opened(directory: Path, identity: Identity = IDENTITY, open_file: Opener = File) -> DiskStore:
    paths = Layout.in_directory(directory)
    lock = CacheLock(paths.lock, patience=0)
    try:
        return open_disk_store(paths, lock, URL, identity, BLOCK, open_file=open_file)
    except BaseException:
        lock.close()
        raise


def part(block: int, content: bytes = CONTENT) -> bytes:
    return content[slice(*bytes_of(Span(block, block + 1), BLOCK, len(content)))]


def keep(store: DiskStore, blocks: range, content: bytes = CONTENT) -> None:
    """Store these blocks and note them, as the cache does when a request ends."""
    store.put(blocks.start, content[blocks.start * BLOCK : blocks.stop * BLOCK])
    for block in blocks:
        store.present.add(block)
    store.note(store.present.take_dirty())


def served(store: DiskStore) -> dict[int, bytes]:
    """What readers get; damaged blocks are dropped, as the cache does."""
    found = {}
    for block in [b for b in range(COUNT) if b in store.present]:
        if store.verify(Span(block, block + 1)):
            store.present.discard(block)
        else:
            found[block] = store.read(bytes_of(Span(block, block + 1), BLOCK, len(CONTENT)))
    return found


BLOCKS = st.builds(
    lambda start, length: range(start, min(COUNT, start + length)),
    st.integers(0, COUNT - 1),
    st.integers(1, 20),
)
SHARES = st.sampled_from((0.0, 0.1, 0.5, 0.9, 1.0))


class Outages(RuleBasedStateMachine):
    """A store on a shaky disk, against sets of the blocks that must be there."""

    def __init__(self, directory: Path, figures: Figures) -> None:
        super().__init__()
        self._directory = Path(tempfile.mkdtemp(dir=directory))
        self._figures = figures
        self._noted: set[int] = set()  # must survive a kill
        self._doubtful: set[int] = set()  # a sync failed after they were stored
        self._durable: set[int] = set()  # must survive a power cut

    @initialize(seed=st.integers(0, 1 << 32))
    def begin(self, seed: int) -> None:
        self._disk = Disk(random.Random(seed))
        self._store = self._opened()

    @rule(blocks=BLOCKS)
    def store_blocks(self, blocks: range) -> None:
        keep(self._store, blocks)
        self._noted.update(blocks)
        self._doubtful.difference_update(blocks)

    @rule(block=st.integers(0, COUNT - 1))
    def store_a_block_and_note_nothing(self, block: int) -> None:
        self._store.put(block, part(block))

    @rule(blocks=BLOCKS)
    def make_room(self, blocks: range) -> None:
        for block in blocks:
            self._store.present.discard(block)
        self._store.drop(blocks)
        for known in (self._noted, self._durable, self._doubtful):
            known.difference_update(blocks)

    @rule()
    def sync(self) -> None:
        self._store.sync()
        self._durable |= self._noted - self._doubtful

    @rule(after=st.integers(0, 2))
    def fail_to_sync(self, after: int) -> None:
        self._disk.syncs_until_failure, self._disk.failure = after, OSError(5, "I/O error")
        with pytest.raises(OSError, match="I/O error"):
            self._store.sync()
        self._figures.add(failed_syncs=1)
        self._doubtful = self._noted - self._durable

    @rule()
    def kill(self) -> None:
        """The kernel keeps what was written; the process knows nothing more."""
        self._store.close()
        self._store = self._opened()
        self._figures.add(kills=1)
        self._check(must_be_there=self._noted - self._doubtful)

    @rule(lost=SHARES)
    def cut_the_power(self, lost: float) -> None:
        self._store.close()
        unsynced = self._disk.cut(lost)
        self._store = self._opened()
        self._figures.add(power_cuts=1, unsynced_sectors=unsynced)
        self._durable = self._check(must_be_there=self._durable)
        self._noted, self._doubtful = set(self._durable), set()

    @rule(after=st.integers(0, 2), lost=SHARES)
    def cut_the_power_in_a_sync(self, after: int, lost: float) -> None:
        self._disk.syncs_until_failure, self._disk.failure = after, PowerCut()
        with pytest.raises(PowerCut):
            self._store.sync()
        self.cut_the_power(lost)

    @invariant()
    def no_wrong_byte_is_served(self) -> None:
        if hasattr(self, "_store"):
            self._check(must_be_there=set())

    def teardown(self) -> None:
        if hasattr(self, "_store"):
            self._store.close()
        shutil.rmtree(self._directory)

    def _opened(self) -> DiskStore:
        return opened(self._directory, open_file=self._disk.open)

    def _check(self, must_be_there: set[int]) -> set[int]:
        """Returns the blocks that are served."""
        found = served(self._store)
        wrong = [block for block, content in found.items() if content != part(block)]
        lost = must_be_there - set(found)
        self._figures.add(blocks_read=len(found), wrong_blocks=len(wrong), blocks_lost=len(lost))
        assert wrong == []
        assert lost == set()
        return set(found)


def test_power_cuts(tmp_path: Path, figures: Figures, long: bool) -> None:
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        lambda: Outages(tmp_path, figures),
        settings=settings(max_examples=500 if long else 60, stateful_step_count=30, deadline=None),
    )


NEW_CONTENT = CONTENT[::-1]
NEW_IDENTITY = replace(IDENTITY, etag='"v2"')
NAMES = ("data", "bitmap", "sums", "meta.json")


@pytest.mark.parametrize("survivors", [*itertools.product((False, True), repeat=len(NAMES))])
def test_a_power_cut_that_mixes_the_files_of_two_versions(
    tmp_path: Path, figures: Figures, survivors: tuple[bool, ...]
) -> None:
    """A cache was started afresh for a new version, and some old files came back."""
    versions = ((IDENTITY, CONTENT), (NEW_IDENTITY, NEW_CONTENT))
    for number, (identity, content) in enumerate(versions):
        with contextlib.closing(opened(tmp_path / str(number), identity)) as store:
            keep(store, range(COUNT), content)
    for name, survives in zip(NAMES, survivors, strict=True):
        if survives:
            shutil.copy(tmp_path / "0" / name, tmp_path / "1" / name)
    was_old = survivors[NAMES.index("meta.json")]
    identity, content = versions[0 if was_old else 1]
    with contextlib.closing(opened(tmp_path / "1", identity)) as store:
        found = served(store)
    figures.add(mixed_caches=1, blocks_read=len(found), wrong_blocks=0)
    assert all(block == part(number, content) for number, block in found.items())
    if len(set(survivors) - {was_old}) == 0:
        assert len(found) == COUNT

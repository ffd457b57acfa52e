"""The stores, on a real disk and in memory; above all that no wrong byte passes verification."""

import contextlib
import json
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import noise
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lazyfs.cache.disk import DiskStore, open_disk_store
from lazyfs.cache.layout import CacheLock, Layout
from lazyfs.cache.memory import MemoryStore
from lazyfs.core.device import Identity
from lazyfs.core.errors import CacheBusy, CacheError
from lazyfs.core.ranges import Span, bytes_of

BLOCK = 4096
CONTENT = noise(10 * BLOCK + 1234)
COUNT = 11
IDENTITY = Identity(len(CONTENT), '"v1"', "Mon, 06 Jan 2025 10:00:00 GMT")
URL = "https://host/a.iso"
ALL = Span(0, COUNT)


def opened(paths: Layout, identity: Identity = IDENTITY, block_size: int = BLOCK) -> DiskStore:
    lock = CacheLock(paths.lock, patience=0)
    try:
        return open_disk_store(paths, lock, URL, identity, block_size)
    except BaseException:
        lock.close()
        raise


def part(block: int) -> bytes:
    return CONTENT[slice(*bytes_of(Span(block, block + 1), BLOCK, len(CONTENT)))]


def keep(store: DiskStore, *blocks: int) -> None:
    """Store these blocks and write the bitmap, as the cache does."""
    for block in blocks:
        store.put(block, part(block))
        store.present.add(block)
    store.note(store.present.take_dirty())
    store.sync()


def served(store: DiskStore) -> dict[int, bytes]:
    """What a reader gets: the blocks that are present and pass verification."""
    damaged = set(store.verify(ALL)) if store.present.covers(ALL) else None
    blocks = [b for b in range(store.present.block_count) if b in store.present]
    if damaged is None:
        damaged = {b for b in blocks if store.verify(Span(b, b + 1))}
    size = IDENTITY.size
    return {
        b: store.read(bytes_of(Span(b, b + 1), store.block_size, size))
        for b in blocks
        if b not in damaged
    }


@pytest.fixture
def paths(tmp_path: Path) -> Layout:
    return Layout.in_directory(tmp_path / "cache")


@pytest.fixture
def full(paths: Layout) -> Layout:
    """A closed cache with all blocks in it."""
    with contextlib.closing(opened(paths)) as store:
        keep(store, *range(COUNT))
    return paths


# Reuse


def test_blocks_outlive_the_store(paths: Layout) -> None:
    with contextlib.closing(opened(paths)) as store:
        keep(store, 0, 5, COUNT - 1)
        assert store.read(Span(5 * BLOCK + 7, 5 * BLOCK + 99)) == part(5)[7:99]
    with contextlib.closing(opened(paths)) as store:
        assert served(store) == {b: part(b) for b in (0, 5, COUNT - 1)}


def test_a_block_that_was_not_noted_is_not_present(paths: Layout) -> None:
    with contextlib.closing(opened(paths)) as store:
        store.put(3, part(3))
    with contextlib.closing(opened(paths)) as store:
        assert store.present.count == 0


def test_the_files_on_disk(full: Layout) -> None:
    assert full.data.read_bytes() == CONTENT
    assert full.bitmap.read_bytes() == b"\xff\x07" + bytes(4094)
    assert full.sums.stat().st_size == 8 * COUNT
    meta = json.loads(full.meta.read_text())
    assert meta["format"] == 1
    assert (meta["url"], meta["block_size"]) == (URL, BLOCK)
    assert Identity(**meta["identity"]) == IDENTITY
    for path in (full.data, full.bitmap, full.sums, full.meta, full.lock):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(full.data.parent.stat().st_mode) == 0o700


def test_an_empty_cache_takes_no_room(tmp_path: Path) -> None:
    paths = Layout.in_directory(tmp_path)
    with contextlib.closing(opened(paths, Identity(1 << 40, '"v1"'), 64 << 10)) as store:
        assert store.present.count == 0
        assert paths.data.stat().st_size == 1 << 40
        used = sum(path.stat().st_blocks * 512 for path in tmp_path.iterdir())
        assert used < 1 << 20


def test_an_old_cache_keeps_its_block_size(full: Layout) -> None:
    with contextlib.closing(opened(full, block_size=16 * BLOCK)) as store:
        assert store.block_size == BLOCK
        assert store.present.count == COUNT


@pytest.mark.parametrize(
    ("then", "now", "reused"),
    [
        (IDENTITY, IDENTITY, True),
        (IDENTITY, replace(IDENTITY, last_modified=None), True),
        (IDENTITY, replace(IDENTITY, etag='"v2"'), False),
        (IDENTITY, replace(IDENTITY, etag=None), False),
        (IDENTITY, replace(IDENTITY, size=IDENTITY.size + 1), False),
        (IDENTITY, Identity(IDENTITY.size), False),
        (replace(IDENTITY, etag=None), IDENTITY, True),
        (replace(IDENTITY, etag=None), Identity(IDENTITY.size, None, "later"), False),
        (Identity(IDENTITY.size), Identity(IDENTITY.size), False),
        (Identity(IDENTITY.size), IDENTITY, False),
    ],
)
def test_only_the_same_version_is_reused(
    paths: Layout,
    expected_log: Callable[..., None],
    then: Identity,
    now: Identity,
    reused: bool,
) -> None:
    with contextlib.closing(opened(paths, then)) as store:
        keep(store, 1)
    if not reused:
        expected_log("WARNING: .*another version")
    with contextlib.closing(opened(paths, now)) as store:
        assert store.present.count == int(reused)
        assert store.verify(Span(1, 2)) == ([] if reused else [1])


# Damage


DAMAGED_META = [
    b"",
    b"{",
    b"[]",
    b"null",
    b"7",
    b'"x"',
    b"{}",
    b"\xff\xfe\x00",
    b'{"format": 1}',
    b'{"format": 2, "url": "", "identity": {"size": 1}, "block_size": 4096}',
    b'{"format": 1, "url": "", "identity": {"height": 1}, "block_size": 4096}',
    b'{"format": 1, "url": "", "identity": [], "block_size": 4096}',
]


@pytest.mark.parametrize("content", DAMAGED_META)
def test_a_damaged_meta_starts_afresh(
    full: Layout, expected_log: Callable[..., None], content: bytes
) -> None:
    expected_log("WARNING: .*afresh")
    full.meta.write_bytes(content)
    with contextlib.closing(opened(full)) as store:
        assert store.present.count == 0
        keep(store, 2)
        assert served(store) == {2: part(2)}


@pytest.mark.parametrize("block_size", [0, -4096, 1, 4095, 1 << 40, "4096", 4096.0, None, True, []])
def test_a_damaged_block_size_starts_afresh(
    full: Layout, expected_log: Callable[..., None], block_size: Any
) -> None:
    expected_log("WARNING: .*afresh")
    meta = json.loads(full.meta.read_text())
    full.meta.write_text(json.dumps(meta | {"block_size": block_size}))
    with contextlib.closing(opened(full)) as store:
        assert store.block_size == BLOCK
        assert store.present.count == 0


def flip(path: Path, offset: int, mask: int = 0x10) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= mask
    path.write_bytes(content)


def swap_blocks(paths: Layout) -> None:
    content = paths.data.read_bytes()
    paths.data.write_bytes(content[BLOCK : 2 * BLOCK] + content[:BLOCK] + content[2 * BLOCK :])


def swap_blocks_and_sums(paths: Layout) -> None:
    swap_blocks(paths)
    sums = paths.sums.read_bytes()
    paths.sums.write_bytes(sums[8:16] + sums[:8] + sums[16:])


def zero_everything(paths: Layout) -> None:
    """What a power cut leaves where only the bitmap reached the disk."""
    for path in (paths.data, paths.sums):
        path.write_bytes(bytes(path.stat().st_size))


@pytest.mark.parametrize(
    ("damage", "hit"),
    [
        (lambda p: flip(p.data, 0), {0}),
        (lambda p: flip(p.data, 5 * BLOCK - 1), {4}),
        (lambda p: flip(p.data, len(CONTENT) - 1), {COUNT - 1}),
        (lambda p: flip(p.sums, 3 * 8), {3}),
        (lambda p: flip(p.sums, 3 * 8 + 7), {3}),
        (lambda p: os.truncate(p.data, 9 * BLOCK + 1), {9, 10}),
        (lambda p: os.truncate(p.data, 0), set(range(COUNT))),
        (lambda p: os.truncate(p.sums, 8 * 9 + 3), {9, 10}),
        (lambda p: os.truncate(p.sums, 0), set(range(COUNT))),
        (lambda p: p.data.unlink(), set(range(COUNT))),
        (lambda p: p.sums.unlink(), set(range(COUNT))),
        (swap_blocks, {0, 1}),
        (swap_blocks_and_sums, {0, 1}),
        (zero_everything, set(range(COUNT))),
    ],
)
def test_damaged_blocks_are_found(
    full: Layout, damage: Callable[[Layout], None], hit: set[int]
) -> None:
    damage(full)
    with contextlib.closing(opened(full)) as store:
        assert store.present.count == COUNT
        assert set(store.verify(ALL)) == hit
        assert served(store) == {b: part(b) for b in range(COUNT) if b not in hit}
        for block in hit:
            store.put(block, part(block))
        assert store.verify(ALL) == []
        assert store.read(Span(0, len(CONTENT))) == CONTENT


@pytest.mark.parametrize(
    ("damage", "present"),
    [
        (lambda p: flip(p.bitmap, 0, 0x04), set(range(COUNT)) - {2}),
        (lambda p: flip(p.bitmap, 1, 0xF8), set(range(COUNT))),  # bits beyond the last block
        (lambda p: flip(p.bitmap, 4095, 0xFF), set(range(COUNT))),
        (lambda p: os.truncate(p.bitmap, 1), set(range(8))),
        (lambda p: os.truncate(p.bitmap, 0), set()),
        (lambda p: os.truncate(p.bitmap, 8192), set(range(COUNT))),
        (lambda p: p.bitmap.unlink(), set()),
    ],
)
def test_a_damaged_bitmap_claims_less_or_is_checked(
    full: Layout, damage: Callable[[Layout], None], present: set[int]
) -> None:
    damage(full)
    with contextlib.closing(opened(full)) as store:
        assert served(store) == {b: part(b) for b in present}


def test_a_claim_without_data_is_found(paths: Layout) -> None:
    with contextlib.closing(opened(paths)) as store:
        keep(store, 1)
    paths.bitmap.write_bytes(b"\xff\x07" + bytes(4094))
    with contextlib.closing(opened(paths)) as store:
        assert served(store) == {1: part(1)}


def test_data_of_another_version_fail_the_comparison(full: Layout) -> None:
    """As if the old files had come back under a new meta: checksums are tied to the version."""
    meta = json.loads(full.meta.read_text())
    meta["identity"]["etag"] = '"v2"'
    full.meta.write_text(json.dumps(meta))
    with contextlib.closing(opened(full, replace(IDENTITY, etag='"v2"'))) as store:
        assert set(store.verify(ALL)) == set(range(COUNT))


def test_a_file_that_shrinks_under_the_store_is_damage_not_a_crash(
    full: Layout, expected_log: Callable[..., None]
) -> None:
    expected_log("WARNING: .*cannot be read")
    with contextlib.closing(opened(full)) as store:
        os.truncate(full.data, 3 * BLOCK)
        assert set(store.verify(ALL)) == set(range(3, COUNT))


FILES = ["data", "bitmap", "sums", "meta"]


@given(
    flips=st.lists(
        st.tuples(st.sampled_from(FILES), st.integers(0, 1 << 16), st.integers(1, 255)), max_size=12
    ),
    cuts=st.lists(st.tuples(st.sampled_from(FILES), st.integers(0, 1 << 16)), max_size=1),
    kept=st.sets(st.integers(0, COUNT - 1)),
)
@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_whatever_happens_to_the_files_no_wrong_byte_is_served(
    expected_log: Callable[..., None],
    flips: list[tuple[str, int, int]],
    cuts: list[tuple[str, int]],
    kept: set[int],
) -> None:
    expected_log("WARNING: .*afresh", required=False)
    with tempfile.TemporaryDirectory() as directory:
        paths = Layout.in_directory(Path(directory))
        with contextlib.closing(opened(paths)) as store:
            keep(store, *kept)
        for name, offset, mask in flips:
            path = getattr(paths, name)
            flip(path, offset % path.stat().st_size, mask)
        for name, length in cuts:
            path = getattr(paths, name)
            os.truncate(path, length % path.stat().st_size)
        with contextlib.closing(opened(paths)) as store:
            size = store.block_size
            for block, content in served(store).items():
                assert content == CONTENT[block * size : (block + 1) * size]


# Files that the user named


def named(directory: Path) -> Layout:
    return Layout.named(directory / "x.bitmap", directory / "x.data")


def test_named_files_are_a_cache_like_any_other(tmp_path: Path) -> None:
    with contextlib.closing(opened(named(tmp_path))) as store:
        keep(store, *range(COUNT))
    assert (tmp_path / "x.data").read_bytes() == CONTENT
    with contextlib.closing(opened(named(tmp_path))) as store:
        assert len(served(store)) == COUNT


def test_named_files_that_exist_empty_are_taken(tmp_path: Path) -> None:
    (tmp_path / "x.data").touch()
    (tmp_path / "x.bitmap").touch()
    with contextlib.closing(opened(named(tmp_path))) as store:
        keep(store, 0)


@pytest.mark.parametrize(
    "theirs",
    [
        {"x.data": b"a disk of theirs"},
        {"x.bitmap": b"a list of theirs"},
        {"x.data.sums": b"sha256 ..."},
        {"x.data": b"a disk of theirs", "x.data.json": b'{"description": "of theirs"}'},
        {"x.data": b"a disk of theirs", "x.data.json": b"{}"},
        {"x.data.json": b'{"description": "of theirs"}'},
    ],
    ids=lambda theirs: " ".join(theirs),
)
def test_files_that_are_no_cache_are_refused_and_left_alone(
    tmp_path: Path, expected_log: Callable[..., None], theirs: dict[str, bytes]
) -> None:
    expected_log("x.data.json", required=False)
    for name, content in theirs.items():
        (tmp_path / name).write_bytes(content)
    with pytest.raises(CacheError) as caught, contextlib.closing(opened(named(tmp_path))):
        pass
    assert caught.value.cure
    for name, content in theirs.items():
        assert (tmp_path / name).read_bytes() == content


def test_a_cache_of_another_version_in_named_files_starts_afresh(
    tmp_path: Path, expected_log: Callable[..., None]
) -> None:
    expected_log("another version")
    with contextlib.closing(opened(named(tmp_path))) as store:
        keep(store, 0)
    with contextlib.closing(opened(named(tmp_path), replace(IDENTITY, etag='"v2"'))) as store:
        assert store.present.count == 0


# Places that cannot be used


@pytest.mark.parametrize("name", ["data", "bitmap", "sums"])
def test_a_directory_in_the_place_of_a_file(full: Layout, name: str) -> None:
    path: Path = getattr(full, name)
    path.unlink()
    path.mkdir()
    with pytest.raises(CacheError) as caught:
        opened(full)
    assert str(path) in caught.value.message
    assert caught.value.cure
    with contextlib.closing(CacheLock(full.lock, patience=0)):
        pass  # the failed attempt left no lock behind


def test_a_file_in_the_place_of_the_directory(tmp_path: Path) -> None:
    (tmp_path / "cache").touch()
    with pytest.raises(CacheError) as caught:
        CacheLock(tmp_path / "cache" / "lock")
    assert "cache" in caught.value.message
    assert caught.value.cure


# Locks


def test_a_cache_in_use_names_the_process(paths: Layout) -> None:
    with contextlib.closing(CacheLock(paths.lock)):
        with pytest.raises(CacheBusy, match=rf"process {os.getpid()}\b") as caught:
            CacheLock(paths.lock, patience=0)
        assert caught.value.cure
        assert paths.lock.read_text() == f"{os.getpid()}\n"
    with contextlib.closing(CacheLock(paths.lock, patience=0)):
        pass


def test_a_lock_left_by_a_dead_process_is_taken(paths: Layout) -> None:
    paths.lock.parent.mkdir()
    paths.lock.write_text("4194304999\n")
    with contextlib.closing(CacheLock(paths.lock, patience=0)):
        assert paths.lock.read_text() == f"{os.getpid()}\n"


def test_a_store_holds_its_lock_until_it_is_closed(paths: Layout) -> None:
    with contextlib.closing(opened(paths)), pytest.raises(CacheBusy):
        opened(paths)
    opened(paths).close()


# Memory

MEMORY_BLOCKS = 3


@pytest.fixture
def memory() -> Iterator[MemoryStore]:
    with contextlib.closing(
        MemoryStore(len(CONTENT), BLOCK, MEMORY_BLOCKS * BLOCK + BLOCK - 1)
    ) as store:
        yield store


def put(store: MemoryStore, block: int, *held: int) -> list[int]:
    """Keep one block, then keep to the limit, as the cache does."""
    store.put(block, part(block))
    return store.evict(set(held))


def test_memory_keeps_a_bounded_number_of_blocks(memory: MemoryStore) -> None:
    gone = [put(memory, block) for block in range(6)]
    assert gone == [[], [], [], [0], [1], [2]]
    assert memory.read(Span(3 * BLOCK + 5, 6 * BLOCK - 5)) == CONTENT[3 * BLOCK + 5 : 6 * BLOCK - 5]


def test_memory_drops_what_was_not_used_for_longest(memory: MemoryStore) -> None:
    for block in range(3):
        memory.put(block, part(block))
    memory.read(Span(0, 10))
    assert put(memory, 3) == [1]
    assert put(memory, 4) == [2]
    assert put(memory, 5) == [0]


def test_memory_keeps_what_is_held_even_beyond_the_limit(memory: MemoryStore) -> None:
    assert [put(memory, block, 0, 1, 2, 3) for block in range(4)] == [[], [], [], []]
    assert put(memory, 4, 0, 2, 3) == [1, 4]
    assert put(memory, 5) == [0]


def test_memory_keeps_a_copy(memory: MemoryStore) -> None:
    buffer = bytearray(part(0))
    memory.put(0, memoryview(buffer))
    buffer[:] = bytes(BLOCK)
    assert memory.read(Span(0, BLOCK)) == part(0)


def test_memory_always_holds_one_block() -> None:
    store = MemoryStore(len(CONTENT), BLOCK, limit=1)
    assert put(store, 0) == []
    assert put(store, COUNT - 1) == [0]
    assert store.read(Span(10 * BLOCK, len(CONTENT))) == part(COUNT - 1)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, COUNT - 1)), max_size=60))
def test_memory_against_a_model(steps: list[tuple[bool, int]]) -> None:
    store = MemoryStore(len(CONTENT), BLOCK, MEMORY_BLOCKS * BLOCK)
    recent: list[int] = []  # the model: blocks held, the least recently used first
    for is_put, block in steps:
        if is_put and block not in recent:
            recent.append(block)
            gone, recent = recent[:-MEMORY_BLOCKS], recent[-MEMORY_BLOCKS:]
            assert put(store, block) == gone
        elif block in recent:
            recent.remove(block)
            recent.append(block)
            assert store.read(bytes_of(Span(block, block + 1), BLOCK, len(CONTENT))) == part(block)

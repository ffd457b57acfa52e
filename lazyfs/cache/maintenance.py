"""Operations on caches that no mount uses: list, verify, prune, remove."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from lazyfs.cache import directory as caches
from lazyfs.cache.directory import Entry
from lazyfs.cache.disk import DiskStore, saved_bitmap
from lazyfs.cache.layout import CacheLock, Meta
from lazyfs.core import address
from lazyfs.core.errors import CacheBusy, CacheError, CacheUnknown, UsageError
from lazyfs.core.ranges import Span
from lazyfs.system.ownfiles import check_directory


@dataclass(frozen=True)
class Cache:
    """One cache.

    ``meta``: None if it is missing or cannot be read.
    ``cached``: bytes.
    ``problem``: why ``meta`` cannot be read.
    ``broken``: whether that is permanent.
    """

    entry: Entry
    meta: Meta | None
    cached: int
    problem: str = ""
    broken: bool = True

    @property
    def name(self) -> str:
        return self.entry.name

    @property
    def url(self) -> str:
        return self.meta.url if self.meta else ""

    @property
    def usable(self) -> bool:
        """Whether a later mount can reuse its data."""
        return self.meta.identity.pinned if self.meta is not None else not self.broken


@dataclass(frozen=True)
class Verdict:
    """The result of verifying a cache.

    ``blocks``: the number of blocks verified.
    ``damaged``: block numbers.
    """

    cache: Cache
    blocks: int
    damaged: tuple[int, ...]

    @property
    def first_damage(self) -> int:
        """The offset of the first damaged block in the image, in bytes."""
        return self.damaged[0] * self.cache.meta.block_size if self.cache.meta else 0


def all_caches(directory: Path) -> list[Cache]:
    """The caches in a directory, least recently used first. Raises CacheError."""
    try:
        check_directory(directory)
        return [_looked_at(entry) for entry in caches.entries(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(
            f"the cache directory {directory} cannot be used: {error.strerror}",
            "name another with --cache-dir",
        ) from error


def chosen(found: Sequence[Cache], words: Sequence[str]) -> list[Cache]:
    """The caches that ``words`` name: by URL, by name, or by a unique prefix of the name.

    Raises UsageError.
    """
    picked: dict[str, Cache] = {}
    for word in words:
        name = address.cache_key(word) if "://" in word else word
        exact = [c for c in found if c.name == name]
        begin = exact or [c for c in found if c.name.startswith(name)]
        if len(begin) != 1:
            what = "names no cache" if not begin else f"could mean {len(begin)} caches"
            raise UsageError(f"{address.shown(word)!r} {what}", "see: lazyfs cache list")
        picked[begin[0].name] = begin[0]
    return list(picked.values())


def to_prune(
    found: Sequence[Cache], unused_for: float | None, down_to: int | None, now: float
) -> list[Cache]:
    """The unused caches to remove, given ``found`` least recently used first.

    Always those that no mount can reuse.
    ``unused_for``: seconds; also those that no mount has used for that long.
    ``down_to``: bytes; also as many more as make the rest fit.
    """
    free = [cache for cache in found if cache.entry.holder is None]
    going = [
        cache
        for cache in free
        if not cache.usable or (unused_for is not None and now - cache.entry.used_at >= unused_for)
    ]
    if down_to is not None:
        left = sum(cache.entry.allocated for cache in found if cache not in going)
        for cache in free:
            if left > down_to and cache not in going:
                going.append(cache)
                left -= cache.entry.allocated
    return going


def verify(cache: Cache, tell: Callable[[int], None]) -> Verdict:
    """Verify every cached block against its checksum; damaged ones are dropped. Takes long.

    ``tell``: called repeatedly with the number of bytes verified since its last call.

    Raises CacheBusy or CacheError.
    """
    if cache.meta is None:
        raise CacheError(f"{cache.name} cannot be understood", f"lazyfs cache rm {cache.name}")
    lock = CacheLock(cache.entry.paths.lock, patience=caches.BRIEF, touch=False)
    try:
        store = DiskStore(cache.entry.paths, lock, cache.meta)
    except BaseException:
        lock.close()
        raise
    try:
        blocks = store.present.count
        damaged = tuple(_damaged(store, tell))
        for block in damaged:
            store.present.discard(block)
        store.note(store.present.take_dirty())
        store.sync()
    except OSError as error:
        raise CacheError(
            f"{cache.name} cannot be verified: {error.strerror}", "look at the disk that it is on"
        ) from error
    finally:
        store.close()
    return Verdict(cache, blocks, damaged)


def remove(cache: Cache) -> None:
    """Delete a cache. Raises CacheBusy if a mount uses it, or CacheError."""
    try:
        caches.remove(cache.entry)
    except CacheBusy as error:
        raise CacheBusy(
            f"{cache.name} is in use by {cache.entry.holder or 'somebody'}", "unmount it first"
        ) from error


def _looked_at(entry: Entry) -> Cache:
    try:
        meta = Meta.load(entry.paths.meta)
        cached = 0
        if meta is not None:
            present = saved_bitmap(entry.paths, meta)
            cached = present.byte_count(meta.block_size, meta.identity.size)
    except FileNotFoundError:  # another process may just be creating or removing it
        return Cache(entry, None, 0)
    except CacheUnknown as error:
        return Cache(entry, None, 0, error.message)
    except (CacheError, OSError) as error:
        return Cache(entry, None, 0, str(error), broken=False)
    return Cache(entry, meta, cached)


def _damaged(store: DiskStore, tell: Callable[[int], None]) -> Iterator[int]:
    for block in store.present.within(Span(0, store.present.block_count)):
        yield from store.verify(Span(block, block + 1))
        tell(store.block_size)

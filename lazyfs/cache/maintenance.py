"""What a user can do with caches that no mount uses: look, verify, remove."""

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


@dataclass(frozen=True)
class Cache:
    """One cache. ``meta``: None if nobody can tell what it holds. ``cached``: bytes.

    ``problem``: why nobody can tell; ``broken``: and nobody ever will.
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
        """Whether a later mount can take anything from it."""
        return self.meta.identity.pinned if self.meta is not None else not self.broken


@dataclass(frozen=True)
class Verdict:
    """What came of comparing a cache with its checksums. ``damaged``: block numbers."""

    cache: Cache
    blocks: int
    damaged: tuple[int, ...]

    @property
    def first_damage(self) -> int:
        """Where in the image the first damaged block begins, in bytes."""
        return self.damaged[0] * self.cache.meta.block_size if self.cache.meta else 0


def all_caches(directory: Path) -> list[Cache]:
    """The caches in a directory, the one that was in use longest ago first. Raises CacheError."""
    try:
        return [_looked_at(entry) for entry in caches.entries(directory)]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise CacheError(
            f"the cache directory {directory} cannot be read: {error.strerror}",
            "name another with --cache-dir",
        ) from error


def chosen(found: Sequence[Cache], words: Sequence[str]) -> list[Cache]:
    """Those that ``words`` name: by URL, by name, or by how only one name begins.

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
    """What may go of caches that nobody uses, the one that was in use longest ago first.

    Those that no mount can use any more; with ``unused_for`` (seconds) also those that no mount has
    used for so long; with ``down_to`` (bytes) as many more as make the rest fit.
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
    """Compare every cached block with its checksum; damaged ones are dropped. Takes its time.

    ``tell`` is told how many bytes were looked at, again and again. Raises CacheBusy or CacheError.
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
    """Delete a cache. Raises CacheBusy when a mount uses it, or CacheError."""
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
    except FileNotFoundError:  # it may just be being made, or emptied
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

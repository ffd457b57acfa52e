"""Opening the cache of an image: in memory, or on disk for the server's version."""

import logging
import os
import random
from functools import partial
from pathlib import Path

import trio

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.directory import allocated
from lazyfs.cache.disk import DiskStore, open_disk_store
from lazyfs.cache.layout import CacheLock, Layout, Meta, prepare
from lazyfs.cache.memory import MemoryStore
from lazyfs.cache.overflow import MEMORY_LIMIT, OverflowStore
from lazyfs.cache.quota import Quota
from lazyfs.core import address
from lazyfs.core.backoff import Backoff
from lazyfs.core.device import Identity, Source
from lazyfs.core.errors import CacheUnknown, TransientError
from lazyfs.core.options import CacheOptions, StackOptions

log = logging.getLogger(__name__)

# Bytes; chosen by measurement, see docs/design.rst.
DEFAULT_BLOCK_SIZE = 32 << 10
PROFILED_BLOCK_SIZE = 8 << 10  # with a profile, whose ranges need no adjacent bytes


async def open_cache(
    url: str, source: Source, options: StackOptions
) -> tuple[BlockCache, Path | None]:
    """Open a source and its cache; returns the cache and its data file (None if in memory).

    The data file is the whole image once that is complete. Raises a LazyfsError.
    """
    name = address.shown(url)
    if options.cache.memory_only:
        identity = await _first_opening(source, name, options.timeout)
        memory = MemoryStore(identity.size, _new_block_size(options), MEMORY_LIMIT)
        return BlockCache(name, source, memory, options.timeout), None
    layout = layout_of(options.cache, url)
    lock = await trio.to_thread.run_sync(_locked, layout)
    try:
        await _open_source(source, url, layout, options.timeout)
        store = _open_store(name, source.identity, options, layout, lock)
    except BaseException:
        lock.close()
        raise
    return BlockCache(name, source, store, options.timeout, options.rate), store.copy


def _locked(layout: Layout) -> CacheLock:
    """The lock of a cache in a safe place. Raises CacheBusy or CacheError."""
    prepare(layout)
    return CacheLock(layout.lock)


def layout_of(cache: CacheOptions, url: str) -> Layout:
    """The layout of an image's cache, which need not exist."""
    if cache.files is not None:
        return Layout.named(*cache.files)
    return Layout.in_directory(cache.directory / address.cache_key(url))


def is_cached(cache: CacheOptions, url: str) -> bool:
    """Whether there is a cache of an image on disk, of any version."""
    return not cache.memory_only and os.path.exists(layout_of(cache, url).data)


def _open_store(
    name: str, identity: Identity, options: StackOptions, layout: Layout, lock: CacheLock
) -> OverflowStore:
    wanted = options.cache
    disk = open_disk_store(
        layout,
        lock,
        name,
        identity,
        _new_block_size(options),
        on_change=wanted.on_change,
        must_exist=wanted.must_exist,
    )
    try:
        if wanted.block_size not in (None, disk.block_size):
            log.warning("%s: the cache keeps its block size of %d bytes", name, disk.block_size)
        return OverflowStore(name, disk, _quota(layout, disk, wanted))
    except BaseException:
        disk.close()
        raise


def _new_block_size(options: StackOptions) -> int:
    """The block size for a new cache, in bytes."""
    if options.cache.block_size is not None:
        return options.cache.block_size
    return DEFAULT_BLOCK_SIZE if options.preload.profile is None else PROFILED_BLOCK_SIZE


def _quota(layout: Layout, disk: DiskStore, options: CacheOptions) -> Quota:
    directory = layout.data.parent
    taken = disk.allocated if layout.foreign else partial(allocated, directory)
    return Quota(directory, taken, options.limit, options.min_free)


async def _open_source(source: Source, url: str, layout: Layout, patience: float) -> None:
    """Open the server's version of the image; if it is unreachable, the cached version."""
    name, cached = address.shown(url), _cached_identity(layout)
    if cached is not None and cached.pinned:
        try:
            identity = await source.open()
        except TransientError as error:
            log.warning("%s; serving what is cached until the server is back", error.message)
            source.expect(cached)
            return
    else:
        identity = await _first_opening(source, name, patience)
    if identity.pinned:
        return
    if address.scheme(url) in address.NBD:
        log.info("%s: NBD does not tell versions apart; the cache ends with this run", name)
        return
    log.warning(
        "%s: the server sends neither ETag nor Last-Modified, so a change of the image may go "
        "unnoticed; the cache will not outlive this mount",
        name,
    )


async def _first_opening(source: Source, name: str, patience: float) -> Identity:
    """Open the server's version of the image.

    If reads never time out (``patience`` is 0), this retries for ever. Otherwise an unreachable
    server is reported at once: the URL may be misspelt.
    """
    backoff, said = Backoff(), ""
    while True:
        try:
            identity = await source.open()
        except TransientError as error:
            if patience:
                raise
            if error.message != said:
                log.warning("%s; asking again until it answers", error.message)
            said = error.message
            await trio.sleep(backoff.failed(random.random(), error.retry_after))  # noqa: S311
        else:
            if said:
                log.warning("%s: the server answers", name)
            return identity


def _cached_identity(layout: Layout) -> Identity | None:
    try:
        meta = Meta.load(layout.meta)
    except CacheUnknown:  # logged when the cache is opened
        return None
    return meta.identity if meta else None

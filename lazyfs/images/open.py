"""The composition root: from options to a stack of Devices. The only file that knows them all.

An image's stack, from the bottom: ``HttpSource`` or ``NbdSource`` -> ``BlockCache`` on a store ->
``Prefetcher``.
"""

import contextlib
import logging
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import trio

from lazyfs.cache.blockcache import BlockCache
from lazyfs.cache.directory import allocated
from lazyfs.cache.disk import DiskStore, open_disk_store
from lazyfs.cache.layout import CacheLock, CachePaths, Meta
from lazyfs.cache.memory import MemoryStore
from lazyfs.cache.overflow import MEMORY_LIMIT, OverflowStore
from lazyfs.cache.quota import Room
from lazyfs.cache.retry import Backoff
from lazyfs.core import address
from lazyfs.core.device import Device, Identity, Priority
from lazyfs.core.errors import CacheUnknown, NotFound, TransientError
from lazyfs.core.options import (
    CacheOptions,
    HttpOptions,
    ImageOptions,
    ReadAheadLimit,
    StackOptions,
)
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.recorder import Recorder
from lazyfs.sources.http import FIRST_BYTES, HttpClient, HttpSource
from lazyfs.sources.nbd import NbdSource

log = logging.getLogger(__name__)

# Bytes; chosen by measurement, see docs/design.rst.
DEFAULT_BLOCK_SIZE = 32 << 10
TOLD_BLOCK_SIZE = 8 << 10  # with a profile, which has no use for what lies beside its ranges


@dataclass(frozen=True)
class Image:
    """One opened image. ``mtime``: POSIX seconds, 0 when the server does not say.

    ``key``: the name of its cache. ``unrecorded``: the same Device for those whose reads are no use
    of the image. ``recorder``: writes down what is used of it. ``local_copy``: the file that holds
    the whole image once it is complete; ``notebook``: the file in which its catalog is remembered;
    None without a cache on disk. ``cache``: for those who steer it. ``budget``: bytes that may be
    preloaded, None for any number. ``beside``: fetches the file
    whose URL is the image's with this ending; at most so many bytes; None if there is none. It
    raises a SourceError.
    """

    name: str
    url: str  # without secrets
    key: str
    device: Device
    unrecorded: Device
    recorder: Recorder
    cache: BlockCache
    mtime: float
    local_copy: Path | None
    notebook: Path | None
    budget: int | None
    beside: Callable[[str, int], Awaitable[bytes | None]]


@dataclass(frozen=True)
class Stack:
    """The images of one mount, and what serves them."""

    images: tuple[Image, ...]
    _clients: tuple[HttpClient, ...]
    _fill: bool

    async def run(self) -> None:
        """Fetch what is asked for, until cancelled."""
        async with trio.open_nursery() as nursery:
            for image in self.images:
                nursery.start_soon(image.recorder.run)
                nursery.start_soon(image.cache.run)
                if self._fill:
                    await image.cache.ensure(0, image.cache.identity.size, Priority.FILL)

    async def renew_logins(self) -> None:
        """Read anew what says to servers who we are. Raises UsageError."""
        for client in self._clients:
            await client.renew_logins()


@asynccontextmanager
async def open_stack(options: StackOptions) -> AsyncIterator[Stack]:
    """Open all images; on leaving, save and close them. ``run`` must have ended by then.

    Raises a LazyfsError when one cannot be opened.
    """
    async with contextlib.AsyncExitStack() as closing:
        clients: dict[HttpOptions, HttpClient] = {}
        images = []
        for wanted in options.images:
            if wanted.http not in clients:
                client = await trio.to_thread.run_sync(HttpClient, wanted.http)
                closing.push_async_callback(client.aclose)
                clients[wanted.http] = client
            images.append(await _open_image(wanted, options, clients[wanted.http], closing))
        yield Stack(tuple(images), tuple(clients.values()), options.fill)


async def _open_image(
    wanted: ImageOptions,
    options: StackOptions,
    client: HttpClient,
    closing: contextlib.AsyncExitStack,
) -> Image:
    source = _source(wanted, options, client)
    if isinstance(source, NbdSource):
        closing.push_async_callback(source.aclose)
    cache, copy = await _open_cache(wanted, options, source)
    closing.push_async_callback(cache.aclose)
    cache.begin_with(source.opening)
    url = address.shown(wanted.url)
    unrecorded = Prefetcher(cache, _readahead(options))
    recorder = Recorder(unrecorded, url)
    if options.preload.record is not None:
        await recorder.record_to(options.preload.record)
    return Image(
        name=wanted.name,
        url=url,
        key=address.cache_key(wanted.url),
        device=recorder,
        unrecorded=unrecorded,
        recorder=recorder,
        cache=cache,
        mtime=_mtime(cache.identity),
        local_copy=copy,
        notebook=notebook_of(options.cache, wanted.url),
        budget=None if options.cache.limit is None else options.cache.limit // 2,
        beside=partial(_fetch_beside, client, wanted.url),
    )


async def _fetch_beside(client: HttpClient, url: str, ending: str, most: int) -> bytes | None:
    if address.is_nbd(url):
        return None
    source = HttpSource(client, address.with_ending(url, ending), first=FIRST_BYTES)
    try:
        size = min((await source.open()).size, most)
    except NotFound:
        return None
    content = bytearray(source.opening)
    if len(content) >= size:
        return bytes(content[:size])
    lane = await source.lane(Priority.PRELOAD)
    try:
        (stream,) = source.streams([(len(content), size - len(content))])
        async with stream as pieces:
            async for piece in pieces:
                content += piece
    finally:
        lane.release()
    return bytes(content)


def notebook_of(cache: CacheOptions, url: str) -> Path | None:
    """The file in which the catalog of an image is remembered; None without a cache on disk."""
    if cache.memory_only:
        return None
    return _cache_paths(cache, url).catalog


def _readahead(options: StackOptions) -> ReadAheadLimit:
    """The read-ahead that was asked for, as far as the cache holds it beside what is in use."""
    if options.cache.memory_only:
        return replace(options.readahead, most=MEMORY_LIMIT // 2)
    if options.cache.limit is not None:
        return replace(options.readahead, most=options.cache.limit // 4)
    return options.readahead


async def _open_cache(
    wanted: ImageOptions, options: StackOptions, source: HttpSource | NbdSource
) -> tuple[BlockCache, Path | None]:
    """The cache of an image, and the file that is a copy of it once all is there."""
    name = address.shown(wanted.url)
    if options.cache.memory_only:
        identity = await _first_opening(source, name, options.timeout)
        memory = MemoryStore(identity.size, _new_block_size(options), MEMORY_LIMIT)
        return BlockCache(name, source, memory, options.timeout), None
    paths = _cache_paths(options.cache, wanted.url)
    lock = await trio.to_thread.run_sync(CacheLock, paths.lock)
    try:
        await _open_source(source, name, paths, options.timeout)
        store = _open_store(name, source.identity, options, paths, lock)
    except BaseException:
        lock.close()
        raise
    return BlockCache(name, source, store, options.timeout, options.rate), store.copy


def _open_store(
    name: str, identity: Identity, options: StackOptions, paths: CachePaths, lock: CacheLock
) -> OverflowStore:
    wanted = options.cache
    disk = open_disk_store(
        paths,
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
        room = _room(paths, disk, wanted)
        return OverflowStore(name, disk, room)
    except BaseException:
        disk.close()
        raise


def _new_block_size(options: StackOptions) -> int:
    """Of a cache that is new."""
    if options.cache.block_size is not None:
        return options.cache.block_size
    return DEFAULT_BLOCK_SIZE if options.preload.profile is None else TOLD_BLOCK_SIZE


def _room(paths: CachePaths, disk: DiskStore, options: CacheOptions) -> Room:
    place = paths.data.parent
    taken = disk.allocated if paths.foreign else partial(allocated, place)
    return Room(place, taken, options.limit, options.min_free)


def _source(
    wanted: ImageOptions, options: StackOptions, client: HttpClient
) -> HttpSource | NbdSource:
    """Where the bytes of an image come from, by the scheme of its URL."""
    url = wanted.url
    if address.is_nbd(url):
        return NbdSource(url, address.shown(url), wanted.http, vouched=options.nbd_fixed)
    return HttpSource(client, url, first=1 if _is_cached(options.cache, url) else FIRST_BYTES)


async def _open_source(
    source: HttpSource | NbdSource, name: str, paths: CachePaths, patience: float
) -> None:
    """The image as the server has it; or, with the server out of reach, as the cache has it."""
    cached = _cached_identity(paths)
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
    if isinstance(source, NbdSource):
        log.info("%s: NBD does not tell versions apart; the cache ends with this run", name)
        return
    log.warning(
        "%s: the server sends neither ETag nor Last-Modified, so a change of the image may go "
        "unnoticed; the cache will not outlive this mount",
        name,
    )


async def _first_opening(source: HttpSource | NbdSource, name: str, patience: float) -> Identity:
    """The image as the server has it. Where reads wait for ever (``patience`` is 0), so do we.

    Elsewhere a server that cannot be reached is said at once: the URL may be misspelt.
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


def _is_cached(cache: CacheOptions, url: str) -> bool:
    return not cache.memory_only and os.path.exists(_cache_paths(cache, url).data)


def _cached_identity(paths: CachePaths) -> Identity | None:
    try:
        meta = Meta.load(paths.meta)
    except CacheUnknown:  # said when the cache is opened
        return None
    return meta.identity if meta else None


def _cache_paths(cache: CacheOptions, url: str) -> CachePaths:
    if cache.files is not None:
        return CachePaths.named(*cache.files)
    return CachePaths.in_directory(cache.directory / address.cache_key(url))


def _mtime(identity: Identity) -> float:
    try:
        return parsedate_to_datetime(identity.last_modified or "").timestamp()
    except (ValueError, OverflowError):
        return 0.0

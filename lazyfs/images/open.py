"""The composition root: opens images from options. The only module that knows all their parts."""

import contextlib
import logging
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path

import trio

from lazyfs.cache.open import is_cached, layout_of, open_cache
from lazyfs.cache.overflow import MEMORY_LIMIT
from lazyfs.core import address
from lazyfs.core.device import Identity
from lazyfs.core.options import CacheOptions, ImageOptions, ReadAheadLimit, StackOptions
from lazyfs.images import chain
from lazyfs.images.chain import Step
from lazyfs.images.image import Image
from lazyfs.images.partitions import the_only_one
from lazyfs.prefetch.prefetcher import Prefetcher
from lazyfs.prefetch.recorder import Recorder
from lazyfs.sources.registry import Clients, Wanted
from lazyfs.system.eventloop import running

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Stack:
    """The images of one daemon or command."""

    images: tuple[Image, ...]
    _bases: tuple[Image, ...]  # without layers; several images may be views of one
    _clients: Clients
    _fill: bool

    async def run(self) -> None:
        """Fetch in the background, until cancelled."""
        async with trio.open_nursery() as nursery:
            for base in self._bases:
                nursery.start_soon(base.run)
            for image in self.images if self._fill else ():
                await image.fill()

    async def reload_credentials(self) -> None:
        """Reload the credentials of all servers. Raises UsageError."""
        await self._clients.reload_credentials()


@asynccontextmanager
async def open_stack(options: StackOptions) -> AsyncIterator[Stack]:
    """Open all images; on exit, save and close them. ``run`` must have ended by then.

    Raises a LazyfsError if one cannot be opened.
    """
    async with contextlib.AsyncExitStack() as closing:
        clients = Clients()
        closing.push_async_callback(clients.aclose)
        bases: dict[str, Image] = {}
        images = []
        for wanted in options.images:
            url, fragment = address.split_fragment(wanted.url)
            if url not in bases:
                bases[url] = await _open_base(url, wanted, options, clients, closing)
            view = await _open_view(bases[url], chain.parse(fragment), wanted)
            images.append(_with_catalog(view, options.cache, url))
        yield Stack(tuple(images), tuple(bases.values()), clients, options.fill)


async def _open_base(
    url: str,
    wanted: ImageOptions,
    options: StackOptions,
    clients: Clients,
    closing: contextlib.AsyncExitStack,
) -> Image:
    """Open an image, without layers."""
    fresh = not is_cached(options.cache, url)
    asked = Wanted(url, wanted.server, options.timeout, options.nbd_fixed, fresh)
    source = await clients.open(asked)
    closing.push_async_callback(source.aclose)
    cache, data_file = await open_cache(url, source, options)
    closing.push_async_callback(cache.aclose)
    cache.begin_with(source.opening)
    prefetcher = Prefetcher(cache, _readahead(options), options.prefetch, cache.block_size)
    recorder = Recorder(prefetcher, address.shown(url))
    if options.preload.record is not None:
        await recorder.record_to(options.preload.record)
    return Image(
        name=wanted.name,
        url=address.shown(url),
        cache_key=address.cache_key(url),
        source=source,
        cache=cache,
        prefetcher=prefetcher,
        recorder=recorder,
        layers=(),
        mtime=_mtime(cache.identity),
        data_file=data_file,
        catalog_file=None,
        budget=None if options.cache.limit is None else options.cache.limit // 2,
        sidecar=partial(clients.sidecar, asked),
    )


async def _open_view(base: Image, steps: Sequence[Step], wanted: ImageOptions) -> Image:
    """Open the layers on top of an image."""
    if not steps and not wanted.choose_partition:
        return replace(base, name=wanted.name)
    async with running(base.run):  # opening a layer reads through the cache
        if not steps:
            steps = await the_only_one(base.prefetcher, base.url)
        layers = await chain.open_chain(base.recorder, steps, base.url)
    view = replace(base, name=wanted.name, layers=tuple(layers))
    return replace(view, url=f"{base.url}#{view.chain}") if layers else view


def _with_catalog(view: Image, cache: CacheOptions, url: str) -> Image:
    digest = chain.digest_of(view.view_id)
    return replace(view, catalog_file=catalog_file_of(cache, url, digest))


def catalog_file_of(cache: CacheOptions, url: str, digest: str) -> Path | None:
    """The file for the catalog of a view; None without a cache on disk.

    ``digest``: see ``chain.digest_of``.
    """
    return None if cache.memory_only else layout_of(cache, url).catalog_of(digest)


def _readahead(options: StackOptions) -> ReadAheadLimit:
    """The requested read-ahead, limited so that the cache also has room for blocks in use."""
    if options.cache.memory_only:
        return replace(options.readahead, most=MEMORY_LIMIT // 2)
    if options.cache.limit is not None:
        return replace(options.readahead, most=options.cache.limit // 4)
    return options.readahead


def _mtime(identity: Identity) -> float:
    try:
        return parsedate_to_datetime(identity.last_modified or "").timestamp()
    except (ValueError, OverflowError):
        return 0.0

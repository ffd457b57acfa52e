"""The options that commands share: from the parsed command line to ``MountOptions``."""

import argparse
import contextlib
import logging
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lazyfs.cli.configured import Given
from lazyfs.cli.servers import server_options
from lazyfs.cli.words import absolute
from lazyfs.core import address
from lazyfs.core.errors import UsageError
from lazyfs.core.options import (
    AUTO,
    CACHE_ENDINGS,
    EACH_REQUEST,
    CacheOptions,
    DaemonOptions,
    ImageOptions,
    LogOptions,
    MountOptions,
    OnChange,
    Prefetch,
    PreloadOptions,
    ReadAheadLimit,
    StackOptions,
)
from lazyfs.images import chain

if TYPE_CHECKING:
    from lazyfs.formats.tree import Tree

T = TypeVar("T")


def hide_secrets(words: Sequence[str]) -> None:
    """Hide credentials, which URLs and headers may contain.

    ``ps`` shows ``lazyfs`` and ``words`` instead of our command line, and core dumps contain no
    memory (core(5)).
    """
    from setproctitle import setproctitle

    setproctitle(" ".join(["lazyfs", *(address.shown(word) for word in words)]))
    with contextlib.suppress(OSError):  # a kernel without core dumps has no such file
        Path("/proc/self/coredump_filter").write_text("0")


def mount_options(
    given: Given, images: tuple[ImageOptions, ...], fuse: tuple[str, ...]
) -> MountOptions:
    """The options of a mount, from the command line. Raises UsageError."""
    return MountOptions(
        **vars(daemon_options(given, images)),
        mountpoint=Path(os.path.realpath(given.where[-1])),
        fuse=fuse,
    )


def daemon_options(given: Given, images: tuple[ImageOptions, ...]) -> DaemonOptions:
    """The options of ``add_options``, from the command line. Raises UsageError."""
    return DaemonOptions(
        images=tuple(_at_its_host(image, given) for image in images),
        cache=_cache(given, len(images)),
        log=_log(given),
        timeout=given.timeout,
        nbd_fixed=given.nbd_fixed,
        readahead=given.readahead,
        prefetch=Prefetch(given.prefetch),
        fill=_fill(given),
        rate=given.rate,
        preload=_preload(given, len(images)),
        foreground=given.foreground,
        system=given.system,
    )


def stack_options(given: Given, where: str, *, choose_partition: bool = False) -> StackOptions:
    """The options of a command that looks into the image at ``where``, a URL or a path.

    ``choose_partition``: see ``ImageOptions``. Raises UsageError.
    """
    image = ImageOptions(where, where, choose_partition=choose_partition)
    if "://" in where:
        image = _at_its_host(replace(image, name=_name_of(where)), given)
    return StackOptions(
        images=(image,),
        cache=_cache(given, 1),
        timeout=given.timeout,
        nbd_fixed=given.nbd_fixed,
        prefetch=Prefetch.METADATA,
        readahead=ReadAheadLimit(size=0),  # these commands know, and request, what they need
    )


def _at_its_host(image: ImageOptions, given: Given) -> ImageOptions:
    """The image, with the options configured for its host."""
    host = address.parse(image.url).hostname or ""
    return replace(image, server=server_options(given.at(host)))


def named_images(where: Sequence[str], names: Sequence[str]) -> tuple[ImageOptions, ...]:
    """The images named before a mount point. Raises UsageError."""
    if len(where) < 2 or "://" in where[-1]:
        raise UsageError("a URL and a mount point are needed", "lazyfs URL MOUNTPOINT")
    return images_at(where[:-1], names, "the mount point comes last")


def images_at(
    wanted: Sequence[str], names: Sequence[str], cure: str = "a URL begins like https://"
) -> tuple[ImageOptions, ...]:
    """Images by their URLs, each with a unique name. Raises UsageError.

    ``cure``: the advice for a word that is not a URL.
    """
    for url in wanted:
        if "://" not in url:
            raise UsageError(f"{address.shown(url)!r} is not a URL", cure)
    if len(names) > len(wanted):
        raise UsageError("there are more names than URLs", "give --name at most once for each URL")
    for url in wanted:
        if wanted.count(url) > 1:
            raise UsageError(f"{address.shown(url)} is given twice", "once is enough")
    named = [*map(_file_name, names), *map(_name_of, wanted[len(names) :])]
    for url in wanted[: len(names)]:
        _name_of(url)  # to validate it
    for name in named:
        if named.count(name) > 1:
            raise UsageError(f"two images would be called {name}", "give a --name for each URL")
    return tuple(ImageOptions(url, name) for url, name in zip(wanted, named, strict=True))


def _name_of(url: str) -> str:
    """The file name of a URL's view. Raises UsageError."""
    base, fragment = address.split_fragment(url)
    return chain.named(address.file_name(base), chain.parse(fragment))


def _file_name(name: str) -> str:
    if name in ("", ".", "..") or "/" in name or "\0" in name or len(os.fsencode(name)) > 255:
        raise UsageError(f"{name!r} cannot be a file name", "give one without a slash")
    return name


def _fill(given: argparse.Namespace) -> bool:
    if given.rate and not given.fill:
        raise UsageError("--rate is for --fill", "give both")
    if given.fill and given.no_cache:
        raise UsageError("--fill needs a cache to fill", "leave out --no-cache")
    return bool(given.fill)


def _preload(given: argparse.Namespace, images: int) -> PreloadOptions:
    if images > 1 and (given.record or given.profile):
        raise UsageError("--record and --profile are for one image", "mount images one by one")
    if given.no_cache and (given.preload or given.profile):
        raise UsageError("--preload and --profile need a cache", "leave out --no-cache")
    if given.profile_any and not given.profile:
        raise UsageError("--profile-any is for --profile", "give both")
    profile = AUTO if given.profile == str(AUTO) else given.profile and absolute(given.profile)
    return PreloadOptions(
        patterns=tuple(given.preload),
        profile=profile or None,
        any_version=given.profile_any,
        record=absolute(given.record) if given.record else None,
    )


def _cache(given: argparse.Namespace, images: int) -> CacheOptions:
    if (given.bitmap is None) != (given.cache is None):
        raise UsageError("--bitmap and --cache go together", "give both files, or --cache-dir")
    if given.cache is not None and images > 1:
        raise UsageError("--bitmap and --cache hold one image only", "use --cache-dir")
    files = None
    if given.cache is not None:
        files = (absolute(given.bitmap), absolute(given.cache))
        beside = {files[1].with_name(files[1].name + end) for end in ("", *CACHE_ENDINGS)}
        if files[0] in beside:
            raise UsageError(f"--bitmap cannot be {files[0]}, which --cache uses", "name another")
    if given.cache_size and (files or given.no_cache):
        raise UsageError("--cache-size is for a cache directory", "give --cache-dir with it")
    return CacheOptions(
        directory=cache_directory(given.cache_dir),
        files=files,
        memory_only=given.no_cache,
        block_size=given.block_size,
        limit=given.cache_size,
        min_free=given.min_free or None,
        on_change=OnChange(given.on_change),
    )


def cache_directory(named: str | None) -> Path:
    """The directory of caches: the named one, or the user's default."""
    if named:
        return absolute(named)
    import platformdirs

    try:
        return platformdirs.user_cache_path("lazyfs")
    except RuntimeError as error:
        raise UsageError("there is no home directory for a cache", "give --cache-dir") from error


def _log(given: argparse.Namespace) -> LogOptions:
    level = logging.ERROR if given.quiet else logging.INFO
    if given.verbose:
        level = logging.DEBUG if given.verbose == 1 else EACH_REQUEST
    file = absolute(given.log_file) if given.log_file else None
    return LogOptions(level, file, given.log_format == "json")


def log_to_terminal() -> None:
    """Log warnings to stderr, for a command that runs in the foreground."""
    from lazyfs.daemon import logs

    logs.use(logs.terminal(LogOptions(logging.WARNING)), logging.WARNING)


def tree_in(where: str, options: StackOptions) -> "Tree":
    """The tree in the image at ``where``. Raises LazyfsError."""
    from lazyfs.images.access import OpenImage, with_image
    from lazyfs.images.catalogs import naming, tree_of

    async def tree(image: OpenImage) -> "Tree":
        with naming(image.name):
            return await tree_of(image.device, image.catalog_file)

    return with_image(where, options, tree)

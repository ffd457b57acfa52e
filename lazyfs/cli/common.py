"""The options that commands share, and what they mean: from words to ``MountOptions``."""

import argparse
import contextlib
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from lazyfs import __version__
from lazyfs.cli.parser import Parser
from lazyfs.errors import UsageError
from lazyfs.options import (
    AUTO,
    CACHE_ENDINGS,
    CacheOptions,
    DaemonOptions,
    HttpOptions,
    ImageOptions,
    LogOptions,
    MountOptions,
    OnChange,
    PreloadOptions,
    ReadAheadLimit,
    StackOptions,
    parse_block_size,
    parse_cache_size,
    parse_duration,
    parse_rate,
    parse_readahead,
    parse_size,
)
from lazyfs.sources import urls

if TYPE_CHECKING:
    from lazyfs.iso.tree import Tree

T = TypeVar("T")

USER_AGENT = f"lazyfs/{__version__}"

# Header fields by which ranges are asked for, answers are framed, and connections are kept.
# (Host is the user's, as with curl: it goes with the URL's own host only.)
_OURS = frozenset(
    {
        "accept-encoding",
        "connection",
        "content-length",
        "expect",
        "if-match",
        "if-modified-since",
        "if-none-match",
        "if-range",
        "if-unmodified-since",
        "keep-alive",
        "proxy-connection",
        "range",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


def hide_secrets(words: Sequence[str]) -> None:
    """Keep logins, which URLs and headers may hold, to ourselves.

    ``ps`` shows ``lazyfs`` and ``words`` instead of our command line; and no memory goes into core
    dumps (core(5)).
    """
    from setproctitle import setproctitle

    setproctitle(" ".join(["lazyfs", *(urls.shown(word) for word in words)]))
    with contextlib.suppress(OSError):  # a kernel that writes no core dumps has no such file
        Path("/proc/self/coredump_filter").write_text("0")


def add_options(parser: Parser) -> None:
    """What can be said of how images are fetched, cached and logged while they are mounted."""
    add = parser.add_argument
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr")
    add("--system", action="store_true", help="a root filesystem will stand on it: see lazyfs(1)")
    add_cache_options(parser)
    fetching = parser.add_argument_group("fetching")
    add = fetching.add_argument
    add("--readahead", metavar="AMOUNT", type=as_type(parse_readahead), default=ReadAheadLimit(),
        help="seconds of throughput (4s, the default) or a size (8M); 0 for none")  # fmt: skip
    add("--fill", action="store_true", help="fetch all the rest too, without delaying readers")
    add("--rate", metavar="RATE", type=as_type(parse_rate),
        help="at most so fast: 10M/s (with --fill)")  # fmt: skip
    add("--preload", metavar="GLOB", action="append", default=[],
        help="fetch these files of an ISO first; see lazyfs(1)")  # fmt: skip
    add(
        "--profile",
        metavar="FILE",
        help="fetch first what an earlier run used (auto: URL.lazyprofile)",
    )
    add("--profile-any", action="store_true", help="also if it is of another version of the image")
    add("--record", metavar="FILE", help="write down what is used, as a profile")
    add_server_options(parser)
    logging_ = parser.add_argument_group("logging")
    add = logging_.add_argument
    add("-v", "--verbose", action="store_true", help="log more")
    add("-q", "--quiet", action="store_true", help="log errors only")
    add("--log-file", metavar="FILE", help="log there, not to syslog")
    add("--log-format", choices=("text", "json"), default="text", help="(default: text)")


def add_image(parser: Parser) -> None:
    """The image that a command looks into."""
    parser.add_argument(
        "image", metavar="IMAGE", help="a URL, or a file: on a mount of lazyfs, too"
    )


def add_source_options(parser: Parser) -> None:
    """What can be said of how an image is read that is not mounted."""
    add_cache_options(parser)
    add_server_options(parser)


def add_cache_options(parser: Parser) -> None:
    add = parser.add_argument_group("cache").add_argument
    add("--cache-dir", metavar="DIR", help="where caches are kept (default: XDG's cache directory)")
    add("--bitmap", metavar="FILE", help="with --cache: the cache of one image in two named files")
    add("--cache", metavar="FILE", help="with --bitmap: the file that holds the image's data")
    add("--no-cache", action="store_true", help="keep little, in memory only")
    add("--cache-size", metavar="SIZE", type=as_type(parse_cache_size),
        help="what all caches in DIR may take together (default: no limit)")  # fmt: skip
    add("--min-free", metavar="SIZE", type=as_type(parse_size),
        help="leave so much of the cache's disk free (default: 0)")  # fmt: skip
    add("--on-change", choices=[choice.value for choice in OnChange], default="refetch",
        help="if another version of the image is cached (default: refetch)")  # fmt: skip
    add("--block-size", metavar="SIZE", type=as_type(parse_block_size),
        help="4K to 1M (default: 32K; 8K with --profile)")  # fmt: skip


def add_server_options(parser: Parser) -> None:
    add = parser.add_argument_group("server").add_argument
    add("--connections", metavar="N", type=as_type(_connections), default=4,
        help="a host (default: 4)")  # fmt: skip
    add("--timeout", metavar="SECONDS", type=as_type(parse_duration), default=60.0,
        help="until a read fails; 0 for never (default: 60)")  # fmt: skip
    add("--header", metavar="'K: V'", action="append", default=[], type=as_type(_header),
        help="send this header field too (may be repeated)")  # fmt: skip
    add("--netrc", action="store_true", help="take logins from ~/.netrc")
    add("--user-agent", default=USER_AGENT, type=as_type(_field_value), help=argparse.SUPPRESS)
    add("--proxy", metavar="URL", help="(default: http_proxy, https_proxy, no_proxy)")
    add("--cacert", metavar="FILE", type=absolute, help="trust the certificates in FILE")
    add("--insecure", action="store_true", help="trust any certificate")
    add("--nbd-fixed", action="store_true", help="an NBD export never changes: keep its cache")
    add("--insecure-redirects", action="store_true", help="follow redirects from https to http")


def mount_options(
    given: argparse.Namespace, images: tuple[ImageOptions, ...], fuse: tuple[str, ...]
) -> MountOptions:
    """What was given, as the rest of lazyfs takes it. Raises UsageError."""
    return MountOptions(
        **vars(daemon_options(given, images)),
        mountpoint=Path(os.path.realpath(given.where[-1])),
        fuse=fuse,
    )


def daemon_options(given: argparse.Namespace, images: tuple[ImageOptions, ...]) -> DaemonOptions:
    """What was given of ``add_options``. Raises UsageError."""
    return DaemonOptions(
        images=images,
        cache=_cache(given, len(images)),
        log=_log(given),
        http=_http(given),
        timeout=given.timeout,
        nbd_fixed=given.nbd_fixed,
        readahead=given.readahead,
        fill=_fill(given),
        rate=given.rate,
        preload=_preload(given, len(images)),
        foreground=given.foreground,
        system=given.system,
    )


def stack_options(given: argparse.Namespace, where: str) -> StackOptions:
    """What was given to a command that looks into the image at ``where``, a URL or a path.

    Raises UsageError.
    """
    images: tuple[ImageOptions, ...] = ()
    if "://" in where:
        urls.parse(where)
        images = (ImageOptions(where, urls.file_name(where)),)
    return StackOptions(
        images=images,
        cache=_cache(given, 1),
        http=_http(given),
        timeout=given.timeout,
        nbd_fixed=given.nbd_fixed,
        readahead=ReadAheadLimit(size=0),  # what will be wanted is known, and asked for
    )


def named_images(where: Sequence[str], names: Sequence[str]) -> tuple[ImageOptions, ...]:
    """The images that are named in front of a mount point. Raises UsageError."""
    if len(where) < 2 or "://" in where[-1]:
        raise UsageError("a URL and a mount point are needed", "lazyfs URL MOUNTPOINT")
    return images_at(where[:-1], names, "the mount point comes last")


def images_at(
    wanted: Sequence[str], names: Sequence[str], cure: str = "a URL begins like https://"
) -> tuple[ImageOptions, ...]:
    """Images by their URLs, each with a name of its own. Raises UsageError.

    ``cure``: what to do about what is no URL.
    """
    for url in wanted:
        if "://" not in url:
            raise UsageError(f"{urls.shown(url)!r} is not a URL", cure)
        urls.parse(url)
    if len(names) > len(wanted):
        raise UsageError("there are more names than URLs", "give --name at most once for each URL")
    for url in wanted:
        if wanted.count(url) > 1:
            raise UsageError(f"{urls.shown(url)} is given twice", "once is enough")
    named = [*map(_file_name, names), *map(urls.file_name, wanted[len(names) :])]
    for name in named:
        if named.count(name) > 1:
            raise UsageError(f"two images would be called {name}", "give a --name for each URL")
    return tuple(ImageOptions(url, name) for url, name in zip(wanted, named, strict=True))


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


def absolute(path: str) -> Path:
    """The path as it is now: the daemon works in another directory."""
    return Path(os.path.abspath(path))


def cache_directory(named: str | None) -> Path:
    """Where caches are: the directory that was named, or the user's own."""
    if named:
        return absolute(named)
    import platformdirs

    try:
        return platformdirs.user_cache_path("lazyfs")
    except RuntimeError as error:
        raise UsageError("there is no home directory for a cache", "give --cache-dir") from error


def _http(given: argparse.Namespace) -> HttpOptions:
    return HttpOptions(
        connections=given.connections,
        # A read whose server falls silent has time to ask again, over another connection.
        stall=min(HttpOptions.stall, given.timeout / 3 or HttpOptions.stall),
        headers=tuple(given.header),
        netrc=given.netrc,
        user_agent=given.user_agent,
        proxy=given.proxy,
        cacert=given.cacert,
        insecure=given.insecure,
        insecure_redirects=given.insecure_redirects,
    )


def _log(given: argparse.Namespace) -> LogOptions:
    level = logging.DEBUG if given.verbose else logging.ERROR if given.quiet else logging.INFO
    file = absolute(given.log_file) if given.log_file else None
    return LogOptions(level, file, given.log_format == "json")


def _connections(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 64:
        raise UsageError(f"{text!r} connections cannot be used", "give a number from 1 to 64")
    return int(text)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise UsageError("a --header is not one", "write it as 'Name: value'")
    if name.lower() in _OURS:
        raise UsageError(f"--header cannot set {name}: it belongs to lazyfs", "leave it out")
    return name, _field_value(value)


def _field_value(text: str) -> str:
    """What may stand in a header field (RFC 9110 section 5.5), as far as it can be sent."""
    value = text.strip(" \t")
    if not all(c.isprintable() or c == "\t" for c in value) or not value.isascii():
        raise UsageError("a header has characters that cannot be sent", "leave them out")
    return value


def as_type(parse_text: Callable[[str], T]) -> Callable[[str], T]:
    """``parse_text`` as an argparse type: it would hide the message of any error but its own."""

    def convert(text: str) -> T:
        try:
            return parse_text(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert


def log_to_terminal() -> None:
    """Warnings of a command that runs in the foreground go to stderr."""
    from lazyfs import logs

    logs.use(logs.terminal(LogOptions(logging.WARNING)), logging.WARNING)


def tree_in(where: str, options: StackOptions) -> "Tree":
    """The tree of the ISO image at ``where``. Raises LazyfsError."""
    from lazyfs.access import OpenImage, with_image
    from lazyfs.catalogs import naming, tree_of

    async def tree(image: OpenImage) -> "Tree":
        with naming(image.name):
            return await tree_of(image.device, image.notebook)

    return with_image(where, options, tree)

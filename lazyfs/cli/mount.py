"""``lazyfs URL... MOUNTPOINT``: options in, a mount out.

Every option can be written as a mount option too (``--cache-dir DIR`` is ``-o cache_dir=DIR``), so
that mount(8), fstab and systemd can say all that the command line can. ``-o`` is therefore unfolded
into plain arguments first, and one parser sees them all.
"""

import argparse
import logging
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from lazyfs import __version__
from lazyfs.cli import COMMANDS, report
from lazyfs.cli.parser import Parser
from lazyfs.errors import UsageError
from lazyfs.options import (
    CACHE_ENDINGS,
    CacheOptions,
    HttpOptions,
    ImageOptions,
    LogOptions,
    MountOptions,
    ReadAheadLimit,
    parse_block_size,
    parse_duration,
    parse_rate,
    parse_readahead,
)
from lazyfs.sources import urls

T = TypeVar("T")

USER_AGENT = f"lazyfs/{__version__}"

# What mount(8) and fuse(8) know, and fusermount3 or the kernel takes as it is.
_PASSED_ON = frozenset(
    {"allow_other", "allow_root", "auto_unmount", "dev", "nodev", "suid", "nosuid", "exec"}
    | {"noexec", "atime", "noatime", "dirsync", "sync", "async"}
)
# What means nothing to a mounted filesystem: it is for mount(8), systemd and fstab themselves; and
# "rw", which mount(8) adds on its own account.
_IGNORED = re.compile(
    r"ro|rw|defaults|auto|noauto|user|users|nouser|owner|group|_netdev|nofail|relatime|norelatime|"
    r"strictatime|lazytime|(x-|X-|comment=|context=|uhelper=|helper=).*"
)

_CLUSTER = re.compile(r"-([fvq]*)o(.*)", re.DOTALL)  # "-o", "-oro", "-fo"

_USAGE = "lazyfs [OPTION]... URL... MOUNTPOINT\n       lazyfs COMMAND [ARGUMENT]..."
_EXAMPLE = """\
example:
  lazyfs https://host/debian.iso /mnt/img     the image appears as /mnt/img/debian.iso
  mount -o loop,ro /mnt/img/debian.iso /media
  lazyfs umount /mnt/img
"""


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    hide_secrets(options)
    # Only here: --help and --version must not wait for these imports.
    from lazyfs.mount import mount

    return mount(options, report)


def hide_secrets(options: MountOptions) -> None:
    """Replace what ``ps`` shows of our command line: URLs and headers may hold a login."""
    from setproctitle import setproctitle

    shown = [urls.shown(image.url) for image in options.images]
    setproctitle(" ".join(["lazyfs", *shown, str(options.mountpoint)]))


def parse(arguments: Sequence[str]) -> MountOptions:
    """The options of one mount. Raises UsageError."""
    passed_on: list[str] = []
    parser = _parser()
    given = parser.parse_intermixed_args(_unfold(list(arguments), passed_on, parser))
    return MountOptions(
        images=_images(given.where, given.name),
        mountpoint=Path(os.path.realpath(given.where[-1])),
        cache=_cache(given),
        log=_log(given),
        http=_http(given),
        timeout=given.timeout,
        readahead=given.readahead,
        fill=_fill(given),
        rate=given.rate,
        foreground=given.foreground,
        fuse=tuple(sorted({*passed_on, *_fuse_flags(given)})),
    )


def _parser() -> Parser:
    commands = "\n".join(f"  {name:<8} {what}" for name, what in COMMANDS.items())
    parser = Parser(
        "lazyfs",
        "Show remote images as local files, fetched as they are read.",
        f"commands:\n{commands}\n\n{_EXAMPLE}",
        _USAGE,
    )
    add = parser.add_argument
    parser.add_argument("-V", "--version", action="version", version=f"lazyfs {__version__}")
    add("where", nargs="+", metavar="URL... MOUNTPOINT", help=argparse.SUPPRESS)
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr")
    add("-o", metavar="OPTS", help="mount options; all options below too, as in -o cache_dir=DIR")
    add("--name", action="append", default=[], help="the image's file name (once for each URL)")
    cache = parser.add_argument_group("cache")
    add = cache.add_argument
    add("--cache-dir", metavar="DIR", help="where caches are kept (default: XDG's cache directory)")
    add("--bitmap", metavar="FILE", help="with --cache: the cache of one image in two named files")
    add("--cache", metavar="FILE", help="with --bitmap: the file that holds the image's data")
    add("--no-cache", action="store_true", help="keep little, in memory only")
    add("--block-size", metavar="SIZE", type=_as(parse_block_size), help="4K to 1M (default: 32K)")
    fetching = parser.add_argument_group("fetching")
    add = fetching.add_argument
    add("--readahead", metavar="AMOUNT", type=_as(parse_readahead), default=ReadAheadLimit(),
        help="seconds of throughput (4s, the default) or a size (8M); 0 for none")  # fmt: skip
    add("--fill", action="store_true", help="fetch all the rest while nobody waits for anything")
    add("--rate", metavar="RATE", type=_as(parse_rate), help="at most so fast: 10M/s (with --fill)")
    server = parser.add_argument_group("server")
    add = server.add_argument
    add("--connections", metavar="N", type=_as(_connections), default=4, help="a host (default: 4)")
    add("--timeout", metavar="SECONDS", type=_as(parse_duration), default=60.0,
        help="until a read fails; 0 for never (default: 60)")  # fmt: skip
    add("--header", metavar="'K: V'", action="append", default=[], type=_as(_header),
        help="send this header field too (may be repeated)")  # fmt: skip
    add("--netrc", action="store_true", help="take logins from ~/.netrc")
    add("--user-agent", default=USER_AGENT, type=_as(_field_value), help=argparse.SUPPRESS)
    add("--proxy", metavar="URL", help="(default: http_proxy, https_proxy, no_proxy)")
    add("--cacert", metavar="FILE", type=_absolute, help="trust the certificates in FILE")
    add("--insecure", action="store_true", help="trust any certificate")
    add("--insecure-redirects", action="store_true", help="follow redirects from https to http")
    access = parser.add_argument_group("access and logging")
    add = access.add_argument
    add("--allow-other", action="store_true", help="let other users read the mount")
    add("--allow-root", action="store_true", help="let root read the mount")
    add("-v", "--verbose", action="store_true", help="log more")
    add("-q", "--quiet", action="store_true", help="log errors only")
    add("--log-file", metavar="FILE", help="log there, not to syslog")
    add("--log-format", choices=("text", "json"), default="text", help="(default: text)")
    return parser


def _unfold(arguments: list[str], passed_on: list[str], parser: Parser) -> list[str]:
    """Replace each ``-o A,B=C`` by the options that it stands for.

    What fusermount3 or the kernel has to see goes to ``passed_on``.
    """
    plain: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        cluster = _CLUSTER.fullmatch(argument)
        if not cluster:
            plain.append(argument)
            continue
        plain += (f"-{flag}" for flag in cluster[1])
        mount_options = cluster[2] or next(rest, None)
        if mount_options is None:
            raise UsageError("-o needs mount options", "write them like -o allow_other,timeout=5")
        for option in _split(mount_options):
            if option in _PASSED_ON:
                passed_on.append(option)
            elif not _IGNORED.fullmatch(option):
                plain.append(_as_argument(option, parser))
    return plain


def _as_argument(option: str, parser: Parser) -> str:
    """``cache_dir=DIR`` as ``--cache-dir=DIR``."""
    name, equals, value = option.partition("=")
    argument = f"--{name.replace('_', '-')}"
    takes_value = parser.takes_value(argument)
    if takes_value is None:
        # What is not a word may be part of a secret, torn apart at a comma.
        shown = f"mount option {name}" if re.fullmatch(r"[a-z_-]+", name) else "a mount option"
        raise UsageError(
            f"{shown} is unknown", "see lazyfs --help; write a comma in a value as \\,"
        )
    if takes_value != bool(equals):
        wrong = "needs a value" if takes_value else "takes no value"
        raise UsageError(f"mount option {name} {wrong}", "see lazyfs --help")
    return f"{argument}{equals}{value}"


def _split(mount_options: str) -> list[str]:
    """Split at commas; a backslash takes the next character as it is, as libfuse has it."""
    parts = [""]
    characters = iter(mount_options)
    for character in characters:
        if character == ",":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return [part for part in parts if part]


def _images(where: Sequence[str], names: Sequence[str]) -> tuple[ImageOptions, ...]:
    wanted = where[:-1]
    if not wanted or "://" in where[-1]:
        raise UsageError("a URL and a mount point are needed", "lazyfs URL MOUNTPOINT")
    for url in wanted:
        if "://" not in url:
            raise UsageError(f"{urls.shown(url)!r} is not a URL", "the mount point comes last")
        urls.parse(url)
    if len(names) > len(wanted):
        raise UsageError("there are more names than URLs", "give --name at most once for each URL")
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


def _cache(given: argparse.Namespace) -> CacheOptions:
    if (given.bitmap is None) != (given.cache is None):
        raise UsageError("--bitmap and --cache go together", "give both files, or --cache-dir")
    if given.cache is not None and len(given.where) > 2:
        raise UsageError("--bitmap and --cache hold one image only", "use --cache-dir")
    files = None
    if given.cache is not None:
        files = (_absolute(given.bitmap), _absolute(given.cache))
        beside = {files[1].with_name(files[1].name + end) for end in ("", *CACHE_ENDINGS)}
        if files[0] in beside:
            raise UsageError(f"--bitmap cannot be {files[0]}, which --cache uses", "name another")
    directory = _absolute(given.cache_dir) if given.cache_dir else _default_cache()
    return CacheOptions(directory, files, given.no_cache, given.block_size)


def _absolute(path: str) -> Path:
    """The path as it is now: the daemon works in another directory."""
    return Path(os.path.abspath(path))


def _default_cache() -> Path:
    import platformdirs

    return platformdirs.user_cache_path("lazyfs")


def _http(given: argparse.Namespace) -> HttpOptions:
    return HttpOptions(
        connections=given.connections,
        stall=min(HttpOptions.stall, given.timeout or HttpOptions.stall),
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
    file = _absolute(given.log_file) if given.log_file else None
    return LogOptions(level, file, given.log_format == "json")


def _fuse_flags(given: argparse.Namespace) -> list[str]:
    return [flag for flag in ("allow_other", "allow_root") if getattr(given, flag)]


def _connections(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 64:
        raise UsageError(f"{text!r} connections cannot be used", "give a number from 1 to 64")
    return int(text)


def _header(text: str) -> tuple[str, str]:
    name, colon, value = text.partition(":")
    if not colon or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
        raise UsageError("a --header is not one", "write it as 'Name: value'")
    return name, _field_value(value)


def _field_value(text: str) -> str:
    """What may stand in a header field (RFC 9110 section 5.5), as far as it can be sent."""
    value = text.strip(" \t")
    if not all(c.isprintable() or c == "\t" for c in value) or not value.isascii():
        raise UsageError("a header has characters that cannot be sent", "leave them out")
    return value


def _as(parse_text: Callable[[str], T]) -> Callable[[str], T]:
    """``parse_text`` as an argparse type: it would hide the message of any error but its own."""

    def convert(text: str) -> T:
        try:
            return parse_text(text)
        except UsageError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return convert

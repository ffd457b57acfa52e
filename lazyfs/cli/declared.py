"""The options and arguments that several commands share."""

from lazyfs.cli.helptext import Rare
from lazyfs.cli.parser import Parser
from lazyfs.cli.servers import add_server_options
from lazyfs.cli.words import as_type
from lazyfs.core.options import (
    OnChange,
    Prefetch,
    ReadAheadLimit,
    parse_block_size,
    parse_cache_size,
    parse_rate,
    parse_readahead,
    parse_size,
)


def add_options(parser: Parser) -> None:
    """Add the options of daemons: fetching, caching, logging."""
    add = parser.add_argument
    add("-f", "--foreground", action="store_true", help="stay in the foreground, log to stderr")
    add("--system", action="store_true", help=Rare("a root filesystem will stand on it"))
    add_cache_options(parser)
    add = parser.add_argument_group("fetching").add_argument
    add("--readahead", metavar="AMOUNT", type=as_type(parse_readahead), default=ReadAheadLimit(),
        help=Rare("how far, in time (default: 250ms) or as a size; 0 for none"))  # fmt: skip
    add("--prefetch", choices=[choice.value for choice in Prefetch], default="auto",
        help=Rare("what to fetch unasked: none, metadata, auto (default) or eager"))  # fmt: skip
    add("--fill", action="store_true", help="fetch all the rest too, without delaying readers")
    add("--rate", metavar="RATE", type=as_type(parse_rate),
        help=Rare("with --fill: at most so fast, like 10M/s"))  # fmt: skip
    add("--preload", metavar="GLOB", action="append", default=[],
        help=Rare("fetch these files of an ISO first (may be repeated)"))  # fmt: skip
    add("--profile", metavar="FILE", help="fetch first what an earlier run used, by its profile")
    add("--profile-any", action="store_true",
        help=Rare("use the profile also if it is of another version of the image"))  # fmt: skip
    add("--record", metavar="FILE", help=Rare("write down what is used, as a profile"))
    add_server_options(parser)
    add = parser.add_argument_group("logging").add_argument
    add("-v", "--verbose", action="count", default=0, help="log more; -vv: each request")
    add("-q", "--quiet", action="store_true", help=Rare("log errors only"))
    add("--log-file", metavar="FILE", help=Rare("log there, not to syslog"))
    add("--log-format", choices=("text", "json"), default="text",
        help=Rare("lines for people, or JSON (default: text)"))  # fmt: skip


def add_image(parser: Parser) -> None:
    """Add the argument for the image that a command looks into."""
    parser.add_argument(
        "image", metavar="IMAGE", help="a URL, or a file: on a mount of lazyfs, too"
    )


def add_source_options(parser: Parser) -> None:
    """Add the options for reading an image that is not mounted."""
    add_cache_options(parser)
    add_server_options(parser)


def add_cache_options(parser: Parser) -> None:
    add = parser.add_argument_group("cache").add_argument
    add("--cache-dir", metavar="DIR", help="where caches are kept (default: the user's own)")
    add("--bitmap", metavar="FILE",
        help=Rare("with --cache: the cache of one image in two named files"))  # fmt: skip
    add("--cache", metavar="FILE",
        help=Rare("with --bitmap: the file that holds the image's data"))  # fmt: skip
    add("--no-cache", action="store_true", help=Rare("keep nothing on disk, and little in memory"))
    add("--cache-size", metavar="SIZE", type=as_type(parse_cache_size),
        help="what all caches in DIR may take together, like 10G")  # fmt: skip
    add("--min-free", metavar="SIZE", type=as_type(parse_size),
        help=Rare("leave so much of the cache's disk free (default: 0)"))  # fmt: skip
    add("--on-change", choices=[choice.value for choice in OnChange], default="refetch",
        help=Rare("when another version of the image is cached (default: refetch)"))  # fmt: skip
    add("--block-size", metavar="SIZE", type=as_type(parse_block_size),
        help=Rare("of a new cache: 4K to 1M (default: 32K; 8K with --profile)"))  # fmt: skip

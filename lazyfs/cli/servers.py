"""The server options: from the parsed command line to ``ServerOptions``."""

import argparse
from pathlib import Path

from lazyfs import __version__
from lazyfs.cli.helptext import Rare
from lazyfs.cli.parser import Parser
from lazyfs.cli.words import absolute, as_type
from lazyfs.core.errors import UsageError
from lazyfs.core.options import ServerOptions, parse_duration
from lazyfs.sources.headers import parse_header, parse_value

USER_AGENT = f"lazyfs/{__version__}"


def add_server_options(parser: Parser) -> None:
    add = parser.add_argument_group("server").add_argument
    add("--connections", metavar="N", type=as_type(_connections), default=4,
        help=Rare("at most so many to a host (default: 4)"))  # fmt: skip
    add("--timeout", metavar="SECONDS", type=as_type(parse_duration), default=60.0,
        help="let a read fail after so long (default: 60)")  # fmt: skip
    add("--header", metavar="FIELD", action="append", default=[], type=as_type(_header),
        help="send this header field too: 'Name: value', or @FILE")  # fmt: skip
    add("--header-command", metavar="COMMAND",
        help=Rare("send the fields that it prints; run again when refused"))  # fmt: skip
    add("--netrc", action="store_true", help=Rare("take logins from ~/.netrc"))
    add("--user-agent", metavar="TEXT", default=USER_AGENT, type=as_type(parse_value),
        help=Rare("say this as User-Agent"))  # fmt: skip
    add("--proxy", metavar="URL", help=Rare("go through this proxy (default: the environment's)"))
    add("--cacert", metavar="FILE", type=absolute, help=Rare("trust the certificates in FILE"))
    add("--insecure", action="store_true", help=Rare("trust any certificate"))
    add("--nbd-fixed", action="store_true",
        help=Rare("an NBD export never changes: keep its cache"))  # fmt: skip
    add("--insecure-redirects", action="store_true",
        help=Rare("follow redirects from https to http"))  # fmt: skip


def server_options(given: argparse.Namespace) -> ServerOptions:
    return ServerOptions(
        connections=given.connections,
        # Leaves a read time to retry over another connection if the server falls silent.
        stall=min(ServerOptions.stall, given.timeout / 3 or ServerOptions.stall),
        headers=tuple(field for field in given.header if not isinstance(field, Path)),
        header_files=tuple(file for file in given.header if isinstance(file, Path)),
        header_command=given.header_command,
        netrc=given.netrc,
        user_agent=given.user_agent,
        proxy=given.proxy,
        cacert=given.cacert,
        insecure=given.insecure,
        insecure_redirects=given.insecure_redirects,
    )


def _connections(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or not 1 <= int(text) <= 64:
        raise UsageError(f"{text!r} connections cannot be used", "give a number from 1 to 64")
    return int(text)


def _header(text: str) -> tuple[str, str] | Path:
    """A field, or the path of a file with fields. Raises UsageError."""
    return absolute(text[1:]) if text.startswith("@") else parse_header(text)

"""``lazyfs serve URL...``: serve images to NBD clients."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from lazyfs.cli.common import daemon_options, hide_secrets, images_at
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_options
from lazyfs.cli.helptext import Rare
from lazyfs.cli.output import report
from lazyfs.cli.parser import Parser
from lazyfs.cli.words import absolute, as_type
from lazyfs.core.errors import UsageError
from lazyfs.core.options import TlsOptions

if TYPE_CHECKING:
    from argparse import Namespace

_EXAMPLE = """\
example:
  lazyfs serve --unix /run/debian.sock https://host/debian.iso
  nbdcopy 'nbd+unix:///?socket=/run/debian.sock' debian.iso
  lazyfs serve https://host/disk.raw --run 'nbdinfo --map "$uri"'
"""


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    _check(given)
    options = daemon_options(given, images_at(given.where, given.name))
    hide_secrets(["serve", *(image.url for image in options.images)])
    from lazyfs.daemon.serve import ServeOptions, serve

    tls = TlsOptions(given.tls_certificates, given.tls_verify_peer, given.tls_psk)
    return serve(
        ServeOptions(
            **vars(options),
            unix=given.unix,
            tcp=given.tcp,
            single=given.single,
            command=given.run,
            tls=tls if tls.certificates or tls.keys else None,
            allow_plain=given.allow_plain,
            pid_file=given.pidfile,
        ),
        report,
    )


def _parser() -> Parser:
    parser = Parser("lazyfs serve", "Serve remote images to NBD clients.", _EXAMPLE)
    parser.add_argument("where", nargs="+", metavar="URL", help="the first is the default export")
    add = parser.add_argument
    add("--name", action="append", default=[], help=Rare("the export's name (once for each URL)"))
    add("-U", "--unix", metavar="PATH", type=absolute, help="listen on a Unix socket")
    add("--tcp", metavar="[ADDR:]PORT", type=as_type(_parse_tcp),
        help="listen on TCP (default ADDR: 127.0.0.1)")  # fmt: skip
    add("-s", "--single", action="store_true", help="serve one client on stdin and stdout")
    add("--run", metavar="COMMAND", help="end with this command, which finds us by $uri")
    add("-P", "--pidfile", metavar="FILE", type=absolute, help=Rare("write the process id there"))
    add("--tls-certificates", metavar="DIR", type=absolute, help="serve nothing without TLS")
    add("--tls-psk", metavar="FILE", type=absolute, help=Rare("the same, with keys instead"))
    add("--tls-verify-peer", action="store_true",
        help=Rare("ask clients for certificates too"))  # fmt: skip
    add("--allow-plain", action="store_true", help=Rare("serve other machines without TLS"))
    add_options(parser)
    return parser


def _check(given: "Namespace") -> None:
    """Refuse contradictory options. Raises UsageError."""
    if given.single and (given.unix or given.tcp or given.run):
        raise UsageError("-s serves stdin and nothing else", "leave out --unix, --tcp and --run")
    if given.tls_verify_peer and not given.tls_certificates:
        raise UsageError("--tls-verify-peer needs TLS", "give --tls-certificates")
    if given.tls_psk and given.tls_certificates:
        raise UsageError("keys or certificates, not both", "leave one of them out")


def _parse_tcp(text: str) -> tuple[str, int]:
    """Address and port. Raises UsageError."""
    found = re.fullmatch(r"(?:(\[[^\]]+\]|[^:\[\]]*):)?(\d{1,5})", text, re.ASCII)
    if not found or int(found[2]) > 65535:
        raise UsageError(f"{text!r} is no place to listen on", "write it like 10809 or [::1]:10809")
    address = "127.0.0.1" if found[1] is None else found[1].strip("[]")
    return address, int(found[2])

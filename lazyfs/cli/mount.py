"""``lazyfs URL... MOUNTPOINT``: mount images.

Every option can be written as a mount option too (``--cache-dir DIR`` is ``-o cache_dir=DIR``), so
that mount(8), fstab and systemd have all options of the command line. ``-o`` is therefore expanded
into plain arguments first, for a single parser.
"""

import argparse
import re
from collections.abc import Sequence
from dataclasses import replace

from lazyfs import __version__
from lazyfs.cli import configured
from lazyfs.cli.commandtable import COMMANDS, GROUPS
from lazyfs.cli.common import hide_secrets, mount_options, named_images
from lazyfs.cli.declared import add_options
from lazyfs.cli.helptext import Rare
from lazyfs.cli.output import report
from lazyfs.cli.parser import Parser, suggestion
from lazyfs.core.errors import UsageError
from lazyfs.core.options import MountOptions

# Options of mount(8) and fuse(8) that fusermount3 or the kernel accepts unchanged.
_PASSED_ON = frozenset(
    {"allow_other", "allow_root", "auto_unmount", "dev", "nodev", "suid", "nosuid", "exec"}
    | {"noexec", "atime", "noatime", "dirsync", "sync", "async"}
)
# Options for mount(8), systemd and fstab themselves, which a filesystem ignores; and "rw", which
# mount(8) adds unasked.
_IGNORED = re.compile(
    r"ro|rw|defaults|auto|noauto|user|users|nouser|owner|group|_netdev|nofail|relatime|norelatime|"
    r"strictatime|lazytime|(x-|X-|comment=|context=|uhelper=|helper=).*"
)

# mount(8) passes these to mount.lazyfs: write no mtab, and tolerate sloppy options.
_FLAGS_OF_MOUNT = frozenset({"-n", "-s"})
_CLUSTER = re.compile(r"-([fvq]*)o(.*)", re.DOTALL)  # "-o", "-oro", "-fo"

_ABOUT_COMMAS = "see lazyfs --help; write a comma in a value as \\,"
_USAGE = "lazyfs [OPTION]... URL... MOUNTPOINT\n       lazyfs COMMAND [ARGUMENT]..."
_EXAMPLE = """\
example:
  lazyfs https://host/debian.iso /mnt/img       (it is /mnt/img/debian.iso then)
  mount -o loop,ro /mnt/img/debian.iso /media
  lazyfs umount /mnt/img
"""


def main(arguments: Sequence[str]) -> int:
    options = parse(arguments)
    hide_secrets([*(image.url for image in options.images), str(options.mountpoint)])
    # Imported here, so that --help and --version need not wait.
    from lazyfs.daemon.mount import mount

    return mount(options, report)


def parse(arguments: Sequence[str]) -> MountOptions:
    """The options of one mount. Raises UsageError."""
    passed_on: list[str] = []
    parser = _parser()
    given = configured.parse(parser, _unfold(list(arguments), passed_on, parser))
    fuse = tuple(sorted({*passed_on, *_fuse_flags(given)}))
    images = named_images(given.where, given.name)
    if given.browse and len(images) > 1:
        raise UsageError("--browse is for one image", "mount images one by one")
    return replace(mount_options(given, images, fuse), browse=given.browse)


def names_in_o(parser: Parser) -> list[str]:
    """All options of ``-o`` but the ignored ones."""
    own = (name[2:].replace("-", "_") for name in parser.options() if name.startswith("--"))
    return [*own, *sorted(_PASSED_ON)]


def _parser() -> Parser:
    parser = Parser(
        "lazyfs",
        "Show remote images as local files, fetched as they are read.",
        _EXAMPLE,
        _USAGE,
        more=(_commands_in_short(), _commands_in_full()),
    )
    add = parser.add_argument
    add("where", nargs="+", metavar="URL... MOUNTPOINT", help=argparse.SUPPRESS)
    add("-o", metavar="OPTS", help="mount options; all of these too, as in -o cache_dir=DIR")
    add("--name", action="append", default=[], help="the image's file name (once for each URL)")
    add("--browse", action="store_true", help="show the tree in the ISO image, and not the image")
    add("--allow-other", action="store_true", help="let other users read the mount")
    add("--allow-root", action="store_true", help=Rare("let root read the mount"))
    add_options(parser)
    add("-V", "--version", action="version", version=f"lazyfs {__version__}",
        help="show the version")  # fmt: skip
    return parser


def _commands_in_short() -> str:
    rows = (f"  {title:<20}{', '.join(names)}" for title, names in GROUPS.items())
    return "\n".join(["commands, of which lazyfs help COMMAND says more:", *rows])


def _commands_in_full() -> str:
    rows = [f"  {name:<10}{what}" for name, what in COMMANDS.items()]
    return "\n".join(["commands, of which lazyfs help COMMAND says more:", *rows])


def _unfold(arguments: list[str], passed_on: list[str], parser: Parser) -> list[str]:
    """Replace each ``-o A,B=C`` by the options that it stands for.

    Options for fusermount3 or the kernel are appended to ``passed_on``.
    """
    plain: list[str] = []
    rest = iter(arguments)
    for argument in rest:
        if argument in _FLAGS_OF_MOUNT:
            continue
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
        # Anything but a plain word may be part of a secret that was split at a comma.
        if not re.fullmatch(r"[a-z_-]+", name):
            raise UsageError("a mount option is unknown", _ABOUT_COMMAS)
        meant = suggestion(name, names_in_o(parser))
        raise UsageError(f"mount option {name} is unknown", meant or _ABOUT_COMMAS)
    if takes_value != bool(equals):
        wrong = "needs a value" if takes_value else "takes no value"
        raise UsageError(f"mount option {name} {wrong}", "see lazyfs --help")
    return f"{argument}{equals}{value}"


def _split(mount_options: str) -> list[str]:
    """Split at commas; a backslash escapes the next character, as in libfuse."""
    parts = [""]
    characters = iter(mount_options)
    for character in characters:
        if character == ",":
            parts.append("")
        else:
            parts[-1] += next(characters, "") if character == "\\" else character
    return [part for part in parts if part]


def _fuse_flags(given: argparse.Namespace) -> list[str]:
    return [flag for flag in ("allow_other", "allow_root") if getattr(given, flag)]

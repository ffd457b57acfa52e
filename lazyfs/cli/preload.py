"""``lazyfs preload WHERE PATTERN...``: fetch parts of an image now, before the rest."""

from collections.abc import Sequence

from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.steer import parser
from lazyfs.cli.words import absolute
from lazyfs.core.errors import UsageError
from lazyfs.core.options import AUTO, format_size
from lazyfs.daemon.client import daemon_at


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_intermixed_args(arguments)
    if not given.patterns and given.profile is None:
        raise UsageError("what to preload is not said", "name files of the ISO, or give --profile")
    profile = given.profile
    if profile is not None and profile != str(AUTO):
        profile = str(absolute(profile))
    done = daemon_at(given.where).ask(
        "preload", patterns=given.patterns, profile=profile, any_version=given.profile_any
    )
    with printing():
        print(f"{format_size(done['bytes'])} are wanted now; lazyfs status shows how it goes")
    return 0


def _parser() -> Parser:
    made = parser(
        "preload", "Fetch parts of an image now, before the rest.", "/mnt/img 'casper/*.squashfs'"
    )
    made.add_argument(
        "patterns", nargs="*", metavar="PATTERN", help="files in the ISO, as for --preload"
    )
    made.add_argument("--profile", metavar="FILE", help="what an earlier run used, as for a mount")
    made.add_argument("--profile-any", action="store_true", help="also of another version")
    return made

"""``lazyfs cp IMAGE PATH... DEST``: copy files from an ISO image."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lazyfs.cli.common import hide_secrets, log_to_terminal, stack_options
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_image, add_source_options
from lazyfs.cli.parser import Parser
from lazyfs.cli.terminal import progress
from lazyfs.core.errors import UsageError

if TYPE_CHECKING:
    from lazyfs.images.access import OpenImage

_EXAMPLE = """\
example:
  lazyfs cp -r https://host/debian.iso /boot /tmp
"""


def main(arguments: Sequence[str]) -> int:
    """Copy; returns the exit code: 1 if a file could not be read."""
    given = parse(_parser(), arguments)
    hide_secrets(["cp", given.image])
    log_to_terminal()
    if len(given.paths) < 2:
        raise UsageError("what to copy, and where to?", "lazyfs cp IMAGE PATH... DEST")

    # Imported here, so that help need not wait.
    from lazyfs.images.access import with_image
    from lazyfs.images.catalogs import naming, tree_of, tree_with
    from lazyfs.images.extraction import Copier, CopyOptions

    async def copy(image: "OpenImage") -> int:
        *paths, destination = given.paths
        with naming(image.name):
            if given.recursive:
                tree = await tree_of(image.device, image.catalog_file)
            else:
                tree = await tree_with(image.device, image.catalog_file, paths)
        with progress() as bar:
            options = CopyOptions(given.recursive, given.preserve)
            copier = Copier(image.device, tree, options, bar.advance)
            bar.expect(copier.size_of(paths))
            await copier.copy(paths, Path(destination))
        return copier.failed

    failed = with_image(given.image, stack_options(given, given.image, choose_partition=True), copy)
    return int(failed > 0)


def _parser() -> Parser:
    parser = Parser(
        "lazyfs cp",
        "Copy files out of an ISO image. Only they are fetched.",
        _EXAMPLE,
        "lazyfs cp [OPTION]... IMAGE PATH... DEST",
    )
    add_image(parser)
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH... DEST", help="paths in the image; where to copy them")
    add("-r", "--recursive", action="store_true", help="directories too, and links as links")
    add("-p", "--preserve", action="store_true", help="keep modes and times (as root: owners)")
    add_source_options(parser)
    return parser

"""``lazyfs cat IMAGE PATH...``: write files of an ISO image to stdout."""

import os
import sys
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING

from lazyfs.cli.common import hide_secrets, log_to_terminal, stack_options
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_image, add_source_options
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.formats.filecontent import Content

if TYPE_CHECKING:
    from lazyfs.images.access import OpenImage

_EXAMPLE = """\
example:
  lazyfs cat https://host/debian.iso /README.txt
"""


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    hide_secrets(["cat", given.image])
    log_to_terminal()

    # Imported here, so that help need not wait.
    import trio

    from lazyfs.images.access import with_image
    from lazyfs.images.catalogs import naming, tree_with

    async def write(image: "OpenImage") -> None:
        with naming(image.name):
            tree = await tree_with(image.device, image.catalog_file, given.paths)
        for extents in [tree.extents(path) for path in given.paths]:
            async with aclosing(Content(image.device, extents).whole()) as pieces:
                async for piece in pieces:
                    await trio.to_thread.run_sync(_write, piece, abandon_on_cancel=True)

    with printing():
        with_image(given.image, stack_options(given, given.image, choose_partition=True), write)
    return 0


def _parser() -> Parser:
    parser = Parser(
        "lazyfs cat",
        "Write files of an ISO image to stdout. Only they are fetched.",
        _EXAMPLE,
    )
    add_image(parser)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="in the image")
    add_source_options(parser)
    return parser


def _write(piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]

"""``lazyfs cat IMAGE PATH...``: files of an ISO image on stdout."""

import os
import sys
from collections.abc import Sequence

import trio

from lazyfs.access import OpenImage, with_image
from lazyfs.catalogs import tree_of
from lazyfs.cli.common import add_image, add_source_options, stack_options
from lazyfs.cli.parser import Parser
from lazyfs.isofile import Content

_EXAMPLE = """\
example:
  lazyfs cat https://host/debian.iso /README.txt
"""


def main(arguments: Sequence[str]) -> int:
    given = _parser().parse_intermixed_args(arguments)

    async def write(image: OpenImage) -> None:
        tree = await tree_of(image.device, image.notebook)
        for extents in [tree.extents(path) for path in given.paths]:
            async for piece in Content(image.device, extents).whole():
                await trio.to_thread.run_sync(_write, piece)

    try:
        with_image(given.image, stack_options(given, given.image), write)
    except BrokenPipeError:  # who reads has seen enough
        return 141  # as a shell says it of a program that SIGPIPE ended
    return 0


def _parser() -> Parser:
    parser = Parser(
        "lazyfs cat",
        "Write files of an ISO image to stdout. Only they are fetched.",
        _EXAMPLE,
        "lazyfs cat [OPTION]... IMAGE PATH...",
    )
    add_image(parser)
    parser.add_argument("paths", nargs="+", metavar="PATH", help="in the image")
    add_source_options(parser)
    return parser


def _write(piece: bytes) -> None:
    view = memoryview(piece)
    while view:
        view = view[os.write(sys.stdout.fileno(), view) :]

"""``lazyfs info IMAGE``: the properties of an image and of its server."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from lazyfs.cli.common import hide_secrets, log_to_terminal, stack_options
from lazyfs.cli.configured import parse
from lazyfs.cli.declared import add_image, add_source_options
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.core.errors import ImageError
from lazyfs.core.options import format_size
from lazyfs.core.texts import printable
from lazyfs.formats import registry
from lazyfs.formats.tree import Kind, Tree

if TYPE_CHECKING:
    from lazyfs.formats.partition import Table
    from lazyfs.images.access import OpenImage
    from lazyfs.images.partitions import Found

_EXAMPLE = """\
example:
  lazyfs info https://host/debian.iso
"""


def main(arguments: Sequence[str]) -> int:
    given = parse(_parser(), arguments)
    hide_secrets(["info", given.image])
    log_to_terminal()
    # Imported here, so that help need not wait.
    from lazyfs.images.access import with_image

    found = with_image(given.image, stack_options(given, given.image), _look)
    with printing():
        if given.json:
            print(json.dumps(found, indent=2))
        for name, value in () if given.json else _rows_of(found):
            print(f"{name:<14} {printable(value)}")
    return 0


def _parser() -> Parser:
    parser = Parser(
        "lazyfs info",
        "Show what an image is, and what its server can do.",
        _EXAMPLE,
    )
    add_image(parser)
    parser.add_argument("--json", action="store_true", help="print JSON")
    add_source_options(parser)
    return parser


async def _look(image: "OpenImage") -> dict[str, Any]:
    from lazyfs.images.catalogs import tree_of
    from lazyfs.images.partitions import look_into, partition_table

    device = image.device
    identity = device.identity
    head = await device.read(0, registry.HEAD)
    filesystem = registry.filesystem_of(head)
    found: dict[str, Any] = {
        "image": image.name,
        "size": identity.size,
        "ranges": True,  # opening an image requires them
        "etag": identity.etag,
        "last_modified": identity.last_modified,
        "layers": list(image.layers),
        "kinds": [known.name for known in registry.formats_of(head)],
        "label": filesystem.label(head) if filesystem else "",
        "partition_table": None,
        "iso": None,
    }
    try:
        table = await partition_table(device)
        if table is not None:
            found["partition_table"] = _table(table, await look_into(device, table))
        if {"ISO 9660", "UDF"}.intersection(found["kinds"]):
            found["iso"] = _iso(await tree_of(device, image.catalog_file))
    except ImageError as error:
        found["problem"] = error.message
    found["cached"] = device.statistics().cached
    return found


def _table(table: "Table", found: "Sequence[Found]") -> dict[str, Any]:
    return {
        "kind": table.kind,
        "id": table.uuid,
        "sector_size": table.sector,
        "partitions": [
            {
                "number": one.partition.number,
                "start": one.partition.start,
                "size": one.partition.length,
                "type": one.partition.type,
                "type_id": one.partition.type_id,
                "name": one.partition.name,
                "uuid": one.partition.uuid,
                "kinds": list(one.content),
                "label": one.label,
            }
            for one in found
        ],
        "notes": list(table.notes),
    }


def _iso(tree: Tree) -> dict[str, Any]:
    nodes = [node for _, node in tree.walk()]
    return {
        "label": tree.volume.label,
        "names": tree.namespace,
        "files": sum(node.kind is Kind.FILE for node in nodes),
        "directories": sum(node.kind is Kind.DIRECTORY for node in nodes) - 1,
        "boot": [
            {"platform": b.platform, "bootable": b.bootable, "emulation": b.emulation}
            for b in tree.volume.boot_images
        ],
        "notes": list(tree.notes),
    }


def _rows_of(found: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for the user: names and values, in order."""
    size, cached = found["size"], found["cached"]
    rows = [
        ("image", found["image"]),
        ("size", f"{format_size(size)} ({size} bytes)"),
        ("etag", found["etag"] or ""),
        ("last modified", found["last_modified"] or ""),
        ("cached", f"{format_size(cached)} ({100 * cached // size if size else 0}%)"),
        ("layers", ", ".join(found["layers"])),
        ("content", " or ".join(found["kinds"]) or "unknown"),
        *_partition_rows(found["partition_table"]),
    ]
    iso = found["iso"]
    if not iso:
        rows.append(("label", found["label"]))
    else:
        boot = (f"{b['platform']}{'' if b['bootable'] else ' (off)'}" for b in iso["boot"])
        rows += [
            ("label", iso["label"]),
            ("names", iso["names"]),
            ("files", f"{iso['files']} in {iso['directories']} directories"),
            ("boots on", ", ".join(boot)),
            *(("note", note) for note in iso["notes"]),
        ]
    rows.append(("problem", found.get("problem", "")))
    return [(name, value) for name, value in rows if value]


def _partition_rows(table: dict[str, Any] | None) -> list[tuple[str, str]]:
    """A line per partition, in columns, like lsblk(8)."""
    if table is None:
        return []
    rows = [("NR", "START", "SIZE", "TYPE", "NAME", "CONTENT", "LABEL")]
    rows += [
        (
            str(one["number"]),
            format_size(one["start"]),
            format_size(one["size"]),
            one["type"],
            one["name"],
            " or ".join(one["kinds"]),
            one["label"],
        )
        for one in table["partitions"]
    ]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return [
        ("partitions", f"{table['kind']} {table['id']}".rstrip()),
        *(("", line) for line in lines),
        *(("note", note) for note in table["notes"]),
    ]

"""The partitions of an image: their contents, and the default one."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from lazyfs.core.device import Device, Priority
from lazyfs.core.errors import ImageError
from lazyfs.core.options import format_size
from lazyfs.formats import registry
from lazyfs.formats.partition import Partition, Table, read_table
from lazyfs.formats.reading import run
from lazyfs.formats.registry import Format
from lazyfs.images import chain
from lazyfs.images.chain import Step

log = logging.getLogger(__name__)

_MOST_LISTED = 20  # partitions that a message names


@dataclass(frozen=True)
class Found:
    """A partition and its content.

    ``content``: names of formats, the most specific first.
    ``label``: the filesystem's; empty without one.
    ``filesystem``: whether a known filesystem is in it.
    """

    partition: Partition
    content: tuple[str, ...]
    label: str
    filesystem: bool

    def __str__(self) -> str:
        """For the user: ``2 (1.5 GiB, ext2, ext3 or ext4 "root")``."""
        label = f' "{self.label}"' if self.label else ""
        what = f"{self.content[0]}{label}" if self.content else self.partition.type
        return f"{self.partition.number} ({format_size(self.partition.length)}, {what})"


async def partition_table(device: Device) -> Table | None:
    """The partition table of an image; None if it has none. Raises a LazyfsError."""
    return await run(read_table(device.identity.size), device)


async def look_into(device: Device, table: Table) -> list[Found]:
    """The content of the partitions of ``table``, by the magic numbers in their first bytes."""
    for partition in table.partitions:
        await device.ensure(partition.start, registry.HEAD, Priority.READAHEAD)
    return [await _looked_into(device, partition) for partition in table.partitions]


async def the_only_one(device: Device, name: str) -> Sequence[Step]:
    """The layer for the only partition with a filesystem, if the image is partitioned.

    Empty if the image has no partitions, or is a filesystem itself. Raises ImageError if several
    partitions have a filesystem, or none has. ``name``: the image's, for messages.
    """
    if registry.filesystem_of(await device.read(0, registry.HEAD)) is not None:
        return []
    table = await partition_table(device)
    if table is None or not table.partitions:
        return []
    found = await look_into(device, table)
    usable = [one for one in found if one.filesystem]
    if len(usable) == 1:
        log.warning("%s: partition %s is taken: nothing else in it has files", name, usable[0])
        return chain.parse(f"part={usable[0].partition.number}")
    listed = ", ".join(map(str, (usable or found)[:_MOST_LISTED]))
    number = (usable or found)[0].partition.number
    if usable:
        what = f"{name} is a disk with several filesystems, in partitions {listed}"
        raise ImageError(what, f"choose one: {name}#part={number}")
    raise ImageError(
        f"{name} is a disk without a filesystem that is known, in partitions {listed}",
        f"choose one all the same: {name}#part={number}",
    )


async def _looked_into(device: Device, partition: Partition) -> Found:
    if partition.container:
        return Found(partition, (), "", filesystem=False)
    head = await device.read(partition.start, min(registry.HEAD, partition.length))
    formats: Sequence[Format] = registry.formats_of(head)
    filesystem = registry.filesystem_of(head)
    return Found(
        partition,
        tuple(known.name for known in formats),
        filesystem.label(head) if filesystem else "",
        filesystem is not None,
    )

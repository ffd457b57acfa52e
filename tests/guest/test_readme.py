"""Commands of documents that need a kernel with NBD run as they are written."""

import shlex
import sys
from pathlib import Path

import pytest
from docutils import nodes
from docutils.core import publish_doctree
from real.servers import Nginx

from .attached import Place
from .disks import Disks
from .machine import HOST

ROOT = Path(__file__).parents[2]
DOCUMENTS = (ROOT / "README.rst", ROOT / "docs/howto/nbd.rst")


def blocks() -> list[str]:
    trees = (publish_doctree(document.read_text()) for document in DOCUMENTS)
    code = (block for tree in trees for block in tree.findall(nodes.literal_block))
    return [block.astext() for block in code if "guest" in block["classes"]]


def test_there_are_some() -> None:
    assert "lazyfs attach https://host/disk.img /dev/nbd0" in "\n".join(blocks())


@pytest.mark.parametrize("block", blocks())
def test_a_block_of_commands_does_what_it_says(
    place: Place, disks: Disks, nginx: Nginx, block: str
) -> None:
    media = f"{place.directory}/media"
    places = {
        "https://host/disk.img": nginx.url(disks.partitioned().name, HOST),
        "/media": media,
        "lazyfs ": f"{shlex.quote(sys.executable)} -m lazyfs ",
    }
    script = "\n".join(line.removeprefix("$ ") for line in block.splitlines())
    for written, here in places.items():
        script = script.replace(written, here)
    place.guest.run_well("mkdir", media)
    place.guest.run_well("modprobe", "ext4")  # which no udev does here
    place.guest.run_well("sh", "-exc", script)
    place.guest.eventually("test", "!", "-e", "/sys/block/nbd0/pid", what="nothing is attached")

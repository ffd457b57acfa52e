"""The daemon's memory, at its peak, by proc(5)."""

from pathlib import Path

import pytest

from .images import MIB, Images, terabyte_marks
from .mounts import Lab, read, same_content
from .servers import Nginx

MOST = 80 * 10**6  # bytes


def test_a_gigabyte_read_through(lab: Lab, images: Images, nginx: Nginx) -> None:
    image, _ = images.large_squashfs()
    assert image.stat().st_size >= 1 << 30
    with lab.mounted(nginx.url(image.name)) as mounted:
        assert same_content(mounted.image, image)
        assert mounted.cached() == image.stat().st_size
        assert mounted.peak_memory() < MOST


@pytest.mark.parametrize("block_size", ["4K", "64K"])
def test_a_terabyte(lab: Lab, images: Images, nginx: Nginx, block_size: str) -> None:
    image = images.terabyte()
    with lab.mounted("--block-size", block_size, nginx.url(image.name)) as mounted:
        assert mounted.image.stat().st_size == 1 << 40
        for offset in terabyte_marks():
            assert read(mounted.image, offset, 16) == b"%-16d" % offset
        for offset in range(0, 1 << 40, 5 << 30):
            assert len(_read_as_cat_does(mounted.image, offset)) == 4096
        assert mounted.peak_memory() < MOST
        assert mounted.cached() < 300 * MIB
    with lab.mounted("--block-size", block_size, nginx.url(image.name)) as mounted:
        last = terabyte_marks()[-1]
        assert read(mounted.image, last, 16) == b"%-16d" % last
        assert mounted.peak_memory() < MOST


def _read_as_cat_does(path: Path, offset: int) -> bytes:
    """4 KiB, with all that the kernel reads ahead."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(4096)

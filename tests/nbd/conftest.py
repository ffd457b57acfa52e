"""Fixtures for NBD: an image on a web server, and a place to work in."""

import hashlib
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from real.mounts import Lab
from real.servers import Nginx

from .servers import Server, serving

MIB = 1 << 20


@dataclass(frozen=True)
class Disk:
    """An image: the local file, its URL and its SHA-256."""

    path: Path
    url: str
    sum: str


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Disk]:
    """32 MiB of noise, and 512 bytes."""
    directory = tmp_path_factory.mktemp("disks")
    for place in (directory, *directory.parents[:2]):
        place.chmod(0o755)
    path = directory / "disk.raw"
    path.write_bytes(random.Random(11).randbytes(32 * MIB + 512))
    with Nginx(directory) as server:
        yield Disk(path, server.url(path.name), hashlib.sha256(path.read_bytes()).hexdigest())


@pytest.fixture
def server(lab: Lab, disk: Disk) -> Iterator[Server]:
    with serving(lab, disk.url) as running:
        yield running

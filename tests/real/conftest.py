"""Fixtures for the real thing."""

import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mounts import Lab
from .servers import Scripted


@pytest.fixture(scope="session", autouse=True)
def _need_fuse() -> None:
    if not Path("/dev/fuse").exists():
        pytest.skip("there is no /dev/fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        pytest.skip("/dev/fuse may not be opened")


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def content() -> bytes:
    """A small image: 4 MiB and 100 bytes of noise."""
    return random.Random(7).randbytes((4 << 20) + 100)


@pytest.fixture
def scripted(content: bytes) -> Iterator[Scripted]:
    """The server that answers by script, with the small image as ``image.raw``."""
    with Scripted(**{"image.raw": content}) as server:
        yield server


@pytest.fixture
def public_directory() -> Iterator[Path]:
    """An empty directory that servers which give up root, and other users, can reach."""
    directory = Path(tempfile.mkdtemp(prefix="lazyfs-public-"))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)

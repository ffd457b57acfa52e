"""Fixtures for tests in a guest. One guest is shared by all tests that leave it unchanged."""

import os
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from real.images import cache_directory
from real.servers import Nginx

from .attached import Place
from .disks import Disks
from .kernel import Kernel, debian_kernel
from .machine import Guest

IS_LONG = os.environ.get("LAZYFS_CAMPAIGN") == "long"

# These boot whole systems, which must be made first.
LONG = ["test_attach_long.py", "test_dracut.py", "test_live.py", "test_live_long.py",
        "test_netboot.py", "test_systemd.py"]  # fmt: skip

collect_ignore = [] if IS_LONG else LONG


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether to run the long form of a test."""
    return IS_LONG


@pytest.fixture(scope="session")
def disks() -> Disks:
    return Disks(cache_directory())


@pytest.fixture(scope="session")
def nginx(disks: Disks) -> Iterator[Nginx]:
    """nginx with all images; no test stops it."""
    with Nginx(disks.root) as server:
        yield server


@pytest.fixture(scope="session")
def kernel() -> Kernel:
    return debian_kernel(cache_directory())


@pytest.fixture(scope="session")
def guest(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guest]:
    with closing(Guest(kernel, tmp_path_factory.mktemp("guest"))) as guest:
        yield guest
        guest.shut_down()


@pytest.fixture
def own_guest(kernel: Kernel, tmp_path: Path) -> Iterator[Guest]:
    """A guest for one test, which may change it in any way."""
    with closing(Guest(kernel, tmp_path)) as guest:
        yield guest


@pytest.fixture
def place(guest: Guest) -> Iterator[Place]:
    with Place.made(guest) as place:
        yield place

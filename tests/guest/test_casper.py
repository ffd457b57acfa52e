"""casper with an image that stays on its server. What boots is a stand-in for casper: casper.py."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.servers import Nginx

from . import casper
from .casper_boot import boot
from .conftest import IS_LONG
from .kernel import Kernel
from .machine import HOST

LIMIT = 240.0  # seconds for a boot and all that is done in it

# Parameters, the image, and what the live system then finds on its medium.
BOOTS = [
    ("ip=dhcp netboot=http nfsroot={url}", "live.iso", "filesystem.squashfs"),
    ("lazyfs={url}", "live.squashfs", "filesystem.squashfs"),
]
LONG_BOOTS = [
    ("ip=dhcp lazyfs={url}", "live.iso", "filesystem.squashfs"),
    ("ip=dhcp netboot=https nfsroot={url}", "live.squashfs", "filesystem.squashfs"),
    ("lazyfs={url} lazyfs.frontend=nbd", "live.iso", "filesystem.squashfs"),
    ("lazyfs={url} lazyfs.frontend=nbd", "live.squashfs", "filesystem.dir"),
]

REFUSED = [
    ("lazyfs={url} lazyfs.cash=tmpfs", "lazyfs.cash", "lazyfs.cache="),
]
LONG_REFUSED = [
    ("ip=dhcp netboot=http nfsroot=10.0.2.2:/live", "nfsroot=http://server/live.iso", ""),
    ("lazyfs={url}.not", "404", ""),
    ("lazyfs={url} live-media-path=elsewhere", "has no directory elsewhere", "live-media-path="),
    ("ip=dhcp netboot=nfs nfsroot=10.0.2.2:/live", "there is no netboot=nfs", ""),
]


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with the live system as a squashfs, and as an ISO image."""
    directory = tmp_path_factory.mktemp("casper")
    directory.chmod(0o755)
    casper.make_iso(casper.make_squashfs(directory))
    return directory


@pytest.fixture(scope="module")
def initrd(kernel: Kernel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("initrd")
    runtime = casper.make_runtime(sys.executable, directory / "runtime")
    archive = directory / "initrd"
    archive.write_bytes(casper.build(kernel, runtime))
    return archive


@pytest.fixture
def server(images: Path) -> Iterator[Nginx]:
    with Nginx(images) as server:
        yield server


@pytest.mark.parametrize(("parameters", "image", "layer"), BOOTS + LONG_BOOTS * IS_LONG)
def test_it_boots_and_fetches_what_is_read(
    kernel: Kernel,
    initrd: Path,
    images: Path,
    server: Nginx,
    tmp_path: Path,
    parameters: str,
    image: str,
    layer: str,
) -> None:
    given = parameters.format(url=server.url(image, HOST))
    said = boot(kernel.image, initrd, given, tmp_path / "console", memory="1G", limit=LIMIT)
    for mark in ("up", "data are right", "and again", f"NETBOOT=lazyfs on {layer}", "going down"):
        assert f"LIVE: {mark}" in said, said
    assert re.search("LIVE: spared: @lazyfs ", said), said
    assert "PANIC" not in said
    assert server.body_bytes() < (images / image).stat().st_size * 0.8


@pytest.mark.parametrize(("parameters", "why", "instead"), REFUSED + LONG_REFUSED * IS_LONG)
def test_what_cannot_be_booted_is_said_to_a_shell(
    kernel: Kernel,
    initrd: Path,
    server: Nginx,
    tmp_path: Path,
    parameters: str,
    why: str,
    instead: str,
) -> None:
    given = parameters.format(url=server.url("live.iso", HOST))
    said = boot(kernel.image, initrd, given, tmp_path / "console", memory="1G", limit=LIMIT)
    reason = said.partition("PANIC: ")[2].splitlines()[0]
    assert why in reason
    assert instead in reason
    assert "LIVE: up" not in said

"""dracut with ``root=live:lazyfs:URL``: Debian's dracut, booted for real. Only in the long form."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.images import cache_directory
from real.servers import Nginx

from .casper_boot import boot
from .dracutroot import DracutLive, dracut_live
from .machine import HOST

LIMIT = 600.0  # seconds for a boot and all that is done in it


@pytest.fixture(scope="module")
def live() -> DracutLive:
    return dracut_live(cache_directory())


@pytest.fixture
def server(live: DracutLive) -> Iterator[Nginx]:
    with Nginx(live.directory) as server:
        yield server


@pytest.mark.parametrize("image", ["live.iso", "squashfs.img"])
def test_it_boots_to_systemd_reads_and_goes_down(
    live: DracutLive, server: Nginx, tmp_path: Path, image: str
) -> None:
    parameters = f"root=live:lazyfs:{server.url(image, HOST)} ip=dhcp rd.shell=0"
    said = boot(
        live.kernel, live.initrd, parameters, tmp_path / "console", memory="2G", limit=LIMIT
    )
    for mark in ("root is overlay", "payload is right", "python 42", "the daemon is spared"):
        assert f"LIVE: {mark}" in said, said[-4000:]
    asked = re.search(r"LIVE: down at ([\d.]+)", said)
    done = re.search(r"\[ *([\d.]+)\] reboot: Power down", said)
    assert asked
    assert done, said[-4000:]
    assert float(done[1]) - float(asked[1]) < 30
    assert server.body_bytes() < (live.directory / image).stat().st_size * 0.6


def test_a_misspelt_parameter_ends_the_boot_with_the_reason(
    live: DracutLive, server: Nginx, tmp_path: Path
) -> None:
    address = server.url("live.iso", HOST)
    # Without a shell, dracut switches the machine off.
    parameters = (
        f"root=live:lazyfs:{address} ip=dhcp lazyfs.cash=tmpfs rd.shell=0 rd.emergency=poweroff"
    )
    said = boot(
        live.kernel, live.initrd, parameters, tmp_path / "console", memory="2G", limit=LIMIT
    )
    assert re.search(r"lazyfs\.cash=tmpfs.* is wrong; there are: .*lazyfs\.cache=", said)
    assert server.request_count() == 0

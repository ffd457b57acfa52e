"""A live system whose image stays on a web server: it boots, works, and powers off clean."""

import re
from pathlib import Path

import pytest
from real.images import cache_directory

from .livemachine import LiveMachine
from .liveroot import Live, live_system
from .liveserver import LiveServer

# Seconds from systemctl poweroff to the end. What hangs takes systemd 90 s to give up; an emulated
# processor that others use as well takes some, too.
CLEAN = 20.0


@pytest.fixture(scope="module")
def live() -> Live:
    return live_system(cache_directory())


def test_it_boots_from_an_iso_works_and_powers_off(live: Live, tmp_path: Path) -> None:
    with (
        LiveServer(live) as server,
        LiveMachine(live, tmp_path, f"lazyfs={server.iso()} live.work") as machine,
    ):
        machine.marker()
        # All but what the workload reads: a boot needs little of an image.
        assert server.body_bytes() < 0.3 * live.iso.stat().st_size
        machine.wait_for("LIVE: payload is right")
        assert machine.power_off() < CLEAN
    said = machine.said()
    assert "LIVE: python 42" in said
    assert "LIVE: failed units: 0" in said
    assert re.search(r"lazyfs: connecting to http://10\.0\.2\.2:\d+/\S*live\.iso\r?\n", said)
    assert re.search(r"lazyfs: \S*live\.iso is open after \d+ s", said)
    assert len(re.findall("^lazyfs: ", said, re.MULTILINE)) < 40  # the console is not flooded


def test_an_initrd_grows_by_little(live: Live) -> None:
    growth = live.initrd.stat().st_size - live.stock.stat().st_size
    assert growth <= 6_500_000


def test_a_misspelt_parameter_stops_the_boot_and_is_named(live: Live, tmp_path: Path) -> None:
    with (
        LiveServer(live) as server,
        LiveMachine(live, tmp_path, f"lazyfs={server.iso()} lazyfs.cahce=tmpfs") as machine,
    ):
        machine.wait_for(
            r"kernel parameter 'lazyfs\.cahce=tmpfs' is wrong; there are: .*lazyfs\.cache="
        )
        machine.wait_for("Rebooting automatically due to panic")
    assert server.request_count() == 0

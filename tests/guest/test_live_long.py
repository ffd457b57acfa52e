"""More of live boots: other ways to the same image, outages, caches that last.

Only in the long form.
"""

import re
import time
from pathlib import Path

import pytest
from real.images import cache_directory

from .livemachine import LiveMachine, scratch_disk
from .liveroot import Live, live_system
from .liveserver import LiveServer, SecureLiveServer
from .test_live import CLEAN

OUTAGE = 20.0  # seconds


# Who has the network in his care, in the words of the kernel command line, and what he then says.
# What live-boot has set up NetworkManager leaves alone, by what stands in /etc/network/interfaces.
_NO_IFUPDOWN = "systemd.mask=networking.service"
_NETWORKD = " ".join(
    f"systemd.wants={unit}.service"
    for unit in ("systemd-network-generator", "systemd-networkd", "systemd-networkd-wait-online")
)
NETWORKS = [
    (False, "", r"networkd says: (?!.*\bconfigured)"),
    (False, f"{_NO_IFUPDOWN} {_NETWORKD}", "networkd says: .* configured"),
    (True, _NO_IFUPDOWN, "NetworkManager says: .*:unmanaged"),
]


@pytest.fixture(scope="module")
def live() -> Live:
    return live_system(cache_directory())


@pytest.mark.parametrize(
    ("secure", "image", "words"),
    [
        (True, "iso", "lazyfs={url}"),
        (False, "squashfs", "lazyfs={url} lazyfs.frontend=nbd"),
        (False, "iso", "lazyfs={url} lazyfs.frontend=nbd"),
        (False, "squashfs", "lazyfs={url}"),
        (False, "iso", "httpfs={url}"),
        (False, "squashfs", "httpfs={url} live.reboot"),
    ],
    ids=["https", "nbd-squashfs", "nbd-iso", "squashfs", "httpfs-iso", "httpfs-squashfs-reboot"],
)
def test_there_are_several_ways(
    live: Live, tmp_path: Path, secure: bool, image: str, words: str
) -> None:
    kind = SecureLiveServer if secure else LiveServer
    with kind(live) as server:
        url = server.iso() if image == "iso" else server.squashfs()
        with LiveMachine(live, tmp_path, f"{words.format(url=url)} live.work") as machine:
            machine.marker()
            machine.wait_for("LIVE: payload is right")
            assert machine.power_off() < CLEAN
    assert "LIVE: failed units: 0" in machine.said()


def test_outages_in_the_boot_and_in_the_work_fail_nothing(live: Live, tmp_path: Path) -> None:
    with (
        LiveServer(live) as server,
        LiveMachine(live, tmp_path, f"lazyfs={server.iso()} live.work") as machine,
    ):
        machine.wait_for("is open after")
        _outage(server)
        machine.wait_for("LIVE: works")
        _outage(server)
        machine.wait_for("LIVE: payload is right")
        assert machine.power_off() < CLEAN
    assert "LIVE: failed units: 0" in machine.said()
    assert "I/O error" not in machine.said()
    assert "retrying" in machine.said()


@pytest.mark.parametrize(
    ("desktop", "words", "says"), NETWORKS, ids=["ifupdown", "networkd", "NetworkManager"]
)
def test_the_network_stays_when_nobody_cares_for_it_any_more(
    tmp_path: Path, desktop: bool, words: str, says: str
) -> None:
    """That is how it is at shutdown, where nothing could be told any more."""
    live = live_system(cache_directory(), desktop=desktop)
    with (
        LiveServer(live) as server,
        LiveMachine(
            live, tmp_path, f"lazyfs={server.iso()} {words} live.network live.work"
        ) as machine,
    ):
        machine.wait_for("LIVE: payload is right")
        assert machine.power_off() < CLEAN
    assert re.search(f"(?m)^LIVE: {says}", machine.said().replace("\r", ""))
    assert "LIVE: failed units: 0" in machine.said()


def test_a_server_that_comes_late_is_waited_for(live: Live, tmp_path: Path) -> None:
    with LiveServer(live) as server:
        server.stop()
        with LiveMachine(live, tmp_path, f"lazyfs={server.iso()}") as machine:
            machine.wait_for("cannot connect to .*; asking again")
            server.start()
            machine.marker()
            assert machine.power_off() < CLEAN


def test_with_a_cache_on_a_disk_the_second_boot_fetches_next_to_nothing(
    live: Live, tmp_path: Path
) -> None:
    disk = scratch_disk(tmp_path)
    words = "lazyfs.cache=LABEL=scratch"
    with LiveServer(live) as server:
        with LiveMachine(live, tmp_path, f"lazyfs={server.iso()} {words}", disk=disk) as machine:
            machine.marker()
            assert machine.power_off() < CLEAN
        first = server.body_bytes()
        with LiveMachine(live, tmp_path, f"lazyfs={server.iso()} {words}", disk=disk) as machine:
            machine.marker()
            assert machine.power_off() < CLEAN
        assert server.body_bytes() - first < first / 20


def test_a_complete_cache_boots_without_a_server(live: Live, tmp_path: Path) -> None:
    disk = scratch_disk(tmp_path)
    words = "lazyfs.cache=LABEL=scratch lazyfs.fill live.filled"
    with LiveServer(live) as server:
        url = server.iso()
        with LiveMachine(live, tmp_path, f"lazyfs={url} {words}", disk=disk) as machine:
            # The loop device has moved to the disk: neither the server is needed nor the daemon.
            machine.wait_for("LIVE: daemon is dead")
            server.stop()
            assert machine.power_off() < CLEAN
        with LiveMachine(live, tmp_path, f"lazyfs={url} {words} live.work", disk=disk) as machine:
            machine.wait_for("LIVE: payload is right")
            assert machine.power_off() < CLEAN
    assert "LIVE: failed units: 0" in machine.said()


def test_with_the_server_gone_it_powers_off_all_the_same(live: Live, tmp_path: Path) -> None:
    with (
        LiveServer(live) as server,
        # The fill notices that the server is gone, and nothing that the boot needs waits for it.
        LiveMachine(
            live, tmp_path, f"lazyfs={server.iso()} lazyfs.fill=64K/s live.alone"
        ) as machine,
    ):
        machine.wait_for("LIVE: can do without the server")
        server.stop()
        assert machine.power_off() < CLEAN


def test_a_profile_of_one_boot_serves_the_next(live: Live, tmp_path: Path) -> None:
    live.profile.unlink(missing_ok=True)
    try:
        with LiveServer(live) as server:
            words = f"lazyfs={server.iso()} lazyfs.record live.profile"
            with LiveMachine(live, tmp_path, words) as machine:
                live.profile.write_text(machine.profile())
                machine.power_off()
            before = server.body_bytes()
            words = f"lazyfs={server.iso()} lazyfs.profile=auto"
            with LiveMachine(live, tmp_path, words) as machine:
                machine.marker()
                assert machine.power_off() < CLEAN
            assert server.body_bytes() - before < 1.2 * before
    finally:
        live.profile.unlink(missing_ok=True)


def _outage(server: LiveServer) -> None:
    server.stop()
    time.sleep(OUTAGE)
    server.start()

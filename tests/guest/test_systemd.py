"""lazyfs under systemd: services, fstab and automounts, from boot to power-off.

Only in the long form. One machine serves all tests; each leaves it as it was, the last switches it
off.
"""

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from real.images import cache_directory, digest_of
from real.servers import Nginx

from .disks import Disks
from .kernel import Kernel
from .machine import HOST
from .systemdguest import LIMIT, UNITS, SystemdGuest
from .systemdroot import SystemdRoot, systemd_root

LAZYFS = "/usr/local/bin/lazyfs"
SLOWER = 15.0  # seconds that a power-off may take longer with lazyfs, on a machine that is busy

CACHED = "cache_dir=/var/cache/lazyfs"
FSTAB = """\
{auto} /mnt/auto fuse.lazyfs noauto,x-systemd.automount,_netdev,auto_unmount,{cached} 0 0
{boot} /mnt/boot fuse.lazyfs _netdev,ro,allow_other,{cached} 0 0
/mnt/boot/tree.iso /media/boot iso9660 loop,ro,_netdev,x-systemd.requires-mounts-for=/mnt/boot 0 0
{late} /mnt/late fuse.lazyfs nofail,_netdev,{cached} 0 0
/srv/img/tree.squashfs /media/img squashfs loop,ro,_netdev,x-systemd.requires=lazyfs@img.service 0 0
/dev/nbd0p2 /media/nbd squashfs ro,noauto,_netdev,x-systemd.after=lazyfs-attach@nbd0.service 0 0
"""


@pytest.fixture(scope="module")
def root(kernel: Kernel) -> SystemdRoot:
    return systemd_root(cache_directory(), kernel)


@pytest.fixture(scope="module")
def late(disks: Disks) -> Iterator[Nginx]:
    """A server that is down, unless a test starts it."""
    with Nginx(disks.root) as server:
        server.stop()
        yield server


@pytest.fixture(scope="module")
def machine(
    kernel: Kernel,
    root: SystemdRoot,
    disks: Disks,
    nginx: Nginx,
    late: Nginx,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[SystemdGuest]:
    """A machine whose boot is over."""

    def url(image: Path, server: Nginx = nginx) -> str:
        return server.url(image.name, HOST)

    lines = {"auto": disks.random(), "boot": disks.iso()}
    fstab = FSTAB.format(
        **{name: url(image) for name, image in lines.items()},
        late=url(disks.iso(), late),
        cached=CACHED,
    )
    units = "etc/systemd/system"
    mount, automount = ((UNITS / f"mnt-img.{kind}").read_text() for kind in ("mount", "automount"))
    files = {
        "etc/fstab": fstab,
        "etc/lazyfs/img.env": f"URL={url(disks.squashfs())}\nWHERE=/srv/img\n",
        "etc/lazyfs/late.env": f"URL={url(disks.squashfs(), late)}\nWHERE=/srv/late\n",
        "etc/lazyfs/wrong.env": f"URL={nginx.url('absent.iso', HOST)}\nWHERE=/srv/wrong\n",
        "etc/lazyfs/odd.env": "URL=http://host/i\nWHERE=/srv/odd\nOPTIONS=--cahce-size 1G\n",
        "etc/lazyfs/nbd0.env": f"URL={url(disks.partitioned())}\n",
        f"{units}/mnt-img.mount": mount.replace("https://host/debian.iso", url(disks.ext4())),
        f"{units}/mnt-img.automount": automount.replace("IdleSec=10min", "IdleSec=5s"),
    }
    directory = tmp_path_factory.mktemp("systemd")
    with closing(SystemdGuest(kernel, root, directory, files, ["lazyfs@img.service"])) as guest:
        guest.wait_until_up()
        yield guest


@pytest.fixture
def img(machine: SystemdGuest) -> str:
    """A service that runs, with a filesystem on its image."""
    machine.systemctl_well("start", "media-img.mount")
    return "lazyfs@img.service"


def is_right(machine: SystemdGuest, tree: str, disks: Disks) -> bool:
    """Whether a filesystem with the usual tree is readable, and a file in it is what it was."""
    said = machine.run_well("sha256sum", f"{tree}/text")
    return said.split()[0] == digest_of(disks.tree() / "text")


def test_after_the_boot_all_is_there_that_can_be(machine: SystemdGuest, disks: Disks) -> None:
    failed = machine.run_well("systemctl", "--failed", "--plain", "--no-legend").split()
    assert [word for word in failed if "." in word] == ["mnt-late.mount"]
    assert machine.state("lazyfs@img.service") == "active"
    assert is_right(machine, "/media/img", disks)
    assert is_right(machine, "/media/boot", disks)


@pytest.mark.parametrize("unit", ["lazyfs@img.service", "mnt-boot.mount", "mnt-late.mount"])
def test_nothing_is_tried_before_the_network_is_there(machine: SystemdGuest, unit: str) -> None:
    online = machine.property("network-online.target", "ActiveEnterTimestampMonotonic")
    begun = machine.property(unit, "InactiveExitTimestampMonotonic")
    assert 0 < int(online) <= int(begun)


def test_a_mount_whose_server_was_down_at_boot_says_so_and_can_be_had_later(
    machine: SystemdGuest, late: Nginx
) -> None:
    status = machine.status("mnt-late.mount")
    assert "tree.iso: cannot connect to 10.0.2.2: Connection refused; check the network" in status
    late.start()
    machine.systemctl_well("start", "mnt-late.mount")
    assert machine.size_of("/mnt/late/tree.iso")
    machine.systemctl_well("stop", "mnt-late.mount")
    late.stop()


def test_a_service_is_active_only_when_its_image_can_be_read(
    machine: SystemdGuest, late: Nginx
) -> None:
    unit = "lazyfs@late.service"
    assert machine.systemctl("start", unit).code != 0
    machine.wait_for_state(unit, "activating")  # it is tried again
    machine.wait_for_status(unit, "cannot connect to 10.0.2.2: Connection refused")
    late.start()
    machine.wait_for_state(unit, "active")
    assert machine.size_of("/srv/late/tree.squashfs")
    machine.systemctl_well("stop", unit)
    assert not machine.is_mounted("/srv/late")
    late.stop()


@pytest.mark.parametrize(
    ("name", "cause", "state"),
    [
        (
            "wrong",
            "absent.iso: no such file on the server (status 404); check the URL",
            "activating",
        ),
        ("odd", "--cahce-size is unknown", "failed"),  # which no repetition cures
    ],
    ids=["wrong-url", "wrong-option"],
)
def test_the_status_of_a_service_that_cannot_start_says_why(
    machine: SystemdGuest, name: str, cause: str, state: str
) -> None:
    unit = f"lazyfs@{name}.service"
    assert machine.systemctl("start", unit).code != 0
    machine.wait_for_state(unit, state)
    machine.wait_for_status(unit, cause)
    machine.systemctl_well("stop", unit)
    machine.systemctl("reset-failed", unit)


def test_an_automount_mounts_when_somebody_looks_and_stops_clean(
    machine: SystemdGuest, disks: Disks
) -> None:
    assert machine.state("mnt-auto.automount") == "active"
    assert machine.state("mnt-auto.mount") == "inactive"
    assert machine.size_of("/mnt/auto/random-128M.raw") == disks.random().stat().st_size
    assert machine.state("mnt-auto.mount") == "active"
    daemon = machine.run_well("pgrep", "-f", "^lazyfs .* /mnt/auto").strip()
    machine.systemctl_well("stop", "mnt-auto.mount")
    machine.eventually("test", "!", "-e", f"/proc/{daemon}", what="the daemon has ended")
    assert not machine.is_mounted("/mnt/auto")
    assert "/mnt/auto is unmounted" in machine.journal("mnt-auto.mount")


def test_a_mount_in_use_is_not_unmounted_and_lazyfs_names_who_is_in_the_way(
    machine: SystemdGuest,
) -> None:
    machine.size_of("/mnt/auto/random-128M.raw")
    with machine.holding("/mnt/auto"):
        assert machine.systemctl("stop", "mnt-auto.mount").code != 0
        assert machine.state("mnt-auto.mount") == "active"
        assert "target is busy" in machine.status("mnt-auto.mount")
        done = machine.run(LAZYFS, "umount", "/mnt/auto")
        assert done.code == 1
        assert "/mnt/auto is in use: sleep (process " in done.err
    machine.systemctl_well("stop", "mnt-auto.mount")


def test_an_automount_comes_back_after_its_daemon_was_killed(machine: SystemdGuest) -> None:
    machine.size_of("/mnt/auto/random-128M.raw")
    machine.run_well("pkill", "-KILL", "-f", "^lazyfs .* /mnt/auto")
    machine.wait_for_state("mnt-auto.mount", "inactive")
    assert machine.size_of("/mnt/auto/random-128M.raw")
    machine.systemctl_well("stop", "mnt-auto.mount")


def test_the_units_for_an_automount_mount_and_unmount_again_when_nobody_looks(
    machine: SystemdGuest, disks: Disks
) -> None:
    machine.systemctl_well("start", "mnt-img.automount")
    assert machine.state("mnt-img.mount") == "inactive"
    assert machine.size_of("/mnt/img/tree.ext4") == disks.ext4().stat().st_size
    machine.wait_for_state("mnt-img.mount", "inactive")
    assert "Mounted mnt-img.mount" in machine.journal("mnt-img.mount")
    machine.systemctl_well("stop", "mnt-img.automount")


@pytest.mark.parametrize("kind", ["fuse.lazyfs", "lazyfs"])
def test_mount_8_mounts_and_unmounts(
    machine: SystemdGuest, disks: Disks, nginx: Nginx, kind: str
) -> None:
    machine.run_well("ln", "-sf", LAZYFS, "/sbin/mount.lazyfs")
    machine.run_well("mkdir", "-p", "/srv/byhand")
    url = nginx.url(disks.erofs().name, HOST)
    options = ["-t", kind, "-o", f"ro,noatime,x-some.option,{CACHED}"]
    machine.run_well("mount", *options, url, "/srv/byhand", limit=LIMIT)
    kind_shown = machine.run_well("findmnt", "-n", "-o", "FSTYPE", "/srv/byhand")
    assert kind_shown.strip() == "fuse.lazyfs"
    machine.run_well("umount", "/srv/byhand")
    machine.eventually(
        "sh", "-c", "! pgrep -f '^lazyfs .* /srv/byhand'", what="the daemon has ended"
    )


def test_a_service_that_was_killed_is_back_and_so_is_what_stands_on_it(
    machine: SystemdGuest, disks: Disks, img: str
) -> None:
    killed = machine.property(img, "MainPID")
    machine.run_well("kill", "-KILL", killed)
    machine.wait_for_state("media-img.mount", "inactive")
    machine.wait_for_state("media-img.mount", "active")
    assert machine.property(img, "MainPID") != killed
    assert is_right(machine, "/media/img", disks)


def test_a_filesystem_on_a_service_goes_before_it_and_brings_it_back(
    machine: SystemdGuest, disks: Disks, img: str
) -> None:
    machine.systemctl_well("stop", img)
    assert machine.state("media-img.mount") == "inactive"
    assert not machine.is_mounted("/srv/img")
    assert machine.property(img, "Result") == "success"
    machine.systemctl_well("start", "media-img.mount")
    assert machine.state(img) == "active"
    assert is_right(machine, "/media/img", disks)


def test_a_service_that_is_stopped_says_who_uses_it(machine: SystemdGuest, img: str) -> None:
    machine.systemctl_well("stop", "media-img.mount")
    with machine.holding("/srv/img"):
        machine.systemctl_well("stop", img)
        assert "/srv/img is in use: sleep (process " in machine.status(img)
        assert not machine.is_mounted("/srv/img")


def test_a_service_that_a_loop_device_stands_on_ends_orderly_when_it_has_to(
    machine: SystemdGuest, img: str
) -> None:
    with machine.holding("/media/img"):
        machine.systemctl_well("stop", img)
    status = machine.status(img)
    assert "/srv/img is in use by /dev/loop" in status
    assert "ending on SIGTERM" in status
    assert "/srv/img is unmounted" in status
    machine.run_well("umount", "/media/img")


def test_a_service_can_be_reloaded(machine: SystemdGuest, img: str) -> None:
    daemon = machine.property(img, "MainPID")
    machine.systemctl_well("reload", img)
    assert machine.property(img, "MainPID") == daemon


def test_a_block_device_is_taken_over_below_its_filesystem_when_its_service_was_killed(
    machine: SystemdGuest, disks: Disks
) -> None:
    unit = "lazyfs-attach@nbd0.service"
    machine.systemctl_well("start", unit)
    machine.systemctl_well("start", "media-nbd.mount")
    mounted = machine.property("media-nbd.mount", "ActiveEnterTimestampMonotonic")
    machine.run_well("kill", "-KILL", machine.property(unit, "MainPID"))
    machine.run_well("sh", "-c", "echo 3 >/proc/sys/vm/drop_caches")
    tree = disks.small_tree()
    said = machine.run_well("sha256sum", "/media/nbd/000.bin", "/media/nbd/299.bin", limit=LIMIT)
    assert said.split()[::2] == [digest_of(tree / name) for name in ("000.bin", "299.bin")]
    assert machine.state(unit) == "active"
    assert machine.property("media-nbd.mount", "ActiveEnterTimestampMonotonic") == mounted


def test_it_powers_off_in_order_and_as_fast_as_without_lazyfs(
    machine: SystemdGuest, img: str, kernel: Kernel, root: SystemdRoot, tmp_path: Path
) -> None:
    machine.size_of("/mnt/auto/random-128M.raw")
    taken = machine.shut_down()
    said = machine.console_lines()

    def place(what: str) -> int:
        return max(number for number, line in enumerate(said) if what in line)

    assert place("Unmounted media-img.mount") < place(f"Stopping {img}")
    assert place("Unmounted media-boot.mount") < place("Unmounting mnt-boot.mount")
    assert place("Unmounted media-nbd.mount") < place("Stopping lazyfs-attach@nbd0.service")
    assert place(f"Stopped {img}") < place("Stopped target network-online.target")
    assert place("Unmounted mnt-auto.mount") < place("Stopped target network-online.target")

    with closing(SystemdGuest(kernel, root, tmp_path)) as plain:
        plain.wait_until_up()
        without = plain.shut_down()
    print(f"power-off: {taken:.1f} s with lazyfs, {without:.1f} s without")
    assert taken < without + SLOWER

"""``lazyfs attach`` and ``detach`` with a kernel that has NBD."""

import hashlib
import time
from pathlib import Path

from real.images import MIB
from real.servers import Nginx

from .attached import Place
from .disks import Disks
from .machine import HOST, Guest


def url(nginx: Nginx, image: Path) -> str:
    return nginx.url(image.name, HOST)


def test_the_kernel_mounts_an_iso_and_every_file_in_it_is_right(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    attached = place.attach(url(nginx, disks.iso()))
    directory = attached.mount("iso9660")
    assert attached.is_same_as(directory, disks.tree())
    daemon = attached.daemon()
    attached.umount()
    done = attached.detach()
    assert (done.code, done.err) == (0, "")
    place.guest.eventually("test", "!", "-e", f"/proc/{daemon}", what="the daemon has ended")
    assert " WARNING " not in place.log()


def test_the_partitions_of_a_disk_are_there_when_the_command_returns(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    attached = place.attach(url(nginx, disks.partitioned()))
    for part, kind in (("p1", "ext4"), ("p2", "squashfs")):
        directory = attached.mount(kind, part)
        found = place.guest.run_well("find", directory, "-name", "[0-9]*.bin").split()
        assert len(found) == 300
        tree = disks.small_tree()
        place.guest.run_well("diff", "--recursive", "-x", "lost+found", directory, tree)
        attached.umount()
    assert attached.detach().code == 0


def test_a_partition_is_a_device_by_itself(place: Place, disks: Disks, nginx: Nginx) -> None:
    """The view is attached, and not the disk; one file of 1 MiB costs little of 4 GiB."""
    disk = disks.disk()
    for number, kind, size in ((1, "ext4", 160), (2, "xfs", 320), (3, "squashfs", 108)):
        before = nginx.body_bytes()
        attached = place.attach(f"{url(nginx, disk)}#part={number}")
        sectors = place.guest.run_well("cat", f"/sys/block/{attached.device[5:]}/size")
        assert int(sectors) * 512 == size * MIB
        directory = attached.mount(kind)
        if kind == "xfs":
            digest = place.guest.run_well("md5sum", f"{directory}/probe.bin").split()[0]
            content = (disks.root / "probe.xfs.bin").read_bytes()
            assert digest == hashlib.md5(content).hexdigest()
            assert nginx.body_bytes() - before < 8 * MIB
        else:
            place.guest.run_well("diff", "-r", f"{directory}/deep/er", disks.tree() / "deep/er")
        attached.umount()
        assert attached.detach().code == 0


def test_a_device_in_use_is_not_detached_and_its_holders_are_named(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    guest = place.guest
    attached = place.attach(url(nginx, disks.partitioned()))
    directory = attached.mount("squashfs", "p2")
    done = attached.detach()
    assert done.code == 1
    assert f"{attached.device} is in use: {attached.device}p2 is mounted on {directory}" in done.err
    attached.umount()

    pid_file = f"{place.directory}/pid"
    script = f"echo $$ >{pid_file}; exec 9<{attached.device}p1; exec sleep 600 <&9"
    sleeper = guest.start("sh", "-c", script, limit=120)
    guest.eventually("grep", "-q", ".", pid_file, what="the device is open")
    pid = guest.run_well("cat", pid_file).strip()
    guest.eventually("grep", "-q", "sleep", f"/proc/{pid}/comm", what="sleep runs")
    done = attached.detach()
    assert done.code == 1
    assert f"sleep (process {pid}) has {attached.device}p1 open" in done.err
    guest.run_well("kill", pid)
    sleeper.wait()

    assert attached.detach().code == 0
    again = place.attach(url(nginx, disks.partitioned()), attached.device)
    assert again.device == attached.device  # so it is not a zombie
    assert again.detach().code == 0


def test_readers_wait_for_the_repair_of_a_daemon_that_was_killed(
    place: Place, disks: Disks, nginx: Nginx, *, long: bool
) -> None:
    guest, image = place.guest, disks.iso()
    attached = place.attach(url(nginx, image))
    directory = attached.mount("iso9660")
    reading = attached.start_reading(image)
    for _ in range(5 if long else 1):
        reading.wait_for_some()
        guest.run_well("kill", "-9", attached.daemon())
        done = place.try_attach("--repair", attached.device, url(nginx, image))
        assert (done.code, done.out.strip(), done.err) == (0, attached.device, "")
    reading.wait_for_some()
    assert reading.result().all_right
    assert attached.is_same_as(f"{directory}/deep/er", disks.tree() / "deep/er")
    attached.umount()
    assert attached.detach().code == 0


def test_an_outage_of_the_server_fails_no_read(place: Place, disks: Disks, *, long: bool) -> None:
    image = disks.random()
    outage = 50 if long else 8  # seconds; the kernel's own timer would give up after 30
    with Nginx(disks.root) as server:
        attached = place.attach(
            "--block-size", "4K", "--readahead", "0", url(server, image), troubled=True
        )
        reading = attached.start_reading(image)
        reading.wait_for_some()
        server.stop()
        time.sleep(outage)
        server.start()
        reading.wait_for_some()
        result = reading.result()
    assert result.all_right
    assert result.longest > outage / 2  # somebody did wait
    assert attached.detach().code == 0


def test_a_guest_with_a_mounted_device_goes_down_in_time(
    own_guest: Guest, disks: Disks, nginx: Nginx
) -> None:
    with Place.made(own_guest, tidy=False) as place:
        attached = place.attach("--system", url(nginx, disks.iso()))
        attached.mount("iso9660")
        attached.start_reading(disks.iso()).wait_for_some()
    assert own_guest.shut_down() < 20
    assert "GUEST: power off" in own_guest.messages()

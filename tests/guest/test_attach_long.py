"""More of ``lazyfs attach``: what breaks, and what is unusual. Only in the long form."""

import re
import sys
from pathlib import Path

from real.servers import Nginx

from .attached import Attached, Place
from .disks import Disks
from .test_attach import url

CUT = Path(__file__).with_name("cut.py")


def test_on_a_signal_it_detaches_what_is_free_and_keeps_what_is_in_use(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    guest = place.guest
    attached = place.attach(url(nginx, disks.partitioned()))
    daemon = attached.daemon()
    directory = attached.mount("squashfs", "p2")
    guest.run_well("kill", "-TERM", daemon)
    said = f"not ending on SIGTERM: .* is mounted on {directory}"
    guest.eventually("grep", "-q", said, f"{place.directory}/log", what="it says why it goes on")
    guest.run_well("sh", "-c", f"cat {directory}/*.bin >/dev/null")
    attached.umount()
    guest.run_well("kill", "-TERM", daemon)
    guest.eventually("test", "!", "-e", f"/proc/{daemon}", what="it has ended")
    assert f"nothing is attached to {attached.device}" in attached.detach().err


def test_without_a_repair_reads_fail_and_a_late_repair_still_helps(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    guest, address = place.guest, url(nginx, disks.partitioned())
    attached = place.attach("--dead-timeout", "1", address)
    guest.run_well("kill", "-9", attached.daemon())
    read = ["dd", f"if={attached.device}", "of=/dev/null", "iflag=direct", "count=1", "skip=999"]
    assert "Input/output error" in guest.run(*read).err
    assert place.try_attach("--repair", attached.device, address).code == 0
    guest.run_well(*read)
    assert attached.detach().code == 0


def test_what_needs_no_repair_or_shows_another_image_is_left_alone(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    image, other = (url(nginx, disk) for disk in (disks.partitioned(), disks.iso()))
    attached = place.attach(image)
    done = place.try_attach("--repair", attached.device, other)
    assert done.code == 1
    assert f"{attached.device} shows another image" in done.err
    # With a cache of its own: that of the daemon which is alive is in use.
    done = place.try_attach("--no-cache", "--repair", attached.device, image)
    assert done.code == 1
    assert f"{attached.device} needs no repair" in done.err
    done = place.try_attach("--no-cache", image, attached.device)
    assert done.code == 1
    assert f"{attached.device} is in use" in done.err
    assert attached.detach().code == 0
    done = attached.detach()
    assert (done.code, done.err) == (1, f"lazyfs: nothing is attached to {attached.device}\n")


def test_a_repair_of_what_is_not_attached_attaches_it(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    attached = place.attach("--repair", "/dev/nbd7", url(nginx, disks.partitioned()))
    assert attached.device == "/dev/nbd7"
    assert attached.detach().code == 0


def test_a_connection_that_dies_is_replaced(place: Place, disks: Disks, nginx: Nginx) -> None:
    guest, image = place.guest, disks.iso()
    attached = place.attach(url(nginx, image))
    reading = attached.start_reading(image)
    reading.wait_for_some()
    guest.run_well(sys.executable, "-I", "-S", CUT, attached.daemon())
    guest.eventually("grep", "-q", "the connection died", f"{place.directory}/log", what="noticed")
    reading.wait_for_some()
    assert reading.result().all_right
    assert attached.detach().code == 0


def test_a_daemon_for_a_root_filesystem_is_hard_to_kill(
    place: Place, disks: Disks, nginx: Nginx
) -> None:
    guest = place.guest
    attached = place.attach("--system", url(nginx, disks.partitioned()))
    daemon = attached.daemon()
    assert guest.run_well("cat", f"/proc/{daemon}/oom_score_adj").strip() == "-1000"
    assert guest.run_well("cat", f"/proc/{daemon}/cmdline").startswith("@lazyfs ")
    status = guest.run_well("cat", f"/proc/{daemon}/status")
    locked, size = (int(re.findall(rf"{key}:\s+(\d+) kB", status)[0]) for key in ("VmLck", "VmRSS"))
    assert locked > size // 2
    assert attached.detach().code == 0


def test_where_netlink_is_out_of_reach_ioctls_do(place: Place, disks: Disks, nginx: Nginx) -> None:
    """A network namespace of its own has no netlink family "nbd", and a server of its own."""
    guest, inside = place.guest, ["ip", "netns", "exec", "apart"]
    guest.run_well("ip", "netns", "add", "apart")
    guest.run_well(*inside, "ip", "link", "set", "lo", "up")
    server = guest.start(*inside, *nginx.command(), limit=300)
    address = nginx.url(disks.partitioned().name)
    lazyfs = [*inside, sys.executable, "-m", "lazyfs"]
    cache = f"--cache-dir={place.directory}/cache"
    device = guest.run_well(*lazyfs, "attach", cache, address).strip()
    attached = Attached(place, device)
    directory = attached.mount("squashfs", "p2")
    guest.run_well("diff", "--recursive", directory, disks.small_tree())
    assert f"is mounted on {directory}" in guest.run(*lazyfs, "detach", device).err
    attached.umount()
    guest.run_well(*lazyfs, "detach", device)
    guest.run_well("sh", "-c", "kill $(ip netns pids apart); ip netns delete apart")
    server.wait()

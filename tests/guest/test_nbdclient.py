"""``lazyfs serve`` with the kernel as its client, by way of nbd-client(8)."""

from real.mounts import need_tool
from real.servers import Nginx

from .attached import Place
from .disks import Disks
from .machine import HOST

DEVICE = "/dev/nbd9"


def test_nbd_client_attaches_what_is_served(place: Place, disks: Disks, nginx: Nginx) -> None:
    guest, image = place.guest, disks.partitioned()
    client = need_tool("nbd-client", "nbd-client")
    socket, pid_file = f"{place.directory}/socket", f"{place.directory}/pid"
    where = ["--unix", socket, "--pidfile", pid_file, "--cache-dir", f"{place.directory}/cache"]
    guest.lazyfs("serve", *where, nginx.url(image.name, HOST)).succeed()
    guest.run_well("modprobe", "nbd")
    guest.run_well(client, "-unix", socket, DEVICE, "-readonly", "-b", "512", "-C", "2")
    guest.run_well("cmp", DEVICE, image)
    directory = place.mount(f"{DEVICE}p2", "squashfs")
    guest.run_well("diff", "--recursive", directory, disks.small_tree())
    guest.run_well("umount", directory)
    guest.run_well(client, "-d", DEVICE)
    guest.run_well("sh", "-c", f"kill $(cat {pid_file})")
    guest.eventually("test", "!", "-e", socket, what="the server has ended")

"""The boot server of contrib/netboot, as it stands there. Only in the long form.

QEMU's own DHCP server takes the place of dnsmasq, which would need a network of its own.
"""

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from real.images import cache_directory
from real.mounts import need_tool
from real.servers import RealServer

from .livemachine import USUAL, LiveMachine
from .liveroot import Live, live_system
from .machine import HOST
from .test_live import CLEAN

EXAMPLE = Path(__file__).parents[2] / "contrib/netboot"


class BootServer(RealServer):
    """nginx by the example's configuration; what stands for its site there is ours here."""

    program = "nginx"
    package = "nginx-light"

    def command(self) -> list[str]:
        pid = self.access_log.with_name("pid")
        text = self.ours(EXAMPLE / "nginx.conf").replace("/run/netboot-nginx.pid", f"{pid}")
        return [need_tool("nginx", "nginx-light"), "-p", f"{self.root}", "-c", self.configure(text)]

    def ours(self, file: Path) -> str:
        """A file of the example, for this place, and a machine with a serial console."""
        text = file.read_text().replace("192.0.2.1:8080", f"{HOST}:{self.port}")
        text = text.replace("listen 8080", f"listen 127.0.0.1:{self.port}")
        text = text.replace("/srv/netboot", f"{self.root}")
        return text.replace("boot=live", f"boot=live {USUAL}")


@pytest.fixture(scope="module")
def live() -> Live:
    return live_system(cache_directory())


@pytest.fixture
def site(live: Live) -> Iterator[Path]:
    """What the example has in /srv/netboot. A server that gives up root can read it."""
    site = Path(tempfile.mkdtemp(prefix="lazyfs-netboot-"))
    try:
        site.chmod(0o755)
        (site / "live").mkdir()
        files = {"vmlinuz": live.kernel, "initrd.img": live.initrd, "live.iso": live.iso}
        for name, file in files.items():
            (site / "live" / name).symlink_to(file)
        yield site
    finally:
        shutil.rmtree(site)


def test_a_machine_with_nothing_on_it_boots(live: Live, site: Path, tmp_path: Path) -> None:
    with BootServer(site) as server:
        (site / "boot.ipxe").write_text(server.ours(EXAMPLE / "boot.ipxe"))
        with LiveMachine(live, tmp_path, "", netboot=server.url("boot.ipxe", HOST)) as machine:
            machine.marker()
            assert machine.power_off() < CLEAN
    assert "LIVE: failed units: 0" in machine.said()


def test_dnsmasq_takes_its_configuration(tmp_path: Path) -> None:
    tool = need_tool("dnsmasq", "dnsmasq-base")
    copy = tmp_path / "dnsmasq.conf"
    copy.write_text((EXAMPLE / "dnsmasq.conf").read_text().replace("/srv/netboot/tftp", "/"))
    done = subprocess.run(
        [tool, "--test", f"--conf-file={copy}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr

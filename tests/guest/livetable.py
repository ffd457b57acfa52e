"""Measure live boots: the table of docs/liveboot.rst.

As root, in ``tests``: ``python -m guest.livetable [LINK:WAY]...``, like ``wan:fetch``; without
arguments, all. The image contains a desktop's programs, for the usual size. Prints one line per
boot: seconds to the marker, bytes, requests, free memory, seconds to power-off.
"""

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from real.images import MIB, cache_directory
from real.servers import free_port

from .livemachine import LiveMachine, scratch_disk
from .liveroot import Live, live_system
from .liveserver import LiveServer

_ROOT = Path(__file__).parents[2]
_PATIENCE = 420.0  # seconds for a boot
LINKS = {"lan": (), "wan": ("--rtt", "20ms", "--rate", "50M")}
WAYS = {
    "local": "",  # the image is a disk of the machine
    "cold": "lazyfs={url}",
    "record": "lazyfs={url} lazyfs.record live.profile",  # makes the profile for "profile"
    "profile": "lazyfs={url} lazyfs.profile=auto",
    "disk": "lazyfs={url} lazyfs.cache=LABEL=scratch",  # fills the cache for "warm"
    "warm": "lazyfs={url} lazyfs.cache=LABEL=scratch",
    "fetch": "fetch={url}",
    "httpfs2": "httpfs={url}",
}
_STOCK = ("local", "fetch", "httpfs2")  # with Debian's own initrd
_ON_DISK = ("disk", "warm")
# Up to the marker, a recording boot is a cold one; and one link is enough to fill the disk.
ROWS = [f"lan:{way}" for way in ("local", "record", "profile", "disk", "warm", "fetch", "httpfs2")]
ROWS += [f"wan:{way}" for way in ("cold", "profile", "warm", "fetch", "httpfs2")]


def main() -> None:
    live = live_system(cache_directory(), desktop=True)
    print(f"image: {live.iso.stat().st_size / MIB:.0f} MiB")
    with tempfile.TemporaryDirectory(prefix="lazyfs-live-") as directory:
        table = _Table(live, Path(directory))
        try:
            for row in sys.argv[1:] or ROWS:
                table.measure(*row.split(":"))
        finally:
            live.profile.unlink(missing_ok=True)


class _Table:
    """The measurements. The server has one address on all links, since it is part of cache keys."""

    def __init__(self, live: Live, directory: Path) -> None:
        self._live = live
        self._directory = directory
        self._disk = scratch_disk(directory)
        self._port = free_port()

    def measure(self, link: str, way: str) -> None:
        """Boot once, and print the row."""
        with LiveServer(self._live) as server, self._linked(server, link):
            url = server.iso().replace(f":{server.port}/", f":{self._port}/")
            with LiveMachine(
                self._live,
                self._directory,
                WAYS[way].format(url=url),
                initrd=self._live.stock if way in _STOCK else self._live.initrd,
                disk=self._disk if way in _ON_DISK else None,
                medium=self._live.iso if way == "local" else None,
                life=_PATIENCE,
            ) as machine:
                try:
                    row = self._boot(server, machine, way)
                except AssertionError as error:
                    row = f"did not boot: {str(error).splitlines()[-1]}"
        print(f"{link:4} {way:8} {row}", flush=True)

    def _boot(self, server: LiveServer, machine: LiveMachine, way: str) -> str:
        seconds, free = machine.marker()
        fetched, requests = server.body_bytes(), server.request_count()
        if way == "record":
            self._live.profile.write_text(machine.profile())
        return (
            f"{seconds:6.1f} s to the marker {fetched / MIB:6.1f} MiB {requests:5} requests "
            f"{free / MIB:6.0f} MiB available {machine.power_off():5.1f} s to power-off"
        )

    @contextmanager
    def _linked(self, server: LiveServer, link: str) -> Iterator[None]:
        """Provide the server at our port, over this link."""
        if not LINKS[link]:
            server.stop()
            server.port = self._port
            server.start()
            yield
            return
        ends = ["--listen", f"127.0.0.1:{self._port}", "--to", f"127.0.0.1:{server.port}"]
        shaper = subprocess.Popen(
            [sys.executable, "-m", "bench.shaper", *ends, *LINKS[link]],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert shaper.stdout is not None
            shaper.stdout.readline()  # its address: it listens now
            yield
        finally:
            shaper.terminate()
            shaper.communicate(timeout=30)


if __name__ == "__main__":
    main()

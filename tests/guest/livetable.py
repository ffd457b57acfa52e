"""Measure live boots beside each other: the table of docs/liveboot.rst.

As root, in ``tests``: ``python -m guest.livetable [LINK:WAY]...``, like ``wan:fetch``; all without
arguments. One line a boot, when it is there: seconds to the marker, bytes, requests, free memory.
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
LINKS = {"lan": (), "wan": ("--rtt", "20ms", "--rate", "50M")}
WAYS = {
    "cold": "lazyfs={url}",
    "record": "lazyfs={url} lazyfs.record live.profile",  # leaves what "profile" needs
    "profile": "lazyfs={url} lazyfs.profile=auto",
    "disk": "lazyfs={url} lazyfs.cache=LABEL=scratch",  # fills what "warm" needs
    "warm": "lazyfs={url} lazyfs.cache=LABEL=scratch",
    "fetch": "fetch={url}",
    "httpfs2": "httpfs={url}",
}
_STOCK = ("fetch", "httpfs2")  # by Debian's own initrd
_ON_DISK = ("disk", "warm")


def main() -> None:
    live = live_system(cache_directory())
    print(f"image: {live.iso.stat().st_size / MIB:.0f} MiB")
    every = [f"{link}:{way}" for link in LINKS for way in WAYS]
    with (
        tempfile.TemporaryDirectory(prefix="lazyfs-live-") as directory,
        LiveServer(live) as server,
    ):
        table = _Table(live, server, Path(directory))
        for row in sys.argv[1:] or every:
            table.measure(*row.split(":"))


class _Table:
    """One server for all boots: a cache knows an image by its URL."""

    def __init__(self, live: Live, server: LiveServer, directory: Path) -> None:
        self._live = live
        self._server = server
        self._directory = directory
        self._disk = scratch_disk(directory)
        self._far = free_port()  # by which the server is reached over a longer link

    def measure(self, link: str, way: str) -> None:
        """Boot once, and print the row."""
        server = self._server
        initrd = self._live.stock if way in _STOCK else self._live.initrd
        disk = self._disk if way in _ON_DISK else None
        bytes_before, requests_before = server.body_bytes(), server.request_count()
        with self._link(link) as port:
            url = server.iso().replace(f":{server.port}/", f":{port}/")
            words = WAYS[way].format(url=url)
            machine = LiveMachine(self._live, self._directory, words, initrd=initrd, disk=disk)
            with machine:
                seconds, free = machine.marker()
                fetched = server.body_bytes() - bytes_before
                requests = server.request_count() - requests_before
                print(
                    f"{link:4} {way:8} {seconds:6.1f} s to the marker {fetched / MIB:6.1f} MiB "
                    f"{requests:5} requests {free / MIB:6.0f} MiB available",
                    flush=True,
                )
                if way == "record":
                    self._live.profile.write_text(machine.profile())
                machine.power_off()

    @contextmanager
    def _link(self, link: str) -> Iterator[int]:
        """The port by which the server is reached on a link like this."""
        if not LINKS[link]:
            yield self._server.port
            return
        ends = ["--listen", f"127.0.0.1:{self._far}", "--to", f"127.0.0.1:{self._server.port}"]
        shaper = subprocess.Popen(
            [sys.executable, "-m", "bench.shaper", *ends, *LINKS[link]],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            assert shaper.stdout is not None
            shaper.stdout.readline()  # where it listens; so it does
            yield self._far
        finally:
            shaper.terminate()
            shaper.communicate(timeout=30)


if __name__ == "__main__":
    main()

"""What is read is what the server has: three images of over 100 MB, in fair weather and foul."""

import hashlib
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from .images import MIB, Images
from .mounts import COMMAND_LIMIT, Lab, Mounted, read, same_content
from .servers import Apache, Lighttpd, Nginx, RealServer, WithoutRanges
from .waiting import eventually

KINDS = ("random", "squashfs", "ext4")


@pytest.fixture(params=KINDS)
def image(request: pytest.FixtureRequest, images: Images) -> Path:
    path: Path = getattr(images, request.param)()
    assert path.stat().st_size > 100 * MIB
    return path


@pytest.fixture
def own_nginx(images: Images) -> Nginx:
    """An nginx that the test may stop."""
    return Nginx(images.root)


def test_image_is_equal_also_from_its_cache_alone(lab: Lab, image: Path, own_nginx: Nginx) -> None:
    size = image.stat().st_size
    with own_nginx as server:
        url = server.url(image.name)
        with lab.mounted(url) as mounted:
            assert same_content(mounted.image, image)
            assert mounted.cached() == size
        assert server.body_bytes() < size + MIB  # nothing came twice
        server.stop()
        with lab.mounted(url, troubled=True) as mounted:
            assert same_content(mounted.image, image)
            assert len(mounted.complaints()) <= 1, "the missing server is worth one line"


def test_image_is_equal_after_the_daemon_was_killed_in_a_read(
    lab: Lab, image: Path, own_nginx: Nginx
) -> None:
    size = image.stat().st_size
    own_nginx.rate = 900_000
    at = lab.mountpoint()
    with own_nginx as server:
        url = server.url(image.name)
        with lab.mounted(url, at=at, troubled=True) as mounted:
            kept = _kill_in_the_middle(mounted, image)
        server.stop()
        server.rate = 0
        server.start()
        with lab.mounted(url, at=at) as mounted:
            assert mounted.cached() >= kept - 4 * MIB, "what requests had completed was kept"
            assert same_content(mounted.image, image)
        assert server.body_bytes() < size + 16 * MIB


def _kill_in_the_middle(mounted: Mounted, image: Path) -> int:
    """Kill the daemon while a reader is at work; returns how much was cached just before."""
    with subprocess.Popen(["cmp", mounted.image, image], stderr=subprocess.PIPE) as reader:
        eventually(lambda: mounted.cached() > 8 * MIB, "8 MiB are cached")
        cached = mounted.cached()
        mounted.signal(signal.SIGKILL)
        _, complaint = reader.communicate(timeout=COMMAND_LIMIT)
    mounted.wait_until_ended()
    assert reader.returncode == 2, "the reader got an error, not the end of the file"
    assert complaint
    return cached


@pytest.mark.parametrize("kind", [Nginx, Apache, Lighttpd])
def test_real_servers(lab: Lab, images: Images, kind: type[RealServer]) -> None:
    image = images.erofs()
    with kind(images.root) as server:
        with lab.mounted(server.url(image.name)) as mounted:
            assert mounted.image.stat().st_mtime == int(image.stat().st_mtime)
            assert same_content(mounted.image, image)
        server.stop()  # which writes what is left of its log
        assert image.stat().st_size <= server.body_bytes() < image.stat().st_size + MIB


def test_a_file_that_is_brand_new_on_apache(
    lab: Lab, public_directory: Path, content: bytes
) -> None:
    """Apache gives it a weak entity tag at first and a strong one a moment later."""
    new = public_directory / "new.raw"
    with Apache(public_directory) as server:
        new.write_bytes(content)
        with lab.mounted(server.url("new.raw")) as mounted:
            assert read(mounted.image, 0, MIB) == content[:MIB]
            eventually(lambda: time.time() > new.stat().st_mtime + 2.5, "the file is not new")
            assert read(mounted.image, 2 * MIB, MIB) == content[2 * MIB : 3 * MIB]


def test_a_server_without_ranges_is_refused(lab: Lab, images: Images) -> None:
    image = images.erofs()
    with WithoutRanges(images.root) as server:
        done = lab.start(server.url(image.name), lab.mountpoint())
    assert done.returncode == 1
    assert "does not support range requests" in done.stderr


def test_readers_at_once(lab: Lab, images: Images, nginx: Nginx) -> None:
    """Eight readers of overlapping parts, forwards, get the right bytes and share the requests."""
    image = images.random()
    size = image.stat().st_size
    parts = [(n * size // 16, size // 2) for n in range(8)]
    before = nginx.body_bytes()
    with lab.mounted(nginx.url(image.name)) as mounted, ThreadPoolExecutor(len(parts)) as pool:
        digests = list(pool.map(lambda part: _digest(mounted.image, *part), parts))
    assert digests == [_digest(image, *part) for part in parts]
    assert nginx.body_bytes() - before < size + 8 * MIB


def _digest(path: Path, offset: int, length: int) -> str:
    return hashlib.sha256(read(path, offset, length)).hexdigest()

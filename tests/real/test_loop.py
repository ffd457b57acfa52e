"""Filesystems in images, mounted through loop devices: what lazyfs is for."""

import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from .images import MIB, PROBE, Images, digest_of, listing
from .mounts import (
    Lab,
    Mounted,
    is_mounted,
    loop_device,
    loop_mounted,
    need_loop,
    run,
)
from .servers import Nginx
from .waiting import eventually


@pytest.fixture(autouse=True)
def _need_loop() -> None:
    need_loop()


@pytest.mark.parametrize(
    ("kind", "options"), [("squashfs", "ro"), ("ext4", "ro,noload"), ("erofs", "ro")]
)
def test_every_file_of_a_filesystem(
    lab: Lab, images: Images, nginx: Nginx, kind: str, options: str
) -> None:
    image: Path = getattr(images, kind)()
    with (
        lab.mounted(nginx.url(image.name)) as mounted,
        loop_mounted(mounted.image, lab.mountpoint(), kind, options) as inside,
    ):
        found = listing(inside)
    assert found == listing(images.tree())


def test_one_file_of_a_large_image_costs_little(lab: Lab, images: Images, nginx: Nginx) -> None:
    """A file of 1 MiB in a squashfs of 1 GiB: under 8 MB travel."""
    image, digest = images.large_squashfs()
    assert image.stat().st_size > 1 << 30
    before = nginx.body_bytes()
    with lab.mounted(nginx.url(image.name)) as mounted:
        with loop_mounted(mounted.image, lab.mountpoint(), "squashfs") as inside:
            assert digest_of(inside / PROBE) == digest
        cached = mounted.cached()
    travelled = nginx.body_bytes() - before
    assert MIB < cached <= travelled < 8_000_000


def test_a_file_as_mount_point(lab: Lab, images: Images, nginx: Nginx) -> None:
    image = images.squashfs()
    at = lab.directory / "disk.raw"
    at.touch()
    with lab.mounted(nginx.url(image.name), at=at):
        assert at.stat().st_size == image.stat().st_size
        with loop_mounted(at, lab.mountpoint(), "squashfs") as inside:
            assert (inside / "text").read_text() == (images.tree() / "text").read_text()
    assert at.stat().st_size == 0


def test_mount_makes_the_loop_device_itself(lab: Lab, images: Images, nginx: Nginx) -> None:
    """``mount -o loop,ro``, as the documentation has it."""
    image = images.erofs()
    with lab.mounted(nginx.url(image.name)) as mounted:
        at = lab.mountpoint()
        done = run(["mount", "-o", "loop,ro", mounted.image, at])
        assert done.returncode == 0, done.stderr
        try:
            assert (at / "text").read_text() == (images.tree() / "text").read_text()
        finally:
            run(["umount", at], limit=20)
        eventually(lambda: not is_mounted(at), "the image is unmounted", 20)


@pytest.fixture
def busy(lab: Lab, images: Images, nginx: Nginx) -> Iterator[tuple[Mounted, Path]]:
    """A mount whose image has a loop device on it, and that device."""
    with (
        lab.mounted(nginx.url(images.erofs().name), troubled=True) as mounted,
        loop_device(mounted.image) as device,
    ):
        yield mounted, device


def test_sigterm_is_refused_while_a_loop_device_needs_the_image(
    busy: tuple[Mounted, Path],
) -> None:
    mounted, device = busy
    mounted.signal(signal.SIGTERM)
    eventually(lambda: f"in use by {device}" in mounted.messages(), "the daemon says so")
    assert mounted.image.exists()
    assert not mounted.has_ended()


def test_umount_names_the_loop_device_in_the_way(lab: Lab, busy: tuple[Mounted, Path]) -> None:
    mounted, device = busy
    done = lab.start("umount", mounted.path)
    assert done.returncode == 1
    assert f"in use by {device}" in done.stderr
    assert "losetup -d" in done.stderr
    assert mounted.image.exists()


def test_sigterm_is_obeyed_once_the_loop_device_is_gone(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    with lab.mounted(nginx.url(images.erofs().name), troubled=True) as mounted:
        with loop_device(mounted.image) as device:
            mounted.signal(signal.SIGTERM)
            eventually(lambda: str(device) in mounted.messages(), "the daemon refuses")
        mounted.signal(signal.SIGTERM)
        mounted.wait_until_ended()
        assert not is_mounted(mounted.path)


def test_reads_of_a_loop_device_while_others_read_the_file(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    image = images.squashfs()
    with lab.mounted(nginx.url(image.name)) as mounted, loop_device(mounted.image) as device:
        with subprocess.Popen(["cmp", mounted.image, image]) as reader:
            size = str(image.stat().st_size)
            done = run(["cmp", "-n", size, device, image])
            assert reader.wait(60) == 0
        assert done.returncode == 0, done.stdout

"""Layers: a part of an image as an image, through each front end and each command."""

import json
import os
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from iso.flavours import make, plant_posix

from .images import MIB, Images
from .mounts import LAZYFS, Lab, environment, need_loop, read, run, run_well
from .servers import Nginx, Scripted
from .test_loopmount import backing, looped
from .waiting import eventually

START = {1: MIB, 2: 161 * MIB, 3: 481 * MIB, 4: 589 * MIB}  # of the disk's partitions
MOST = 8 * MIB  # bytes that one file of 1 MiB may cost


@pytest.fixture(scope="module")
def disk(images: Images) -> Path:
    return images.disk()


@pytest.fixture
def server(images: Images, disk: Path) -> Iterator[Nginx]:
    """A server whose counts begin with the test."""
    with Nginx(images.root) as nginx:
        yield nginx


def piece(file: Path, offset: int, length: int) -> bytes:
    with open(file, "rb") as opened:
        return os.pread(opened.fileno(), length, offset)


def attribute(file: Path, name: str) -> str:
    return os.getxattr(file, f"user.lazyfs.{name}").decode()


# FUSE


@pytest.mark.parametrize(
    ("fragment", "name", "start", "size"),
    [
        ("part=2", "disk.raw.part2", START[2], 320 * MIB),
        ("part=LABEL:squashfs", "disk.raw.squashfs", START[3], 108 * MIB),
        ("offset=481M", "disk.raw.504365056-end", START[3], (4 << 30) - START[3]),
        ("offset=160M,length=400M,offset=1M,length=1M", None, START[2], MIB),
    ],
)
def test_a_view_is_mounted_as_a_file(
    lab: Lab, server: Nginx, disk: Path, fragment: str, name: str | None, start: int, size: int
) -> None:
    url = f"{server.url('disk.raw')}#{fragment}"
    with lab.mounted(url) as mounted:
        (file,) = mounted.path.iterdir()
        assert name is None or file.name == name
        assert file.stat().st_size == size
        for offset in (0, 12345, size - 5000):
            assert read(file, offset, 5000) == piece(disk, start + offset, 5000)
        assert file.stat().st_blocks * 512 < MIB + 5000
        assert f"fsname={server.url('disk.raw')}#" in f"fsname={attribute(file, 'url')}"
    assert server.body_bytes() < MOST


def test_views_of_one_image_share_its_cache_and_are_told_apart(
    lab: Lab, server: Nginx, disk: Path
) -> None:
    """Two slices of equal size: the same validators, and yet other images."""
    url = server.url("disk.raw")
    slices = [f"{url}#offset=1M,length=1M", f"{url}#offset=481M,length=1M"]
    with lab.mounted(*slices, url) as mounted:
        first, second, whole = (
            mounted.path / name
            for name in ("disk.raw.1048576-2097152", "disk.raw.504365056-505413632", "disk.raw")
        )
        assert read(first, 0, 100) == piece(disk, MIB, 100)
        assert read(second, 0, 100) == piece(disk, START[3], 100)
        identities = {attribute(file, "identity") for file in (first, second)}
        views = [attribute(file, "view") for file in (first, second, whole)]
        assert len(identities) == 1
        assert len(set(views)) == 3
        assert views[0] == f"{views[2]}#offset=1048576,length=1048576"
        (daemon,) = json.loads(run_well([*LAZYFS, "status", "--json", mounted.path]))
        sizes = {image["name"]: image["size"] for image in daemon["images"]}
        assert set(sizes.values()) == {4 << 30}
        shown = [image["view"] for image in daemon["images"]]
        assert [view and view["size"] for view in shown] == [MIB, MIB, None]
        assert 0 < shown[0]["cached"] < MIB
    assert len(list(lab.cache.iterdir())) == 1


def test_a_mounted_view_is_not_taken_for_the_image_nor_the_image_for_a_view(
    lab: Lab, server: Nginx, disk: Path
) -> None:
    url = server.url("disk.raw")
    options = ("--json", "--cache-dir", str(lab.cache))
    with lab.mounted(f"{url}#part=2"):
        whole = json.loads(lab.start("info", *options, url).stdout)
        assert whole["size"] == 4 << 30
        assert whole["partition_table"]["kind"] == "GPT"
        view = json.loads(lab.start("info", *options, f"{url}#part=2").stdout)
        assert (view["size"], view["kinds"], view["label"]) == (320 * MIB, ["xfs"], "probe")
    with lab.mounted(url):
        view = json.loads(lab.start("info", *options, f"{url}#part=3").stdout)
        assert (view["size"], view["kinds"]) == (108 * MIB, ["squashfs"])


def test_mount_takes_a_fragment_from_fstab(lab: Lab, server: Nginx, disk: Path) -> None:
    at = lab.mountpoint()
    helper = lab.directory / "mount.lazyfs"
    helper.write_text(f'#!/bin/sh\nexec {" ".join(map(str, LAZYFS))} "$@"\n')
    helper.chmod(0o755)
    words = [f"{server.url('disk.raw')}#part=3", at, "-o", f"rw,cache_dir={lab.cache}"]
    run_well([helper, *words])
    try:
        assert read(at / "disk.raw.part3", 0, 4) == b"hsqs"
    finally:
        run_well([*LAZYFS, "umount", at])


# Loop devices


@pytest.mark.parametrize(("number", "kind"), [(1, "ext4"), (2, "xfs"), (3, "squashfs")])
def test_the_filesystem_in_a_partition_is_mounted(
    lab: Lab, server: Nginx, images: Images, number: int, kind: str
) -> None:
    need_loop()
    with looped(lab, f"{server.url('disk.raw')}#part={number}") as loop:
        assert f" {kind} " in next(
            line
            for line in Path("/proc/self/mounts").read_text().splitlines()
            if f" {loop.path} " in line
        )
        if kind == "xfs":
            expected = (images.root / "probe.xfs.bin").read_bytes()
            assert (loop.path / "probe.bin").read_bytes() == expected
        else:
            files = (path for path in images.tree().rglob("*") if path.is_file())
            file = max(files, key=lambda path: path.stat().st_size)
            same = loop.path / file.relative_to(images.tree())
            assert same.read_bytes()[:MIB] == piece(file, 0, MIB)
        loop.umount()
    if kind == "xfs":
        assert server.body_bytes() < MOST


def with_one_filesystem(content: bytes) -> bytes:
    """A disk with an MBR: a partition of zeros, and one of ``content``."""
    entries = [(0x0C, 2048, 2048), (0x83, 4096, len(content) // 512)]
    table = b"".join(struct.pack("<B3xB3xLL", 0, *entry) for entry in entries)
    head = bytes(440) + b"\x78\x56\x34\x12\0\0" + table.ljust(64, b"\0") + b"\x55\xaa"
    return head.ljust(4096 * 512, b"\0") + content


def test_the_only_filesystem_on_a_disk_is_taken_and_that_is_said(lab: Lab, images: Images) -> None:
    need_loop()
    filesystem = images.squashfs().read_bytes()
    padded = filesystem.ljust(-(-len(filesystem) // 512) * 512, b"\0")
    with Scripted(**{"disk.raw": with_one_filesystem(padded)}) as server:
        url = server.url("disk.raw")
        said = (
            f"lazyfs: {url}: partition 2 ({len(padded) / MIB:.1f} MiB, squashfs) is taken: "
            "nothing else in it has files\n"
        )
        with looped(lab, url, says=said) as loop:
            assert sorted(os.listdir(loop.path)) == sorted(os.listdir(images.tree()))
            loop.umount()


@pytest.mark.parametrize("command", ["loop", "ls"])
def test_where_there_is_a_choice_the_partitions_are_named(
    lab: Lab, server: Nginx, disk: Path, command: str
) -> None:
    need_loop()
    words = [lab.mountpoint()] if command == "loop" else []
    done = lab.start(command, "--cache-dir", str(lab.cache), server.url("disk.raw"), *words)
    assert done.returncode == 1
    assert done.stderr == (
        f"lazyfs: {server.url('disk.raw')} is a disk with several filesystems, in partitions "
        '1 (160.0 MiB, ext4), 2 (320.0 MiB, xfs "probe"), 3 (108.0 MiB, squashfs); '
        f"choose one: {server.url('disk.raw')}#part=1\n"
    )


def test_a_disk_without_a_filesystem_is_said_to_have_none(lab: Lab) -> None:
    content = with_one_filesystem(bytes(MIB))
    with Scripted(**{"disk.raw": content}) as server:
        done = lab.start("ls", "--cache-dir", str(lab.cache), server.url("disk.raw"))
    assert done.returncode == 1
    assert "is a disk without a filesystem that is known, in partitions 1 (1.0 MiB," in done.stderr


def test_a_filled_partition_is_handed_over(lab: Lab, server: Nginx, images: Images) -> None:
    """Only the partition is fetched; its loop device moves to that part of the local copy."""
    need_loop()
    with looped(lab, "--fill", f"{server.url('disk.raw')}#part=3") as loop:
        eventually(lambda: backing(loop.device) != loop.file, "it is handed over", 60)
        loop.daemon.wait_until_ended()
        below = backing(loop.device)
        assert str(below).startswith("/dev/loop")
        (data,) = lab.cache.glob("*/data")
        assert backing(below) == data
        run_well(["diff", "-r", "--no-dereference", loop.path, images.tree()])
        run_well([*LAZYFS, "umount", loop.path])
        eventually(lambda: backing(below) != data, "both loop devices are gone", 20)
    size = images.squashfs().stat().st_size
    assert size <= server.body_bytes() < size + 2 * MIB


# Other commands


def test_a_partition_is_served(lab: Lab, server: Nginx, disk: Path) -> None:
    copy = lab.directory / "copy.raw"
    url = f"{server.url('disk.raw')}#part=3"
    command = f'nbdcopy "$uri" {copy}'
    done = lab.start("serve", "--cache-dir", str(lab.cache), url, "--run", command)
    assert done.returncode == 0, done.stderr
    assert copy.stat().st_size == 108 * MIB
    assert subprocess.run(
        ["cmp", "-n", str(108 * MIB), disk, copy, str(START[3])], check=False
    ).returncode == 0  # fmt: skip


@pytest.fixture(scope="module")
def iso_on_a_disk(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("iso")
    make(["xorriso", "-as", "mkisofs"], plant_posix(place / "tree"), place / "posix.iso")
    return with_one_filesystem((place / "posix.iso").read_bytes())


@pytest.mark.parametrize("fragment", ["#part=2", "", "#part=PARTUUID:12345678-02"])
def test_files_are_taken_out_of_a_partition(lab: Lab, iso_on_a_disk: bytes, fragment: str) -> None:
    options = ["--cache-dir", str(lab.cache)]
    file = lab.directory / "disk.raw"
    file.write_bytes(iso_on_a_disk)
    with Scripted(**{"disk.raw": iso_on_a_disk}) as server:
        for image in (server.url("disk.raw"), str(file)):
            listed = lab.start("ls", *options, image + fragment)
            assert listed.returncode == 0, listed.stderr
            name = next(line for line in listed.stdout.splitlines() if line)
            assert bool(listed.stderr) == (not fragment)
            out = lab.directory / f"out{len(image)}"
            out.mkdir()
            copied = lab.start("cp", "-r", *options, image + fragment, f"/{name}", str(out))
            assert copied.returncode == 0, copied.stderr
            assert os.path.lexists(out / name)
    assert len(list(lab.cache.glob("*/catalog*"))) <= 1


def test_a_profile_of_a_view_is_of_the_images_bytes(
    lab: Lab, server: Nginx, disk: Path, tmp_path: Path
) -> None:
    """What a partition's reader used can be preloaded for the partition and for the image."""
    profile = tmp_path / "profile"
    url = server.url("disk.raw")
    with lab.mounted("--record", str(profile), f"{url}#part=3") as mounted:
        read(mounted.path / "disk.raw.part3", 5 * MIB, 200_000)
    words = profile.read_text().split()
    assert str(START[3] + 5 * MIB) in words
    for view in (url, f"{url}#part=3"):
        cache = lab.directory / f"cache{len(view)}"
        with lab.mounted("--profile", str(profile), view, cache=cache) as mounted:
            eventually(lambda: mounted.cached() >= 200_000, "it is preloaded", 20)


def test_the_catalog_of_a_view_is_not_taken_for_another_views(lab: Lab) -> None:
    """Two partitions of one size with other files: each ``ls`` shows its own."""
    isos = []
    for number in (1, 2):
        tree = lab.directory / f"tree{number}"
        tree.mkdir()
        (tree / f"only-in-{number}").write_text("text")
        make(["xorriso", "-as", "mkisofs"], tree, lab.directory / f"{number}.iso")
        isos.append((lab.directory / f"{number}.iso").read_bytes())
    assert len(isos[0]) == len(isos[1])
    content = isos[0] + isos[1]
    size = len(isos[0])
    with Scripted(**{"two.raw": content}) as server:
        for _ in range(2):  # the second time by the remembered catalogs
            for number in (1, 2):
                fragment = f"#offset={(number - 1) * size},length={size}"
                url = server.url("two.raw") + fragment
                done = lab.start("ls", "--cache-dir", str(lab.cache), url)
                assert done.stdout == f"only-in-{number}\n"
    assert len(list(lab.cache.glob("*/catalog-*"))) == 2


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        ("part=9", "part=9: there is no partition 9; there are 1, 2, 3 and 4"),
        ("offset=5G", "the image has 4294967296 bytes (4.0 GiB), and the slice would reach"),
        ("part=1,part=1", "there is no partition table"),
    ],
)
def test_a_view_that_is_not_there_is_said(
    lab: Lab, server: Nginx, disk: Path, fragment: str, says: str
) -> None:
    at = lab.mountpoint()
    url = f"{server.url('disk.raw')}#{fragment}"
    done = run([*LAZYFS, "--cache-dir", str(lab.cache), url, str(at)], env=environment(lab.home))
    assert done.returncode == 1
    assert says in done.stderr

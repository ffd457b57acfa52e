"""lazyfs reads from other people's NBD servers, and its clients get the right bytes."""

import re
from pathlib import Path

import pytest
from real.mounts import Lab, need_tool, run_well

from .conftest import Disk
from .servers import foreign, nbd_server, nbdkit, serving
from .test_clients import map_of, sum_of


def copied(lab: Lab, uri: str, *options: str, troubled: bool = False) -> str:
    """The checksum of what comes out of lazyfs in front of this server."""
    copy = lab.directory / "copy"
    with serving(lab, *options, uri, troubled=troubled) as server:
        run_well([need_tool("nbdcopy", "libnbd-bin"), server.uri, copy])
    return sum_of(copy)


@pytest.mark.parametrize(
    "filters",
    [
        [],
        ["--no-sr"],
        ["--filter=nozero", "--filter=noextents"],
        ["--filter=delay", "rdelay=20ms"],
        ["--filter=noparallel", "serialize=connections"],
        [
            "--filter=blocksize-policy",
            "blocksize-minimum=65536",
            "blocksize-preferred=65536",
            "blocksize-error-policy=error",
        ],
    ],
)
def test_nbdkit_in_all_its_ways(filters: list[str], lab: Lab, disk: Disk, tmp_path: Path) -> None:
    switches = [word for word in filters if word.startswith("--")]
    settings = [word for word in filters if not word.startswith("--")]
    size = 64 << 10  # of the blocks of one of them, of which the image must be a multiple
    padded = tmp_path / "padded"
    content = disk.path.read_bytes()
    padded.write_bytes(content[: len(content) - len(content) % size])
    with nbdkit(tmp_path, *switches, "file", padded, *settings) as uri:
        assert copied(lab, uri) == sum_of(padded)


def test_a_server_that_fails_now_and_then_is_asked_again(
    lab: Lab, disk: Disk, tmp_path: Path
) -> None:
    with nbdkit(tmp_path, "--filter=error", "file", disk.path, "error-pread-rate=10%") as uri:
        assert copied(lab, uri, troubled=True) == disk.sum


def test_qemu_nbd_serves_a_qcow2_image(lab: Lab, disk: Disk, tmp_path: Path) -> None:
    image, socket = tmp_path / "disk.qcow2", tmp_path / "qemu.sock"
    run_well([need_tool("qemu-img", "qemu-utils"), "convert", "-O", "qcow2", disk.path, image])
    with foreign(
        ["qemu-nbd", "-r", "-f", "qcow2", "-k", socket, "-e", "8", "-t", image], socket
    ) as uri:
        assert copied(lab, uri) == disk.sum


def test_nbd_server_is_read_by_the_name_of_its_export(lab: Lab, disk: Disk, tmp_path: Path) -> None:
    with nbd_server(tmp_path, "disk", disk.path) as uri:
        assert copied(lab, uri) == disk.sum


def test_what_is_vouched_for_outlives_a_run(lab: Lab, disk: Disk, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "file", disk.path) as uri:
        assert copied(lab, "--nbd-fixed", uri) == disk.sum
    # The server has gone: all comes out of the cache.
    assert copied(lab, "--nbd-fixed", uri, troubled=True) == disk.sum


def test_without_that_the_cache_ends_with_the_run(lab: Lab, disk: Disk, tmp_path: Path) -> None:
    with nbdkit(tmp_path, "file", disk.path) as uri:
        assert copied(lab, uri) == disk.sum
        with serving(lab, uri, troubled=True) as server:
            local = [length for _, length, flags in map_of(server.uri, "lazyfs:cached") if flags]
            assert sum(local) < 4 << 20


def test_of_a_terabyte_only_what_is_allocated_travels(lab: Lab, tmp_path: Path) -> None:
    """124 MB of data, in a terabyte of holes, are compared with what the server makes up."""
    statistics = tmp_path / "statistics"
    sparse = ["sparse-random", "1T", "percent=0.01", "seed=1", "runlength=1048576"]
    counted = ["--filter=stats", *sparse, f"statsfile={statistics}"]
    with nbdkit(tmp_path, *counted) as uri, serving(lab, uri) as server:
        said = run_well(["nbdinfo", "--map", "--totals", server.uri])
        (data,) = re.findall(r"^ *(\d+) .* data$", said, re.MULTILINE)
        assert int(data) < 200 << 20
        run_well([need_tool("nbdcopy", "libnbd-bin"), server.uri, uri])  # it refuses other content
        local = [length for _, length, flags in map_of(server.uri, "lazyfs:cached") if flags]
        # Read-ahead and neighbourhoods reach into the holes, which take room and do not travel.
        assert sum(local) < 3 * int(data)
        assert server.peak_memory() < 200 << 20
    travelled = re.search(r"^read: .* s, ([\d.]+) MiB,", statistics.read_text(), re.MULTILINE)
    assert travelled is not None
    assert float(travelled[1]) * (1 << 20) < 1.01 * int(data)

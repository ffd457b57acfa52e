"""The cache as others see it: its files, who may use it, and what becomes of damage."""

import json
import os
import signal
from pathlib import Path

import pytest

from lazyfs.sources.http import FIRST_BYTES

from .images import MIB
from .mounts import Lab, adopted, read
from .servers import Scripted

BLOCK = 64 << 10


def test_the_bitmap_says_what_was_read(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """Byte by byte: bit n % 8 of byte n // 8, the lowest first, padded to 4096 bytes."""
    bitmap, data = lab.directory / "image.bitmap", lab.directory / "image.cache"
    options = ["--block-size", "4K", "--bitmap", str(bitmap), "--cache", str(data)]
    wanted = [700, 33, 1024, 20, 390]  # in no order that a read-ahead could follow
    with lab.mounted(*options, scripted.url("image.raw")) as mounted:
        for block in wanted:
            read(mounted.image, block * 4096, 1)
    wanted += range(FIRST_BYTES // 4096)
    expected = bytearray(4096)
    for block in wanted:
        expected[block // 8] |= 1 << block % 8
    assert bitmap.read_bytes() == bytes(expected)
    assert data.stat().st_size == len(content)
    found = data.read_bytes()
    for block in wanted:
        assert found[block * 4096 :][:4096] == content[block * 4096 :][:4096]
    present = sum(len(content[block * 4096 :][:4096]) for block in wanted)
    assert len(found) - found.count(0) <= present


def test_the_bitmap_is_full_when_all_was_read(lab: Lab, scripted: Scripted, content: bytes) -> None:
    bitmap, data = lab.directory / "bits", lab.directory / "data"
    options = ["--block-size", "64K", "--bitmap", str(bitmap), "--cache", str(data)]
    with lab.mounted(*options, scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    blocks = -(-len(content) // BLOCK)
    expected = (1 << blocks) - 1
    assert int.from_bytes(bitmap.read_bytes(), "little") == expected
    assert data.read_bytes() == content


def test_a_large_bitmap_has_more_pages(lab: Lab, scripted: Scripted) -> None:
    size = 4096 * 8 * 4096 + 1  # bytes: one block more than one page of bits can say
    scripted.files["/image.raw"].content = b"\0" * size
    bitmap = lab.directory / "bits"
    options = ["--block-size", "4K", "--bitmap", str(bitmap), "--cache", str(lab.directory / "d")]
    with lab.mounted(*options, scripted.url("image.raw")) as mounted:
        read(mounted.image, size - 1, 1)
    first_page, second_page = bitmap.read_bytes()[:4096], bitmap.read_bytes()[4096:]
    assert first_page == b"\xff" * (FIRST_BYTES // 4096 // 8) + bytes(4094)
    assert second_page == b"\1" + bytes(4095)


def test_the_users_own_files_are_not_overwritten(lab: Lab, scripted: Scripted) -> None:
    precious = lab.directory / "thesis.txt"
    precious.write_text("years of work")
    words: list[str | Path] = ["--bitmap", lab.directory / "bits", "--cache", precious]
    done = lab.start(*words, scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 1
    assert f"{precious} exists and is no cache of lazyfs" in done.stderr
    assert precious.read_text() == "years of work"


def test_a_name_that_no_file_can_have_is_said(lab: Lab, scripted: Scripted) -> None:
    words: list[str | Path] = ["--bitmap", lab.directory / "bits", "--cache", "x" * 300]
    done = lab.start(*words, scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 1
    assert "File name too long" in done.stderr
    assert done.stderr.count("\n") == 1


def test_two_daemons_do_not_share_a_cache(lab: Lab, scripted: Scripted, content: bytes) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        second = lab.mountpoint()
        done = lab.start("--cache-dir", lab.cache, url, second)
        assert done.returncode == 1
        assert f"in use by another lazyfs (process {mounted.pid})" in done.stderr
        assert "--cache-dir" in done.stderr
        assert done.stderr.count("\n") == 1
        assert mounted.image.read_bytes() == content
    with lab.mounted(url, at=second) as mounted:
        assert mounted.image.read_bytes() == content


def test_a_mount_follows_another_at_once(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """The first daemon may still be ending when the second starts."""
    url = scripted.url("image.raw")
    at = lab.mountpoint()
    for round_ in range(3):
        log = lab.directory / f"{round_}.log"
        words: list[str | Path] = ["--cache-dir", lab.cache, "--log-file", log, url, at]
        assert lab.start(*words).returncode == 0
        with adopted(at, lab.cache, log) as mounted:
            assert mounted.image.read_bytes() == content
            assert lab.start("umount", at).returncode == 0


def test_two_images_have_caches_of_their_own(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """Also when only the query tells them apart."""
    for number in (1, 2):
        path = f"/image.raw?version={number}"
        scripted.files[path] = type(scripted.files["/image.raw"])(content[number:])
    urls = [scripted.url(f"image.raw?version={number}") for number in (1, 2)]
    for number, url in enumerate(urls, 1):
        with lab.mounted(url) as mounted:
            assert mounted.image.read_bytes() == content[number:]
    assert len(list(lab.cache.glob("image.raw-*"))) == 2


def test_without_a_cache(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """Nothing is written, and what does not fit in memory is fetched again."""
    large = content * 8  # more than is kept in memory
    scripted.files["/image.raw"].content = large
    with lab.mounted("--no-cache", scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == large
        assert 0 < mounted.cached() <= 16 * MIB
        assert mounted.image.read_bytes() == large
        assert mounted.peak_memory() < 80 * 10**6
    assert not lab.cache.exists()
    assert os.listdir(lab.home) == []


@pytest.mark.parametrize("size", ["4K", "32K", "1M"])
def test_block_sizes(lab: Lab, scripted: Scripted, content: bytes, size: str) -> None:
    with lab.mounted("--block-size", size, scripted.url("image.raw")) as mounted:
        read(mounted.image, 2 * MIB, 1)
        whole = FIRST_BYTES if size != "1M" else 0
        assert mounted.cached() == whole + {"4K": 4096, "32K": 32768, "1M": MIB}[size]
        assert mounted.image.read_bytes() == content


def test_a_cache_keeps_its_block_size(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted("--block-size", "4K", scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    with lab.mounted("--block-size", "1M", scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.cached() == len(content)
        assert mounted.image.read_bytes() == content
        assert "keeps its block size of 4096" in mounted.said + mounted.messages()
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.said == "", "nobody asked for another size"


def _cache_of(lab: Lab, name: str) -> Path:
    (path,) = lab.cache.glob(f"image.raw-*/{name}")
    return path


def test_a_rotten_block_is_fetched_again(lab: Lab, scripted: Scripted, content: bytes) -> None:
    with lab.mounted("--block-size", "64K", scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    with open(_cache_of(lab, "data"), "r+b") as data:
        data.seek(5 * BLOCK + 100)
        data.write(b"rot")
    asked = len(scripted.requests)
    with lab.mounted("--block-size", "64K", scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content
        assert len(mounted.complaints()) == 1
        assert "damaged" in mounted.complaints()[0]
    spans = [request.span for request in scripted.requests[asked:]]
    assert spans == [(0, 0), (5 * BLOCK, 6 * BLOCK - 1)]


def test_bits_without_data_are_not_believed(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """As after a power cut that kept the bitmap and lost the rest."""
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    for name in ("data", "sums"):
        os.truncate(_cache_of(lab, name), 0)
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content


@pytest.mark.parametrize("name", ["data", "bitmap", "sums", "meta.json"])
def test_lost_files_only_cost_traffic(
    lab: Lab, scripted: Scripted, content: bytes, name: str
) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    _cache_of(lab, name).unlink()
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content


@pytest.mark.parametrize("text", ["", "{", "[]", '{"format": 99}', '{"format": 1}'])
def test_metadata_that_make_no_sense(
    lab: Lab, scripted: Scripted, content: bytes, text: str
) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    _cache_of(lab, "meta.json").write_text(text)
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content
    assert json.loads(_cache_of(lab, "meta.json").read_text())["format"] == 1


def test_a_killed_daemon_loses_nothing_that_was_complete(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    with lab.mounted(scripted.url("image.raw"), troubled=True) as mounted:
        assert mounted.image.read_bytes() == content
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
    asked = len(scripted.requests)
    with lab.mounted(scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
    assert len(scripted.requests) - asked <= 2

"""The catalog of an image: read once, remembered, and never believed of another image."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

import pytest
import trio
from fakes import RecordingDevice, noise
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.cli.tour.writer import write_iso
from lazyfs.core.device import Identity
from lazyfs.core.errors import ImageError, ReadTimeout
from lazyfs.images.catalogs import DeviceFile, tree_of, tree_with

DATE = "Mon, 06 Jan 2025 10:00:00 GMT"


@pytest.fixture(scope="module")
def iso(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return image_with(tmp_path_factory, [f"boot/file{number}" for number in range(20)])


def image_with(tmp_path_factory: pytest.TempPathFactory, paths: Iterable[str]) -> bytes:
    place = tmp_path_factory.mktemp("iso")
    (place / "text").write_text("text\n")
    write_iso(place / "image", dict.fromkeys(paths, place / "text"), "LABEL")
    return (place / "image").read_bytes()


@pytest.fixture
def catalog_file(tmp_path: Path) -> Path:
    return tmp_path / "catalog"


def device_of(
    content: bytes, etag: str | None = '"v1"', date: str | None = DATE
) -> RecordingDevice:
    device = RecordingDevice(content)
    device.identity = Identity(len(content), etag, date)
    return device


def spoilt(catalog_file: Path, spoil: Callable[[bytes], bytes]) -> bytes:
    """Spoil what is remembered; returns what it was."""
    whole = catalog_file.read_bytes()
    catalog_file.write_bytes(spoil(whole))
    return whole


async def test_the_second_look_reads_nothing(iso: bytes, catalog_file: Path) -> None:
    first = await tree_of(device_of(iso), catalog_file)
    assert len(first.node("boot").children) == 20
    second = device_of(iso)
    assert await tree_of(second, catalog_file) == first
    assert second.calls == []
    assert os.listdir(catalog_file.parent) == [catalog_file.name]
    assert os.stat(catalog_file).st_mode & 0o777 == 0o600


async def test_without_a_notebook_it_is_read_each_time(iso: bytes) -> None:
    for _ in range(2):
        device = device_of(iso)
        await tree_of(device)
        assert device.calls


@pytest.mark.parametrize(
    "other",
    [('"v2"', DATE), (None, DATE), ('"v1"', "Tue, 07 Jan 2025 10:00:00 GMT"), ('"v1"', None)],
)
async def test_what_is_of_another_version_is_not_used(
    iso: bytes, catalog_file: Path, other: tuple[str | None, str | None]
) -> None:
    await tree_of(device_of(iso), catalog_file)
    changed = device_of(iso, *other)
    await tree_of(changed, catalog_file)
    assert changed.calls
    again = device_of(iso, *other)
    await tree_of(again, catalog_file)
    assert again.calls == [], "the new one is remembered in its place"


async def test_an_image_of_another_size_is_another_image(iso: bytes, catalog_file: Path) -> None:
    await tree_of(device_of(iso), catalog_file)
    longer = device_of(iso + bytes(2048))
    await tree_of(longer, catalog_file)
    assert longer.calls


async def test_an_image_that_cannot_be_told_from_its_next_version_is_not_remembered(
    iso: bytes, catalog_file: Path
) -> None:
    await tree_of(device_of(iso, None, None), catalog_file)
    assert os.listdir(catalog_file.parent) == []
    await tree_of(device_of(iso), catalog_file)
    unpinned = device_of(iso, None, None)
    await tree_of(unpinned, catalog_file)
    assert unpinned.calls


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: b"",
        lambda data: data[:100],
        lambda data: data[:-1],
        lambda data: data + b"x",
        lambda data: data[:-5] + bytes([data[-5] ^ 1]) + data[-4:],
        lambda data: data.partition(b"\n")[0] + b"\n",
        lambda data: noise(5000),
        lambda data: bytes(5000),
    ],
)
async def test_a_damaged_notebook_is_not_used_and_written_anew(
    iso: bytes, catalog_file: Path, spoil: Callable[[bytes], bytes]
) -> None:
    expected = await tree_of(device_of(iso), catalog_file)
    whole = spoilt(catalog_file, spoil)
    device = device_of(iso)
    assert await tree_of(device, catalog_file) == expected
    assert device.calls
    assert spoilt(catalog_file, bytes) == whole


async def test_a_notebook_that_cannot_be_used_is_no_trouble(iso: bytes, catalog_file: Path) -> None:
    os.mkdir(catalog_file)
    (catalog_file / "mine").touch()
    assert (await tree_of(device_of(iso), catalog_file)).node("boot")
    assert (await tree_of(device_of(iso), catalog_file / "no/such")).node("boot")
    assert os.listdir(catalog_file.parent) == [catalog_file.name], "no half-written one is left"


async def test_what_is_no_iso_is_an_error_and_not_remembered(catalog_file: Path) -> None:
    with pytest.raises(ImageError):
        await tree_of(device_of(noise(200_000)), catalog_file)
    assert os.listdir(catalog_file.parent) == []


async def test_a_read_that_fails_is_said_as_it_is(iso: bytes, catalog_file: Path) -> None:
    class Failing(RecordingDevice):
        async def read(self, offset: int, length: int) -> bytes:
            raise ReadTimeout("no data within 1 second")

    with pytest.raises(ReadTimeout, match="no data within 1 second"):
        await tree_of(Failing(iso), catalog_file)
    assert os.listdir(catalog_file.parent) == []


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An image with many directories."""
    paths = [f"part{number}/of/file{number}" for number in range(20)]
    return image_with(tmp_path_factory, paths)


async def test_for_a_file_only_the_directories_on_its_way_are_read(
    wide: bytes, catalog_file: Path
) -> None:
    whole = await tree_of(device_of(wide))
    tree = await tree_with(device_of(wide), catalog_file, ["part3/of/file3", "/part4/./of//file4"])
    assert tree.node("part3") == whole.node("part3")
    assert tree.extents("part4/of/file4") == whole.extents("part4/of/file4")
    assert not tree.node("part5").children
    assert os.listdir(catalog_file.parent) == [], "half a tree is not remembered"


async def test_what_is_not_on_the_way_is_looked_for_everywhere(
    wide: bytes, catalog_file: Path
) -> None:
    tree = await tree_with(device_of(wide), catalog_file, ["part5/../part6/of/file6"])
    assert tree == await tree_of(device_of(wide))
    assert os.listdir(catalog_file.parent) == [catalog_file.name]
    again = device_of(wide)
    assert await tree_with(again, catalog_file, ["part7/of/file7"]) == tree
    assert again.calls == []


SMALL = noise(1000)
STEPS = st.lists(
    st.one_of(
        st.tuples(
            st.just("seek"),
            st.integers(-1500, 1500),
            st.sampled_from([os.SEEK_SET, os.SEEK_CUR, os.SEEK_END]),
        ),
        st.tuples(st.just("read"), st.one_of(st.none(), st.integers(-1, 1500)), st.just(0)),
    ),
    max_size=12,
)


@given(STEPS)
async def test_a_cursor_moves_as_a_files_does(steps: list[tuple[str, int, int]]) -> None:
    def both() -> None:
        position = 0
        file = DeviceFile(RecordingDevice(SMALL))
        for what, number, whence in steps:
            if what == "seek":
                bases = {os.SEEK_SET: 0, os.SEEK_CUR: position, os.SEEK_END: len(SMALL)}
                position = max(0, bases[whence] + number)
                assert file.seek(number, whence) == position
            else:
                stop = len(SMALL) if number in (None, -1) else position + number
                expected = SMALL[position : max(stop, position)]
                assert file.read(number) == expected
                position += len(expected)
            assert file.tell() == position

    await trio.to_thread.run_sync(both)

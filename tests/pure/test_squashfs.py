"""Where a squashfs has its tables, asked of one that mksquashfs made, and of nonsense."""

import contextlib
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span
from lazyfs.formats.squashfs import SUPERBLOCK, tables


@pytest.fixture(scope="module")
def squashfs(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("squashfs")
    (place / "tree").mkdir()
    for number in range(300):
        (place / "tree" / f"file{number}").write_bytes(b"x" * number)
    image = place / "image"
    command = ["mksquashfs", str(place / "tree"), str(image), "-noI", "-quiet", "-no-progress"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return image.read_bytes()


def test_names_are_in_the_tables_and_data_are_not(squashfs: bytes) -> None:
    found = tables(squashfs[:SUPERBLOCK], len(squashfs))
    assert found.start > SUPERBLOCK
    assert len(squashfs) - 4096 < found.stop <= len(squashfs)
    assert b"xxxxxxxx" not in squashfs[found.start : found.stop]
    assert found.length > 300 * 32, "the inodes, which are not compressed"


@pytest.mark.parametrize("spoilt", [0, 28, 40, 64], ids=["magic", "version", "length", "tables"])
def test_what_is_no_squashfs_is_refused(squashfs: bytes, spoilt: int) -> None:
    superblock = bytearray(squashfs[:SUPERBLOCK])
    superblock[spoilt : spoilt + 2] = b"\xff\xff"
    superblock[spoilt + 4 : spoilt + 6] = b"\xff\xff"
    with pytest.raises(ImageError):
        tables(bytes(superblock), len(squashfs))


def test_a_squashfs_that_was_cut_off_is_refused(squashfs: bytes) -> None:
    with pytest.raises(ImageError, match="not in it"):
        tables(squashfs[:SUPERBLOCK], len(squashfs) - 4096)
    with pytest.raises(ImageError, match="too short"):
        tables(squashfs[:50], 50)


@given(st.binary(max_size=120), st.integers(0, 1 << 70))
def test_any_bytes_are_a_span_or_an_error(superblock: bytes, length: int) -> None:
    with contextlib.suppress(ImageError):
        found = tables(superblock, length)
        assert Span(0, length).start <= found.start < found.stop <= length


@pytest.mark.parametrize(
    ("superblock", "said"),
    [
        (bytes(50), "it is too short to be a squashfs"),
        (bytes(SUPERBLOCK), "it is not a squashfs of version 4"),
    ],
)
def test_what_is_wrong_with_a_squashfs_is_said(superblock: bytes, said: str) -> None:
    with pytest.raises(ImageError) as caught:
        tables(superblock, 1 << 20)
    assert caught.value.message == said

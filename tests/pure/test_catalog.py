"""The catalog of an ISO: paths in, extents out."""

import io
from pathlib import Path
from typing import Any

import pycdlib
import pytest

from lazyfs.cli.tour.writer import write_iso
from lazyfs.core.errors import LazyfsError
from lazyfs.formats.iso.catalog import JOLIET, PLAIN, ROCK_RIDGE, UDF, Catalog
from lazyfs.formats.tree import Extent

FILES = {
    "README.txt": b"read me\n",
    "live/filesystem.squashfs": bytes(range(256)) * 100,
    "live/deep/er/than that/é.bin": b"\xe9" * 2049,
    "empty": b"",
    "1/2/3/4/5/6/7/8/9/10/deeper than ISO 9660 allows": b"deep down",
}


def local_files(directory: Path) -> dict[str, Path]:
    """FILES as files in ``directory``; their names there say nothing."""
    local = {}
    for number, (name, content) in enumerate(FILES.items()):
        local[name] = directory / str(number)
        local[name].write_bytes(content)
    return local


def image_of(directory: Path) -> bytes:
    write_iso(directory / "x.iso", local_files(directory), "A_LABEL")
    return (directory / "x.iso").read_bytes()


def content_at(image: bytes, extent: Extent) -> bytes:
    return image[extent.offset : extent.offset + extent.length]


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("slash", ["", "/"])
def test_the_extent_of_a_path_holds_its_content(tmp_path: Path, path: str, slash: str) -> None:
    image = image_of(tmp_path)
    extent = Catalog(io.BytesIO(image)).extent(slash + path)
    assert content_at(image, extent) == FILES[path]
    assert extent.offset % 2048 == 0


def test_all_files_are_listed_and_no_directory(tmp_path: Path) -> None:
    catalog = Catalog(io.BytesIO(image_of(tmp_path)))
    assert sorted(catalog.files()) == sorted(FILES)


@pytest.mark.parametrize("path", ["nothing", "live/nothing", "README.txt/below", "readme.txt"])
def test_what_is_not_there_is_an_error_that_names_it(tmp_path: Path, path: str) -> None:
    with pytest.raises(LazyfsError) as caught:
        Catalog(io.BytesIO(image_of(tmp_path))).extent(path)
    assert caught.value.message == f"{path} is not in the image"


@pytest.mark.parametrize("path", ["/", "", "live", "live/deep/"])
def test_a_directory_has_no_extent(tmp_path: Path, path: str) -> None:
    with pytest.raises(LazyfsError, match="is not a regular file"):
        Catalog(io.BytesIO(image_of(tmp_path))).extent(path)


@pytest.mark.parametrize("content", [b"", b"no image", bytes(1 << 20)])
def test_what_is_no_image_is_an_error(content: bytes) -> None:
    with pytest.raises(LazyfsError, match="neither an ISO 9660 nor a UDF image"):
        Catalog(io.BytesIO(content))


def test_an_iso_without_its_root_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(LazyfsError, match="root directory is not in it"):
        Catalog(io.BytesIO(image_of(tmp_path)[: 17 * 2048]))


def test_of_a_truncated_iso_what_is_there_is_shown(tmp_path: Path) -> None:
    image = image_of(tmp_path)
    catalog = Catalog(io.BytesIO(image[:-20_000]))
    assert sorted(catalog.files()) == sorted(FILES)
    last = max(catalog.files(), key=lambda path: catalog.tree.node(path).extents)
    with pytest.raises(LazyfsError, match="lies outside of the image"):
        catalog.extent(last)


def test_an_image_that_gets_shorter_while_it_is_read_is_an_error(tmp_path: Path) -> None:
    class Shrinking(io.BytesIO):
        def seek(self, offset: int, whence: int = 0, /) -> int:
            return super().seek(offset, whence) + (1 << 20 if whence == 2 else 0)

    with pytest.raises(LazyfsError, match="ends before the place where its size says"):
        Catalog(Shrinking(image_of(tmp_path)[: 18 * 2048]))


def test_a_failing_read_comes_through() -> None:
    class Broken(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output error"):
        Catalog(Broken())


@pytest.mark.parametrize(
    ("options", "name", "namespace"),
    [
        ({"rock_ridge": "1.09", "joliet": 3, "udf": "2.60"}, "By Rock Ridge.txt", ROCK_RIDGE),
        ({"joliet": 3, "udf": "2.60"}, "By Joliet.txt", JOLIET),
        ({"udf": "2.60"}, "By UDF.txt", UDF),
        ({}, "plain.txt", PLAIN),
    ],
)
def test_names_are_the_best_that_the_image_has(
    options: dict[str, Any], name: str, namespace: str
) -> None:
    iso = pycdlib.PyCdlib()
    iso.new(interchange_level=3, **options)
    iso.add_fp(
        io.BytesIO(b"content"),
        7,
        "/PLAIN.TXT;1",
        rr_name="By Rock Ridge.txt" if "rock_ridge" in options else None,
        joliet_path="/By Joliet.txt" if "joliet" in options else None,
        udf_path="/By UDF.txt" if "udf" in options else None,
    )
    image = io.BytesIO()
    iso.write_fp(image)
    catalog = Catalog(image)
    assert catalog.namespace == namespace
    assert list(catalog.files()) == [name]
    assert content_at(image.getvalue(), catalog.extent(name)) == b"content"


def test_a_symlink_to_nothing_has_no_extent() -> None:
    iso = pycdlib.PyCdlib()
    iso.new(rock_ridge="1.09")
    iso.add_symlink("/LINK.;1", "link", "README.txt")
    image = io.BytesIO()
    iso.write_fp(image)
    catalog = Catalog(image)
    assert list(catalog.files()) == []
    with pytest.raises(LazyfsError, match="link is not in the image"):
        catalog.extent("link")
    assert catalog.tree.node("link", follow=False).target == "README.txt"


def image_in_two_parts(gap: int) -> bytes:
    """An image whose file ``big`` has two extents, as one of over 4 GiB would have.

    pycdlib writes two neighbours, of which the second is then made to continue the first, ``gap``
    sectors further on. Offsets in a directory record are those of ECMA-119, 9.1.
    """
    iso = pycdlib.PyCdlib()
    iso.new(rock_ridge="1.09")
    for number, length in enumerate((4096, 1000)):
        content = bytes([number]) * length
        iso.add_fp(io.BytesIO(content), length, f"/PART{number}.;1", rr_name="big")
    written = io.BytesIO()
    iso.write_fp(written)
    image = bytearray(written.getvalue())
    first, second = (image.index(b"PART%d.;1" % number) - 33 for number in range(2))
    image[first + 25] |= 0x80  # more extents follow
    image[second + 33 : second + 38] = b"PART0"
    extent = int.from_bytes(image[second + 2 : second + 6], "little") + gap
    image[second + 2 : second + 10] = extent.to_bytes(4, "little") + extent.to_bytes(4, "big")
    return bytes(image)


def test_a_file_in_several_extents_is_whole() -> None:
    image = image_in_two_parts(gap=0)
    assert content_at(image, Catalog(io.BytesIO(image)).extent("big")) == bytes(4096) + b"\1" * 1000


def test_extents_with_a_gap_between_them_are_no_single_one() -> None:
    catalog = Catalog(io.BytesIO(image_in_two_parts(gap=1) + bytes(2048)))
    with pytest.raises(LazyfsError, match="big lies in several pieces"):
        catalog.extent("big")
    assert [extent.length for extent in catalog.tree.extents("big")] == [4096, 1000]


@pytest.mark.parametrize(
    ("limit", "said"),
    [
        ("MAX_NODES", "the image has more than 2 entries"),
        ("MAX_DEPTH", "the image has directories more than 2 levels deep"),
        ("MAX_EXTENTS", "the image's files lie in more than 2 pieces"),
    ],
)
def test_an_image_beyond_all_bounds_is_left_to_the_kernel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str, said: str
) -> None:
    monkeypatch.setattr(f"lazyfs.formats.treebuilder.{limit}", 2)
    with pytest.raises(LazyfsError) as caught:
        Catalog(io.BytesIO(image_of(tmp_path)))
    assert str(caught.value) == f"{said}; let the kernel read it: lazyfs loop, or mount -o loop"


def test_a_udf_volume_that_cannot_be_found_is_damaged() -> None:
    head = bytearray(1 << 20)
    for number, identifier in enumerate((b"BEA01", b"NSR03", b"TEA01"), 16):
        head[number * 2048 : number * 2048 + 6] = b"\0" + identifier
    with pytest.raises(LazyfsError, match="the image's UDF volume is damaged"):
        Catalog(io.BytesIO(head))

"""Images as programs make them: each is read as what went into it, and as others read it."""

import io
import os
from pathlib import Path

import pycdlib
import pytest
from real.mounts import run_well

from lazyfs.core.errors import ImageError
from lazyfs.formats.iso.catalog import JOLIET, PLAIN, ROCK_RIDGE, UDF, Catalog
from lazyfs.formats.tree import Kind, Tree

from . import views
from .conftest import Made
from .flavours import (
    FLAVOURS,
    HUGE,
    HUGE_MARKS,
    HUGE_TAIL,
    IsoImages,
    extract,
    make,
    mark,
    plant_bytes,
    plant_long_links,
)
from .views import Seen

BY_NAMESPACE = {
    namespace: [flavour for flavour, (wanted, _) in FLAVOURS.items() if wanted == namespace]
    for namespace in (ROCK_RIDGE, JOLIET, UDF, PLAIN)
}


def read(image: Path) -> Tree:
    with open(image, "rb") as file:
        return Catalog(file).tree


def as_linux_shows(path: str) -> str:
    """A path of plain ISO 9660 names, whose last one may have a version."""
    return path.partition(";")[0].rstrip(".").lower()


def as_xorriso_copies(seen: dict[str, Seen]) -> dict[str, Seen]:
    """Without the times of links, which it does not set, and devices, which it leaves out."""
    devices = (Kind.BLOCK_DEVICE, Kind.CHARACTER_DEVICE)
    return {
        path: s._replace(mtime=0) if s.kind is Kind.SYMLINK else s
        for path, s in seen.items()
        if s.kind not in devices
    }


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_the_namespace_is_the_best_that_the_image_has(made: Made, flavour: str) -> None:
    image, _ = made(flavour)
    tree = read(image)
    assert tree.namespace == FLAVOURS[flavour][0]
    assert tree.notes == ()
    assert tree.volume.label == "A_LABEL"
    assert tree.volume.image_size == image.stat().st_size


@pytest.mark.parametrize("flavour", BY_NAMESPACE[ROCK_RIDGE])
def test_rock_ridge_shows_all_that_went_into_the_image(made: Made, flavour: str) -> None:
    image, source = made(flavour)
    seen = views.of_tree(read(image), image)
    seen.pop("rr_moved", None)  # what is left of it once all that was moved is in its place
    assert seen == views.of_directory(source)


@pytest.mark.parametrize("flavour", BY_NAMESPACE[JOLIET] + BY_NAMESPACE[UDF])
def test_unicode_namespaces_show_names_content_and_times(made: Made, flavour: str) -> None:
    image, source = made(flavour)
    seen, wanted = views.of_tree(read(image), image), views.of_directory(source)
    assert {path: s.content_only() for path, s in seen.items()} == {
        path: s.content_only() for path, s in wanted.items()
    }
    assert {p: s.mtime for p, s in seen.items()} == {p: s.mtime for p, s in wanted.items()}


@pytest.mark.parametrize("flavour", BY_NAMESPACE[PLAIN])
def test_plain_namespaces_show_all_content(made: Made, flavour: str) -> None:
    image, source = made(flavour)
    seen = views.of_tree(read(image), image).values()
    wanted = views.of_directory(source).values()
    assert sorted((*s.content_only()[1:], s.mtime) for s in seen) == sorted(
        (*s.content_only()[1:], s.mtime) for s in wanted
    )


@pytest.mark.parametrize("flavour", BY_NAMESPACE[ROCK_RIDGE])
def test_xorriso_reads_the_same_of_rock_ridge(made: Made, tmp_path: Path, flavour: str) -> None:
    image, _ = made(flavour)
    extract(image, tmp_path / "x", "-read_fs", "nojoliet")
    seen, wanted = views.of_tree(read(image), image), views.of_directory(tmp_path / "x")
    assert as_xorriso_copies(seen) == as_xorriso_copies(wanted)


@pytest.mark.parametrize("flavour", BY_NAMESPACE[JOLIET] + BY_NAMESPACE[PLAIN])
def test_xorriso_reads_the_same_of_names_without_modes(
    made: Made, tmp_path: Path, flavour: str
) -> None:
    image, _ = made(flavour)
    tree = read(image)
    read_by = ["norock"] if tree.namespace == JOLIET else ["ecma119", "-ecma119_map", "unmapped"]
    extract(image, tmp_path / "x", "-read_fs", *read_by)
    seen = views.of_tree(tree, image)
    if flavour == "genisoimage-level-4":  # the one plain name in UTF-8, which xorriso changes
        del seen["grüße \N{SNOWMAN}.txt"]
    copied = views.of_directory(tmp_path / "x").items()
    changed = (lambda path: path) if tree.namespace == JOLIET else as_linux_shows
    wanted = {changed(path): s.content_only() for path, s in copied}
    assert {p: s.content_only() for p, s in seen.items()}.items() <= wanted.items()
    assert len(wanted) == len(copied) == len(list(tree.walk())) - 1
    assert all(s.mode == (0o555 if s.kind is Kind.DIRECTORY else 0o444) for s in seen.values())


@pytest.mark.parametrize("flavour", BY_NAMESPACE[UDF])
def test_pycdlib_reads_the_same_of_udf(made: Made, flavour: str) -> None:
    image, _ = made(flavour)
    tree = read(image)
    iso = pycdlib.PyCdlib()
    iso.open(str(image))
    found = set()
    for where, directories, files in iso.walk(udf_path="/"):
        found |= {os.path.join(where, name)[1:] for name in directories + files}
        for name in files:
            out = io.BytesIO()
            path = os.path.join(where, name)
            iso.get_file_from_iso_fp(out, udf_path=path)
            assert views.content(image, tree.node(path)) == out.getvalue()
    iso.close()
    assert found == {path for path, _ in tree.walk()} - {""}


def test_links_that_are_cut_within_a_name_are_whole(tmp_path: Path) -> None:
    source = plant_long_links(tmp_path / "tree")
    image = make(FLAVOURS["xorriso-rr"][1], source, tmp_path / "image.iso")
    assert views.of_tree(read(image), image) == views.of_directory(source)


def test_where_udf_is_damaged_there_are_still_plain_names(made: Made) -> None:
    image, _ = made("genisoimage-udf")
    data = bytearray(image.read_bytes())
    for block in (256, len(data) // 2048 - 257, len(data) // 2048 - 1):
        data[block * 2048 : (block + 1) * 2048] = bytes(2048)
    tree = Catalog(io.BytesIO(bytes(data))).tree
    assert tree.namespace == PLAIN
    assert "size2048.bin" in tree.root.children
    assert [note.partition(":")[0] for note in tree.notes] == [
        "the plain names are used, for UDF cannot be"
    ]


@pytest.mark.parametrize("flavour", ["xorriso-rr", "genisoimage-rr"])
def test_names_that_are_not_utf_8_are_kept_byte_for_byte(tmp_path: Path, flavour: str) -> None:
    source = plant_bytes(tmp_path / "tree")
    image = make(FLAVOURS[flavour][1], source, tmp_path / "image.iso")
    assert views.of_tree(read(image), image) == views.of_directory(source)


HUGE_COMMANDS = {
    "rr": (ROCK_RIDGE, ["xorriso", "-as", "mkisofs", "-iso-level", "3"]),
    "joliet": (JOLIET, ["xorriso", "-as", "mkisofs", "-iso-level", "3", "--norock", "-J"]),
    "plain": (PLAIN, ["xorriso", "-as", "mkisofs", "-iso-level", "3", "--norock"]),
    "udf": (UDF, ["genisoimage", "-udf", "-iso-level", "3", "-allow-limited-size"]),
}


@pytest.mark.parametrize("flavour", HUGE_COMMANDS)
def test_a_file_of_over_4_gib_is_whole(iso_images: IsoImages, flavour: str) -> None:
    namespace, command = HUGE_COMMANDS[flavour]
    image = iso_images.huge(flavour, command)
    with open(image, "rb") as file:
        catalog = Catalog(file)
        assert catalog.namespace == namespace
        node = catalog.tree.node("huge.bin")
        assert node.size == HUGE + HUGE_TAIL
        assert not node.problem
        extent = catalog.extent("huge.bin")
        assert extent.length == node.size
        for offset in HUGE_MARKS:
            assert os.pread(file.fileno(), 16, extent.offset + offset) == mark(offset)
    others = [path for path in catalog.files() if path != "huge.bin"]
    texts = {views.content(image, catalog.tree.node(path)) for path in others}
    assert texts == {b"before it\n", b"behind it\n"}


def test_zisofs_is_recognised_and_not_taken_for_content(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "text").write_bytes(b"hello\n" * 100_000)
    (tree / "small").write_bytes(b"hello\n")
    image = tmp_path / "image.iso"
    words: list[str | Path] = ["xorriso", "-outdev", image, "-map", tree, "/"]
    run_well([*words, "-set_filter_r", "--zisofs", "/", "--", "-commit"])
    seen = read(image)
    node = seen.node("text")
    assert (node.size, node.compressed) == (600_000, "zisofs")
    with pytest.raises(ImageError, match="text is compressed"):
        seen.extents("text")
    assert views.content(image, seen.node("small")) == b"hello\n"

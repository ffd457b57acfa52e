"""The ISO of the benchmark, what is said of its reading, and the log of requests."""

import struct
from pathlib import Path

import pytest

from bench import iso, system
from bench.server import Request, parse, timeline
from bench.work import check_look, look
from lazyfs.formats.iso.catalog import read_tree

SQUASHFS_LENGTH = 5000


@pytest.fixture
def main_image(tmp_path: Path) -> Path:
    """What begins like a squashfs, and has noise behind it."""
    head = b"hsqs" + bytes(36) + struct.pack("<Q", SQUASHFS_LENGTH)
    path = tmp_path / "main.img"
    path.write_bytes(head.ljust(SQUASHFS_LENGTH, b"s") + b"noise" * 5000)
    return path


def test_names_are_many_and_their_last_parts_unique() -> None:
    names = iso.names()
    assert len(names) == len({Path(name).name for name in names}) == iso.FILES
    assert len({str(Path(name).parent) for name in names}) == iso.DIRECTORIES


def test_content_is_the_same_every_time_and_different_for_every_file() -> None:
    large = iso.large_file()
    assert len(iso.content(large)) == iso.LARGE
    first, second = iso.names()[1:3]
    assert iso.content(first) == iso.content(first) != iso.content(second)
    assert len(iso.content(first)) < iso.SMALL


def test_the_squashfs_is_cut_at_its_end(main_image: Path, tmp_path: Path) -> None:
    iso.cut(main_image, tmp_path / "squashfs")
    assert (tmp_path / "squashfs").read_bytes() == main_image.read_bytes()[:8192]


def test_an_image_holds_what_was_planted_and_says_where(
    main_image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(iso, "FILES", 40)
    iso.plant(tmp_path / "tree", main_image)
    image = tmp_path / "image.iso"
    iso.make(tmp_path / "tree", image)
    start = iso.start_of(image, iso.SQUASHFS)
    content = image.read_bytes()
    assert content[start : start + SQUASHFS_LENGTH] == main_image.read_bytes()[:SQUASHFS_LENGTH]
    with image.open("rb") as file:
        tree = read_tree(file)
    assert tree.namespace == "Rock Ridge"
    assert {path for path, _ in tree.walk()} >= {*iso.names(), iso.SQUASHFS}
    output = str(tmp_path / "output")
    assert look(list(iso.listing(image)), output, "")["s"] > 0
    assert look(list(iso.extraction(image, iso.large_file())), output, iso.large_file())["s"] > 0
    with pytest.raises(system.Failed, match="xorriso"):
        iso.start_of(image, "elsewhere")


def test_a_listing_that_lacks_a_file_is_a_failure() -> None:
    listing = "\n".join(iso.names()).encode()
    check_look(listing, "")
    with pytest.raises(system.Failed, match="1 of 10000 files were not listed"):
        check_look(listing.replace(b"file00042.bin", b""), "")


def test_wrong_content_of_a_file_is_a_failure() -> None:
    name = iso.names()[7]
    content = iso.content(name)
    check_look(content, name)
    with pytest.raises(system.Failed, match="wrong data"):
        check_look(content[:-1] + bytes([content[-1] ^ 1]), name)


def test_a_program_that_cannot_look_is_a_failure(tmp_path: Path) -> None:
    with pytest.raises(system.Failed, match="no such thing"):
        look(["sh", "-c", "echo no such thing >&2; exit 1"], str(tmp_path / "output"), "")


# The log of requests


def test_a_line_of_the_log_is_a_request() -> None:
    assert parse("4097 1000.250 0.200 bytes=0-4095") == Request(
        4097, 1000.05, 1000.25, "bytes=0-4095"
    )
    assert parse("10 1.000 0.000 -").range == "-"
    assert parse("10 1.000 0.000 bytes=0-1, 5-9").range == "bytes=0-1, 5-9"


def test_a_timeline_is_in_the_order_in_which_requests_began() -> None:
    requests = [Request(5, 100.5, 100.6, "bytes=5-9"), Request(9, 100.0, 100.9, "bytes=0-3")]
    assert timeline(requests).split("\n") == [
        "   0.000    0.900         9 bytes=0-3",
        "   0.500    0.600         5 bytes=5-9",
        "",
    ]
    assert timeline([]) == ""

"""UDF as the standard allows it, beyond what makers of images write."""

import io
from collections.abc import Mapping

import pytest

from lazyfs.core.errors import ImageError
from lazyfs.formats.iso import udf
from lazyfs.formats.iso.catalog import UDF, read_tree
from lazyfs.formats.iso.udf import BLOCK
from lazyfs.formats.tree import Extent, Kind, Tree

from . import handmade_udf
from .handmade_udf import (
    ALLOCATED,
    CONTINUED,
    DIRECTORY,
    EMBEDDED,
    EXTENDED,
    FIFO,
    FILE,
    HOLE,
    LINK,
    LONG,
    PARTITION,
    ROOT,
    SHORT,
    file_entry,
    identifier,
    long_ad,
    name_of,
    short_ad,
)


def at(block: int) -> int:
    return (PARTITION + block) * BLOCK


def directory(*identifiers: bytes) -> bytes:
    content = b"".join(identifiers)
    return file_entry(DIRECTORY, len(content), content, how=EMBEDDED)


def tree_of(*identifiers: bytes, blocks: Mapping[int, bytes] | None = None) -> Tree:
    made = handmade_udf.image({ROOT: directory(*identifiers), **(blocks or {})})
    tree = read_tree(io.BytesIO(made))
    assert tree.namespace == UDF
    return tree


def tree_with(entry: bytes) -> Tree:
    """A tree whose only file is ``a``, with this file entry in block 10."""
    return tree_of(identifier("a", 10), blocks={10: entry})


def test_owner_mode_and_time_are_those_of_the_file_entry() -> None:
    tree = tree_with(file_entry(FILE, 0, b"", flags=1 << 6, nlink=7))
    node = tree.node("a")
    assert (node.kind, node.mode, node.uid, node.gid) == (Kind.FILE, 0o4751, 1000, 1001)
    assert (node.nlink, node.mtime) == (7, 961_070_400)
    assert tree.volume.label == "UDF label"


def test_nobody_is_root() -> None:
    node = tree_with(file_entry(FILE, 0, b"", owner=(0xFFFFFFFF, 0xFFFFFFFF))).node("a")
    assert (node.uid, node.gid) == (0, 0)


@pytest.mark.parametrize("is_extended", [False, True])
def test_embedded_content_lies_in_the_file_entry(is_extended: bool) -> None:
    entry = file_entry(
        FILE, 7, b"content", how=EMBEDDED, is_extended=is_extended, attributes=bytes(24)
    )
    made = handmade_udf.image({ROOT: directory(identifier("a", 10)), 10: entry})
    (extent,) = read_tree(io.BytesIO(made)).extents("a")
    assert made[extent.offset : extent.offset + extent.length] == b"content"
    assert read_tree(io.BytesIO(made)).node("a").mtime == 961_070_400


@pytest.mark.parametrize("how", [SHORT, LONG])
def test_content_may_lie_in_several_places(how: int) -> None:
    described = short_ad if how == SHORT else long_ad
    extents = described(2 * BLOCK, 20) + described(BLOCK, 22) + described(BLOCK, 30)
    tree = tree_with(file_entry(FILE, 3 * BLOCK + 5, extents, how=how))
    assert tree.extents("a") == (Extent(at(20), 3 * BLOCK), Extent(at(30), 5))


@pytest.mark.parametrize("how", [SHORT, LONG])
@pytest.mark.parametrize("kind", [ALLOCATED, HOLE])
def test_what_was_never_written_is_a_hole(how: int, kind: int) -> None:
    described = short_ad if how == SHORT else long_ad
    extents = described(BLOCK, 20) + described(kind | 4 * BLOCK, 0) + described(10, 21)
    tree = tree_with(file_entry(FILE, 5 * BLOCK + 10, extents, how=how))
    assert tree.extents("a") == (Extent(at(20), BLOCK), Extent(-1, 4 * BLOCK), Extent(at(21), 10))


@pytest.mark.parametrize(
    ("entry", "problem"),
    [
        (file_entry(FILE, 9, short_ad(CONTINUED | BLOCK, 20)), "goes on elsewhere"),
        (file_entry(FILE, 9, long_ad(9, 20, 3), how=LONG), "a partition that is not there"),
        (file_entry(FILE, 9, bytes(20), how=EXTENDED), "in a way that is not known"),
        (file_entry(200, 0, b""), "of a kind that is not known"),
        (file_entry(FILE, 9, short_ad(BLOCK, 0xFFFFFF)), "outside of the image"),
        (file_entry(FILE, BLOCK + 1, short_ad(BLOCK, 20)), "less or more of it than its size"),
    ],
)
def test_what_cannot_be_read_is_listed_with_its_problem(entry: bytes, problem: str) -> None:
    tree = tree_with(entry)
    assert problem in tree.node("a").problem
    with pytest.raises(ImageError, match="a cannot be read"):
        tree.extents("a")


@pytest.mark.parametrize(
    ("parts", "target"),
    [
        ([(5, "usr"), (3, ""), (4, ""), (5, "grüße")], "usr/.././grüße"),
        ([(2, ""), (5, "bin \N{SNOWMAN}")], "/bin \N{SNOWMAN}"),
        ([(2, "")], "/"),
    ],
)
@pytest.mark.parametrize("how", [SHORT, EMBEDDED])
def test_symbolic_links_have_their_targets(
    parts: list[tuple[int, str]], target: str, how: int
) -> None:
    content = b""
    for kind, name in parts:
        text = name_of(name) if name else b""
        content += bytes((kind, len(text), 0, 0)) + text
    described = content if how == EMBEDDED else short_ad(len(content), 20)
    entry = file_entry(LINK, len(content), described, how=how)
    tree = tree_of(identifier("a", 10), blocks={10: entry, 20: content})
    node = tree.node("a", follow=False)
    assert (node.kind, node.target) == (Kind.SYMLINK, target)
    assert node.size == len(target.encode())


def test_names_of_both_widths_and_what_is_deleted_or_above() -> None:
    tree = tree_of(
        identifier("", ROOT, characteristics=0x0A),
        identifier("grüße", 10),
        identifier("\N{SNOWMAN}", 11),
        identifier("deleted", 10, characteristics=0x04),
        identifier("hidden", 10, characteristics=0x01),
        identifier("pipe", 12),
        blocks={
            10: file_entry(FILE, 0, b""),
            11: file_entry(FILE, 0, b""),
            12: file_entry(FIFO, 0, b""),
        },
    )
    assert list(tree.root.children) == ["grüße", "\N{SNOWMAN}", "hidden", "pipe"]
    assert tree.node("pipe").kind is Kind.FIFO
    assert tree.notes == ()


def test_names_of_one_file_are_links_to_it() -> None:
    entry = file_entry(FILE, 3, short_ad(3, 20), nlink=2)
    below = directory(identifier("two", 10))
    tree = tree_of(identifier("one", 10), identifier("d", 11), blocks={10: entry, 11: below})
    assert tree.extents("one") == tree.extents("d/two")


def test_directories_that_hold_one_another_are_cut() -> None:
    below = directory(identifier("up", ROOT), identifier("self", 10), identifier("a", 11))
    blocks = {10: below, 11: file_entry(FILE, 0, b"")}
    tree = tree_of(identifier("down", 10), blocks=blocks)
    assert [path for path, _ in tree.walk()] == ["", "down", "down/up", "down/self", "down/a"]
    assert [path for path, node in tree.walk() if node.problem] == ["down/up", "down/self"]


def test_a_directory_outside_of_the_image_has_a_problem() -> None:
    entry = file_entry(DIRECTORY, BLOCK, short_ad(BLOCK, 0xFFFF))
    assert tree_with(entry).node("a").problem == "it lies outside of the image"


def test_links_with_too_long_a_description_lead_nowhere() -> None:
    entry = file_entry(LINK, 1 << 15, short_ad(1 << 15, 20))
    blocks = {10: entry, 20: bytes((5, 5, 0, 0)) + name_of("name")}
    assert tree_of(identifier("a", 10), blocks=blocks).node("a", follow=False).target == ""


@pytest.mark.parametrize("count", [400, 700])
def test_the_last_block_may_have_the_anchor(count: int) -> None:
    made = bytearray(handmade_udf.image({ROOT: directory()}, count=count))
    anchor = bytes(made[256 * BLOCK : 257 * BLOCK])
    made[256 * BLOCK : 257 * BLOCK] = bytes(BLOCK)
    made[-BLOCK:] = anchor
    assert read_tree(io.BytesIO(bytes(made))).namespace == UDF


def test_a_file_with_several_names_is_looked_at_once() -> None:
    """Else its names in many directories could add up to more than an image may have read."""
    place = at(900)  # far from all others, which are read together
    reads = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(range(self.tell(), self.tell() + (size or 0)))
            return super().read(size)

    blocks = {
        ROOT: directory(identifier("one", 900), identifier("d", 11)),
        11: directory(identifier("two", 900)),
        900: file_entry(FILE, 0, b"", nlink=2),
    }
    tree = read_tree(File(handmade_udf.image(blocks, count=1000)))
    assert {path for path, _ in tree.walk()} == {"", "one", "d", "d/two"}
    assert sum(place in read for read in reads) == 1


def test_a_list_of_extents_ends_with_one_of_no_length() -> None:
    extents = short_ad(BLOCK, 20) + short_ad(0, 0) + short_ad(BLOCK, 30)
    tree = tree_with(file_entry(FILE, 2 * BLOCK, extents))
    assert "less or more" in tree.node("a").problem


def test_a_directory_in_two_pieces_is_whole() -> None:
    """With an entry that begins in the one and ends in the other."""
    names = [f"{'long name ' * 8}{number}" for number in range(40)]
    content = b"".join(identifier(name, 10) for name in names)
    assert len(content) > BLOCK
    extents = short_ad(BLOCK, 30) + short_ad(len(content) - BLOCK, 40)
    entry = file_entry(DIRECTORY, len(content), extents)
    blocks = {10: file_entry(FILE, 0, b""), 11: entry, 30: content[:BLOCK], 40: content[BLOCK:]}
    tree = tree_of(identifier("d", 11), blocks=blocks)
    assert list(tree.node("d").children) == names


def test_damaged_entries_leave_the_others_alone() -> None:
    broken = bytearray(file_entry(FILE, 0, b""))
    broken[60] ^= 1
    cut = bytearray(identifier("cut", 10))
    cut[30] ^= 1
    tree = tree_of(
        *(identifier("broken", 10), identifier("nothing", 12), identifier("a", 11), bytes(cut)),
        blocks={10: bytes(broken), 11: file_entry(FILE, 0, b"")},
    )
    assert list(tree.root.children) == ["a"]
    assert tree.notes == (
        "/ has an entry that makes no sense",
        "left out 'broken': nothing is recorded of it",
        "left out 'nothing': nothing is recorded of it",
    )


def test_an_entry_in_a_partition_that_is_not_there_is_left_out() -> None:
    tree = tree_of(identifier("a", 10, partition=3))
    assert tree.notes == ("left out 'a': nothing is recorded of it",)


def test_the_reserve_sequence_stands_in_for_the_main_one() -> None:
    made = handmade_udf.image({ROOT: directory()}, main=False)
    assert read_tree(io.BytesIO(made)).namespace == UDF


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"maps": b"\2\x40" + bytes(62)}, "virtual or metadata partition"),
        ({"maps": b"\1\6\1\0\7\0"}, "or a damaged one"),
        ({"block_size": 512}, "UDF with blocks of 512 bytes"),
    ],
)
def test_volumes_that_are_not_understood_say_why(options: dict[str, object], message: str) -> None:
    made = handmade_udf.image({ROOT: directory()}, **options)  # type: ignore[arg-type]
    with pytest.raises(ImageError, match=message):
        read_tree(io.BytesIO(made))


@pytest.mark.parametrize("gone", [256, PARTITION, PARTITION + ROOT])
def test_a_volume_without_its_first_structures_is_an_error(gone: int) -> None:
    made = bytearray(handmade_udf.image({ROOT: directory()}))
    made[gone * BLOCK : (gone + 1) * BLOCK] = bytes(BLOCK)
    with pytest.raises(ImageError, match="UDF volume"):
        read_tree(io.BytesIO(bytes(made)))


def test_a_root_that_is_a_file_is_an_error() -> None:
    with pytest.raises(ImageError, match="no root directory"):
        read_tree(io.BytesIO(handmade_udf.image({ROOT: file_entry(FILE, 0, b"")})))


@pytest.mark.parametrize(
    ("time", "seconds"),
    [
        (bytes.fromhex("0010 d007 0101 000000 000000"), 946_684_800),
        (bytes.fromhex("c41f d007 0101 000000 000000"), 946_684_800 + 3600),  # an hour west
        (bytes.fromhex("0118 d007 0101 000000 000000"), 946_684_800),  # in no zone
        (bytes.fromhex("0010 d007 0d01 000000 000000"), 0),
        (bytes(12), 0),
        (b"", 0),
    ],
)
def test_times_have_zones(time: bytes, seconds: int) -> None:
    assert udf.seconds(time) == seconds

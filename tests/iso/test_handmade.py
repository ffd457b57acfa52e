"""What standards allow and what they do not, record by record."""

import io
import stat
import struct
from collections.abc import Mapping

import pytest

from lazyfs.core.errors import ImageError
from lazyfs.formats.iso import reader, rockridge, walk9660
from lazyfs.formats.iso.catalog import PLAIN, ROCK_RIDGE, read_tree
from lazyfs.formats.iso.volume import SECTOR
from lazyfs.formats.tree import Extent, Kind, Tree
from lazyfs.formats.treebuilder import MAX_DEPTH, MAX_NODES

from .handmade import (
    ASSOCIATED,
    CONTINUED,
    DIRECTORY,
    OWN,
    PARENT,
    ROOT,
    SUSP,
    both,
    entry,
    image,
    posix,
    record,
)

FILE, LINK, FOLDER = stat.S_IFREG | 0o640, stat.S_IFLNK | 0o777, stat.S_IFDIR | 0o750


def plain(*records: bytes) -> Tree:
    tree = read_tree(io.BytesIO(image({ROOT: list(records)})))
    assert tree.namespace == PLAIN
    return tree


def rock_ridge(
    *records: bytes, root_use: bytes = b"", blocks: Mapping[int, bytes] | None = None
) -> Tree:
    made = image({ROOT: list(records)}, root_use=SUSP + posix(FOLDER) + root_use, blocks=blocks)
    tree = read_tree(io.BytesIO(made))
    assert tree.namespace == ROCK_RIDGE
    return tree


def paths(tree: Tree) -> list[str]:
    return [path for path, _ in tree.walk() if path]


def test_a_plain_file_has_the_time_of_its_record_in_its_zone() -> None:
    east = bytes((100, 6, 15, 12, 0, 0, 22))  # 5:30 before Greenwich
    tree = plain(record(b"A.TXT;1", 30, 100), record(b"B.TXT;1", 31, 100, time=east))
    node = tree.node("a.txt")
    assert (node.kind, node.mode, node.size) == (Kind.FILE, 0o444, 100)
    assert node.extents == (Extent(30 * SECTOR, 100),)
    assert node.mtime == 961_070_400
    assert tree.node("b.txt").mtime == node.mtime - 22 * 900


@pytest.mark.parametrize("time", [bytes(7), b"\xff" * 7, bytes((100, 2, 30, 0, 0, 0, 0))])
def test_a_time_that_is_none_is_the_epoch(time: bytes) -> None:
    assert plain(record(b"A.;1", time=time)).node("a").mtime == 0


def test_a_file_in_several_records_is_whole() -> None:
    tree = plain(
        record(b"BIG.;1", 30, 2 * SECTOR, flags=CONTINUED),
        record(b"BIG.;1", 32, SECTOR, flags=CONTINUED),
        record(b"BIG.;1", 40, 10),
        record(b"NEXT.;1", 50, 5),
    )
    assert tree.extents("big") == (Extent(30 * SECTOR, 3 * SECTOR), Extent(40 * SECTOR, 10))
    assert tree.node("big").size == 3 * SECTOR + 10
    assert tree.extents("next") == (Extent(50 * SECTOR, 5),)


@pytest.mark.parametrize("following", [[], [record(b"NEXT.;1", 50, 5)]])
def test_a_file_whose_last_record_is_missing_cannot_be_read(following: list[bytes]) -> None:
    tree = plain(record(b"BIG.;1", 30, 2 * SECTOR, flags=CONTINUED), *following)
    with pytest.raises(ImageError, match="big cannot be read: a part of it is missing"):
        tree.extents("big")


@pytest.mark.parametrize(("count", "is_whole"), [(3, True), (4, False)])
def test_a_file_in_too_many_records_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, count: int, is_whole: bool
) -> None:
    monkeypatch.setattr(walk9660, "_MAX_PIECES", 3)
    pieces = [record(b"A.;1", 30 + n, SECTOR, flags=CONTINUED) for n in range(count - 1)]
    node = plain(*pieces, record(b"A.;1", 40, 1)).node("a")
    assert bool(node.problem) is not is_whole


def test_of_one_name_the_first_is_there_and_neighbours_are_not_joined() -> None:
    tree = plain(record(b"A.;1", 30, 10), record(b"A.;1", 31, 20), record(b"A.;2", 32, 30))
    assert tree.extents("a") == (Extent(30 * SECTOR, 10),)
    assert len(tree.notes) == 2
    assert "has an entry of this name already" in tree.notes[0]


def test_a_resource_fork_does_not_hide_its_file() -> None:
    tree = plain(record(b"A.;1", 30, 10, flags=ASSOCIATED), record(b"A.;1", 31, 20))
    assert tree.extents("a") == (Extent(31 * SECTOR, 20),)
    assert tree.notes == ()


@pytest.mark.parametrize("interleave", [(1, 0), (0, 1)])
def test_an_interleaved_file_cannot_be_read(interleave: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="interleaved"):
        plain(record(b"A.;1", 30, 10, interleave=interleave)).extents("a")


def test_data_begin_behind_an_extended_attribute_record() -> None:
    assert plain(record(b"A.;1", 30, 10, attributes=2)).extents("a") == (Extent(32 * SECTOR, 10),)


def test_an_empty_file_has_no_extents_wherever_it_claims_to_lie() -> None:
    assert plain(record(b"A.;1", 0xFFFFFFFF, 0)).extents("a") == ()


@pytest.mark.parametrize(("block", "length"), [(63, SECTOR + 1), (64, 1), (0xFFFFFFFF, 0xFFFFFFFF)])
def test_a_file_outside_of_the_image_is_listed_and_cannot_be_read(block: int, length: int) -> None:
    tree = plain(record(b"A.;1", block, length))
    assert tree.node("a").size == length
    assert tree.ranges(["a"]) == []
    with pytest.raises(ImageError, match="a cannot be read: it lies outside of the image"):
        tree.extents("a")


@pytest.mark.parametrize("name", ["..", ".", "a/b", "/etc/passwd", "../../up", "nul\0", "n" * 300])
def test_a_name_that_is_none_is_left_out_with_a_note(name: str) -> None:
    halves = entry(b"NM", b"\1" + name[:150].encode()) + entry(b"NM", b"\0" + name[150:].encode())
    area = both(30) + both(0) + both(len(halves))
    tree = rock_ridge(
        record(b"A.;1", system_use=posix(FILE) + entry(b"CE", area)),
        record(b"B.;1", system_use=posix(FILE, "beside")),
        blocks={30: halves},
    )
    assert paths(tree) == ["beside"]
    assert len(tree.notes) == 1


def test_directories_that_hold_one_another_are_cut() -> None:
    made = image(
        {
            ROOT: [record(b"DOWN", 30, SECTOR, flags=DIRECTORY)],
            30: [
                record(b"AGAIN", 30, SECTOR, flags=DIRECTORY),
                record(b"UP", ROOT, SECTOR, flags=DIRECTORY),
                record(b"A.;1", 40, 10),
            ],
        }
    )
    tree = read_tree(io.BytesIO(made))
    assert paths(tree) == ["down", "down/again", "down/up", "down/a"]
    assert not tree.node("down").problem
    for path in ("down/again", "down/up"):
        assert tree.node(path).problem == "it is in the tree already, elsewhere or above itself"


def test_a_directory_outside_of_the_image_has_a_problem() -> None:
    tree = plain(
        record(b"BEHIND", 64, SECTOR, flags=DIRECTORY),
        record(b"PARTLY", 63, 2 * SECTOR, flags=DIRECTORY),
        record(b"EMPTY", 99, 0, flags=DIRECTORY),
    )
    assert tree.node("behind").problem == tree.node("partly").problem
    assert tree.node("behind").problem == "it lies outside of the image"
    assert not tree.node("empty").problem


def test_a_directory_of_no_length_does_not_stand_in_the_way_of_another() -> None:
    folders = [record(b"EMPTY", 30, 0, flags=DIRECTORY), record(b"D", 30, SECTOR, flags=DIRECTORY)]
    tree = read_tree(io.BytesIO(image({ROOT: folders, 30: [record(b"A.;1", 40, 10)]})))
    assert paths(tree) == ["empty", "d", "d/a"]


def test_overlapping_directories_end_in_an_error() -> None:
    """A hundred directories of which each one claims to be the rest of the image."""
    size = 64 * SECTOR
    rest = [
        record(b"D%03d" % block, block, size, flags=DIRECTORY) for block in range(ROOT, ROOT + 40)
    ]
    with pytest.raises(ImageError, match="larger than they can sensibly be"):
        plain(*rest)


class Endless(io.RawIOBase):
    """A terabyte that begins with an image, and says how much was read of it."""

    SIZE = 1 << 40

    def __init__(self, beginning: bytes) -> None:
        self._beginning = beginning
        self._place = 0
        self.total = 0

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._place = self.SIZE + offset if whence == 2 else offset
        return self._place

    def read(self, size: int = -1, /) -> bytes:
        data = self._beginning[self._place : self._place + size].ljust(size, b"\0")
        self._place += size
        self.total += size
        return data


@pytest.mark.parametrize("length", [reader.MAX_SPAN + 1, 0xFFFFFFFF])
def test_a_directory_of_gigabytes_is_not_read(length: int) -> None:
    file = Endless(image({ROOT: [record(b"D", 40, length, flags=DIRECTORY)]}))
    with pytest.raises(ImageError, match="larger than they can sensibly be"):
        read_tree(file)  # type: ignore[arg-type]
    assert file.total < 1 << 20


def test_a_directory_of_zeros_is_empty() -> None:
    file = Endless(image({ROOT: [record(b"D", 64, reader.MAX_SPAN, flags=DIRECTORY)]}))
    assert paths(read_tree(file)) == ["d"]  # type: ignore[arg-type]


def test_a_tree_that_is_too_deep_is_an_error() -> None:
    first = ROOT + 1
    directories = {
        block: [record(b"D", block + 1, SECTOR, flags=DIRECTORY)]
        for block in range(first, first + MAX_DEPTH + 1)
    }
    directories[ROOT] = [record(b"D", first, SECTOR, flags=DIRECTORY)]
    with pytest.raises(ImageError, match="levels deep"):
        read_tree(io.BytesIO(image(directories, count=300)))


def test_a_tree_of_too_many_entries_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.formats.treebuilder.MAX_NODES", 10)
    many = [record(b"A%02d.;1" % number) for number in range(11)]
    assert len(paths(plain(*many[:10]))) == 10
    with pytest.raises(ImageError, match="more than 10 entries"):
        plain(*many)
    assert MAX_NODES >= 200_000


def test_files_in_too_many_pieces_together_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.formats.treebuilder.MAX_EXTENTS", 6)
    first = [record(b"A.;1", 30 + 2 * n, 1, flags=CONTINUED) for n in range(3)]
    second = [record(b"B.;1", 30 + 2 * n, 1, flags=CONTINUED) for n in range(3)]
    whole = [*first, record(b"A.;1"), *second[:3], record(b"B.;1")]
    assert len(plain(*whole).extents("b")) == 3
    with pytest.raises(ImageError, match="more than 6 pieces"):
        plain(*whole, record(b"C.;1", 50, 1))


def test_records_that_make_no_sense_leave_the_others_alone() -> None:
    cut = bytearray(record(b"CUT.;1", 30, 10))
    cut[32] = 200  # its name is longer than the record
    tree = plain(record(b"A.;1"), bytes((5, 0, 0, 0, 0)), bytes(cut), record(b"B.;1"))
    assert paths(tree) == ["a", "b"]
    assert len(tree.notes) == 2


# Rock Ridge


def test_rock_ridge_has_owners_modes_links_and_times() -> None:
    times = entry(b"TF", b"\x03" + bytes(7) + bytes((101, 1, 1, 0, 0, 0, 0)))
    use = posix(FILE | 0o4000, "Name.Txt", nlink=3, uid=1234, gid=0xFFFFFFFE) + times
    node = rock_ridge(record(b"A.;1", 30, 10, system_use=use)).node("Name.Txt")
    assert (node.mode, node.nlink, node.uid, node.gid) == (0o4640, 3, 1234, 0xFFFFFFFE)
    assert node.mtime == 978_307_200


def test_times_may_be_written_in_digits() -> None:
    times = entry(b"TF", b"\x82" + b"2001010100000000" + struct.pack("b", -4))
    node = rock_ridge(record(b"A.;1", system_use=posix(FILE, "a") + times)).node("a")
    assert node.mtime == 978_307_200 + 3600


def test_the_root_has_the_attributes_of_its_own_record() -> None:
    assert rock_ridge().root.mode == 0o750


@pytest.mark.parametrize(
    ("components", "target"),
    [
        (b"\0\3usr\0\3bin", "usr/bin"),
        (b"\x08\0\0\3usr", "/usr"),
        (b"\x08\0", "/"),
        (b"\4\0\4\0\2\0\0\1x", "../.././x"),
        (b"\1\3one\0\4name\0\1x", "onename/x"),
        (b"", ""),
        (b"\0\xffcut", "cut"),
    ],
)
def test_a_symbolic_link_is_put_together(components: bytes, target: str) -> None:
    use = posix(LINK, "link") + entry(b"SL", b"\0" + components)
    node = rock_ridge(record(b"A.;1", system_use=use)).node("link", follow=False)
    assert (node.kind, node.target, node.size) == (Kind.SYMLINK, target, len(target))


def test_a_link_goes_on_over_entries_and_areas() -> None:
    area = entry(b"SL", b"\1\1\4name") + entry(b"SL", b"\0\0\2ly\0\3end")
    use = posix(LINK, "link") + entry(b"SL", b"\1\1\4long")
    use += entry(b"CE", both(30) + both(100) + both(len(area)))
    tree = rock_ridge(record(b"A.;1", system_use=use), blocks={30: bytes(100) + area})
    assert tree.node("link", follow=False).target == "longnamely/end"


def test_continuation_areas_in_a_circle_come_to_an_end() -> None:
    circle = entry(b"CE", both(30) + both(0) + both(28))
    use = posix(FILE, "a") + circle
    tree = rock_ridge(record(b"A.;1", system_use=use), blocks={30: circle})
    assert paths(tree) == ["a"]
    assert tree.notes == ("some Rock Ridge entries go on without an end",)


def test_a_chain_of_continuation_areas_is_followed() -> None:
    count = rockridge.MAX_AREAS
    blocks = {
        30 + n: entry(b"NM", b"\1n") + entry(b"CE", both(31 + n) + both(0) + both(34))
        for n in range(count - 1)
    }
    blocks[30 + count - 1] = entry(b"NM", b"\0x")
    use = posix(FILE) + entry(b"CE", both(30) + both(0) + both(34))
    tree = rock_ridge(record(b"A.;1", system_use=use), blocks=blocks)
    assert paths(tree) == ["n" * (count - 1) + "x"]
    assert tree.notes == ()


def test_entries_that_nobody_knows_are_skipped() -> None:
    use = entry(b"AA", b"\x0e\1type") + posix(FILE, "name") + entry(b"XX", b"")
    assert paths(rock_ridge(record(b"A.;1", system_use=use))) == ["name"]


def test_nothing_counts_behind_the_end_of_the_entries() -> None:
    use = posix(FILE, "name") + entry(b"ST", b"") + entry(b"NM", b"\0 and more")
    assert paths(rock_ridge(record(b"A.;1", system_use=use))) == ["name"]


@pytest.mark.parametrize("flag", [2, 4])
def test_names_that_stand_for_dots_are_no_names(flag: int) -> None:
    use = posix(FILE, "name") + entry(b"NM", bytes((flag,)) + b"dot")
    assert paths(rock_ridge(record(b"A.;1", system_use=use))) == ["name"]


@pytest.mark.parametrize("length", [0, 3, 200])
def test_an_entry_with_a_wrong_length_ends_the_area(length: int) -> None:
    wrong = b"PX" + bytes((length, 1)) + bytes(8)
    use = entry(b"NM", b"\0name") + wrong
    node = rock_ridge(record(b"A.;1", system_use=use)).node("name")
    assert (node.kind, node.mode) == (Kind.FILE, 0o444)


@pytest.mark.parametrize("signature", [b"PX", b"NM", b"TF", b"SL", b"CE", b"CL", b"PN", b"ZF"])
def test_an_entry_that_is_cut_short_says_nothing(signature: bytes) -> None:
    use = entry(signature, b"") + posix(FILE, "name")
    assert rock_ridge(record(b"A.;1", system_use=use)).node("name").mode == 0o640


@pytest.mark.parametrize(
    ("kind", "high", "low", "device"),
    [
        (Kind.BLOCK_DEVICE, 8, 1, (8, 1)),
        (Kind.CHARACTER_DEVICE, 0, 0x0103, (1, 3)),
        (Kind.BLOCK_DEVICE, 0, 0x11110370, (0x103, 0x11170)),
        (Kind.FIFO, 0, 0, (0, 0)),
    ],
)
def test_special_files_are_shown_and_never_read(
    kind: Kind, high: int, low: int, device: tuple[int, int]
) -> None:
    modes = {
        Kind.BLOCK_DEVICE: stat.S_IFBLK,
        Kind.CHARACTER_DEVICE: stat.S_IFCHR,
        Kind.FIFO: stat.S_IFIFO,
    }
    use = posix(modes[kind] | 0o600, "special") + entry(b"PN", both(high) + both(low))
    tree = rock_ridge(record(b"A.;1", 30, 10, system_use=use))
    node = tree.node("special")
    assert (node.kind, node.mode, node.device, node.extents) == (kind, 0o600, device, ())
    with pytest.raises(ImageError, match="special is not a regular file"):
        tree.extents("special")


def test_a_sparse_file_cannot_be_read() -> None:
    use = posix(FILE, "sparse") + entry(b"SF", both(0) + both(1 << 20) + b"\1")
    with pytest.raises(ImageError, match="sparse cannot be read: it is written as a sparse file"):
        rock_ridge(record(b"A.;1", 30, 10, system_use=use)).extents("sparse")


def test_a_mode_does_not_make_a_directory_a_file_or_a_file_a_directory() -> None:
    made = image(
        {
            ROOT: [
                record(b"D", 30, SECTOR, flags=DIRECTORY, system_use=posix(FILE, "folder")),
                record(b"F.;1", 40, 10, system_use=posix(FOLDER, "file")),
            ],
            30: [record(b"A.;1", system_use=posix(FILE, "below"))],
        },
        root_use=SUSP + posix(FOLDER),
    )
    tree = read_tree(io.BytesIO(made))
    assert paths(tree) == ["folder", "folder/below", "file"]
    assert tree.node("file").kind is Kind.FILE


def test_a_directory_that_was_moved_is_shown_in_its_place() -> None:
    """With all of its blocks, which only its own record tells, and its own attributes."""
    many = [record(b"F%02d.;1" % n, system_use=posix(FILE, f"file{n}")) for n in range(40)]
    own = record(OWN, 31, 2 * SECTOR, flags=DIRECTORY, system_use=posix(FOLDER | 0o1000))
    made = bytearray(
        image(
            {
                ROOT: [
                    record(
                        b"MOVED", 30, SECTOR, flags=DIRECTORY, system_use=posix(FOLDER, "moved")
                    ),
                    record(b"HERE.;1", system_use=posix(FILE, "here") + entry(b"CL", both(31))),
                ],
                30: [
                    record(
                        *(b"HERE", 31, SECTOR),
                        flags=DIRECTORY,
                        system_use=posix(FOLDER, "here") + entry(b"RE", b""),
                    )
                ],
            },
            root_use=SUSP + posix(FOLDER),
        )
    )
    listing = own + record(PARENT, 30, SECTOR, flags=DIRECTORY)
    for one in many:
        if len(listing) % SECTOR + len(one) > SECTOR:
            listing += bytes(-len(listing) % SECTOR)
        listing += one
    made[31 * SECTOR : 31 * SECTOR + len(listing)] = listing
    tree = read_tree(io.BytesIO(bytes(made)))
    assert paths(tree) == ["moved", "here", *(f"here/file{n}" for n in range(40))]
    assert tree.node("here").mode == 0o1750


def test_a_moved_directory_that_is_nowhere_is_empty() -> None:
    use = posix(FILE, "here") + entry(b"CL", both(0xFFFFFF))
    tree = rock_ridge(record(b"HERE.;1", system_use=use))
    assert paths(tree) == ["here"]
    assert tree.node("here").kind is Kind.DIRECTORY
    assert tree.node("here").problem == "it lies outside of the image"


def test_susp_may_leave_room_for_others() -> None:
    made = image(
        {ROOT: [record(b"A.;1", system_use=b"0123456789abcd" + posix(FILE, "name"))]},
        root_use=entry(b"SP", b"\xbe\xef\x0e") + posix(FOLDER),
    )
    tree = read_tree(io.BytesIO(made))
    assert paths(tree) == ["name"]
    assert tree.root.mode == 0o750  # by the root's own record, where nothing is skipped


def test_susp_without_rock_ridge_has_plain_names() -> None:
    made = image({ROOT: [record(b"A.;1", system_use=posix(FILE, "name"))]}, root_use=SUSP)
    tree = read_tree(io.BytesIO(made))
    assert (tree.namespace, paths(tree)) == (PLAIN, ["a"])

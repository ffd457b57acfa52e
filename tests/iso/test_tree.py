"""The tree as a person uses it: paths, links, patterns and ranges, against simple models."""

import fnmatch
import posixpath
import random
import tracemalloc
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span
from lazyfs.formats.tree import HOLE, MAX_LINKS, Extent, Kind, Node, Tree, Volume
from lazyfs.formats.treebuilder import MAX_TARGET, MAX_TARGETS, Builder, coalesced

SIZE = 1 << 20


def planted(content: dict[str, Node]) -> Tree:
    """A tree with these nodes at these paths; directories are made as needed."""
    builder = Builder(Volume(image_size=SIZE))
    directories = {"": builder.root}
    for path, node in content.items():
        parts = path.split("/")
        for depth in range(1, len(parts)):
            where = "/".join(parts[:depth])
            if where not in directories:
                folder = Node(parts[depth - 1], Kind.DIRECTORY)
                added = builder.add(directories["/".join(parts[: depth - 1])], folder, depth)
                assert added
                directories[where] = added
        named = node._replace(name=parts[-1])
        added = builder.add(directories["/".join(parts[:-1])], named, len(parts))
        if added and added.kind is Kind.DIRECTORY:
            directories[path] = added
    return builder.tree("ISO 9660")


def file_at(offset: int, length: int = 100) -> Node:
    return Node("", Kind.FILE, size=length, extents=(Extent(offset, length),))


def link_to(target: str) -> Node:
    return Node("", Kind.SYMLINK, target=target, size=len(target))


LIVE = planted(
    {
        "casper/filesystem.squashfs": file_at(0x8000, 1000),
        "casper/initrd": file_at(0x4000, 100),
        "casper/extra/one.squashfs": file_at(0x6000, 100),
        "boot/grub/grub.cfg": file_at(0x5000, 50),
        "boot/grub/fonts/unicode.pf2": file_at(0x5032, 50),
        ".disk/info": file_at(0x9000, 10),
        "README": file_at(0xA000, 10),
        "link to casper": link_to("casper"),
        "boot/up": link_to("../casper/extra"),
        "boot/absolute": link_to("/boot/grub"),
        "out": link_to("../../../../README"),
        "loop": link_to("pool"),
        "pool": link_to("loop"),
        "null": Node("", Kind.CHARACTER_DEVICE, device=(1, 3)),
    }
)


@pytest.mark.parametrize(
    ("path", "real"),
    [
        ("", ""),
        ("/", ""),
        ("..", ""),
        ("/../..", ""),
        ("README", "README"),
        ("//casper/./initrd", "casper/initrd"),
        ("casper/../README", "README"),
        ("casper/extra/../initrd", "casper/initrd"),
        ("../../etc/../casper", None),
        ("link to casper", "casper"),
        ("link to casper/initrd", "casper/initrd"),
        ("boot/up/..", "casper"),
        ("boot/absolute/fonts", "boot/grub/fonts"),
        ("out", "README"),
        ("out/", None),
        ("README/", None),
        ("README/..", None),
        ("casper/", "casper"),
    ],
)
def test_a_path_leads_where_it_does_in_a_shell(path: str, real: str | None) -> None:
    if real is None:
        with pytest.raises(ImageError, match="is not in the image"):
            LIVE.node(path)
    else:
        assert LIVE.real_path(path) == real
        assert LIVE.node(path) is LIVE.node(real)


def test_the_last_link_of_a_path_is_followed_on_request() -> None:
    assert LIVE.node("boot/up", follow=False).kind is Kind.SYMLINK
    assert LIVE.node("boot/up/", follow=False).kind is Kind.DIRECTORY
    assert LIVE.node("loop", follow=False).target == "pool"


@pytest.mark.parametrize("path", ["loop", "pool", "loop/below"])
def test_links_that_lead_in_circles_are_an_error(path: str) -> None:
    with pytest.raises(ImageError, match=f"{path} goes through too many symbolic links"):
        LIVE.node(path)


@pytest.mark.parametrize(("count", "ends"), [(MAX_LINKS, True), (MAX_LINKS + 1, False)])
def test_as_many_links_are_followed_as_linux_follows(count: int, ends: bool) -> None:
    chain = {f"link{n}": link_to(f"link{n - 1}") for n in range(1, count + 1)}
    tree = planted({"link0": file_at(0), **chain})
    if ends:
        assert tree.real_path(f"link{count}") == "link0"
    else:
        with pytest.raises(ImageError, match="too many"):
            tree.node(f"link{count}")


def test_links_that_multiply_themselves_come_to_an_end() -> None:
    tree = planted({f"l{n}": link_to("/".join([f"l{n + 1}"] * 50)) for n in range(60)})
    with pytest.raises(ImageError, match="too many"):
        tree.node("l0/l0/l0")


@pytest.mark.parametrize(
    ("path", "cure"),
    [
        ("Casper/initrd", "did you mean casper?"),
        ("casper/INITRD", "did you mean casper/initrd?"),
        ("casper/filesystem.squash", "did you mean casper/filesystem.squashfs?"),
        ("casper/qqq", "lazyfs ls shows what there is"),
    ],
)
def test_what_is_not_there_may_be_meant_otherwise(path: str, cure: str) -> None:
    with pytest.raises(ImageError) as caught:
        LIVE.node(path)
    assert (caught.value.message, caught.value.cure) == (f"{path} is not in the image", cure)


@pytest.mark.parametrize(
    ("pattern", "found"),
    [
        ("casper/*.squashfs", ["casper/filesystem.squashfs"]),
        ("/casper/init??", ["casper/initrd"]),
        ("*/*/*.squashfs", ["casper/extra/one.squashfs"]),
        ("**/*.squashfs", ["casper/filesystem.squashfs", "casper/extra/one.squashfs"]),
        ("boot/**", None),
        ("boot/**/*", None),
        ("boot/**/**", None),
        ("**/fonts/*", ["boot/grub/fonts/unicode.pf2"]),
        ("boot", ["boot"]),
        ("./boot//grub/[a-g]*.cfg", ["boot/grub/grub.cfg"]),
        (".disk/*", [".disk/info"]),
        ("*disk", [".disk"]),
        ("readme", ["README"]),
        ("BOOT/GRUB/*.CFG", ["boot/grub/grub.cfg"]),
        ("/", [""]),
    ],
)
def test_patterns_match_paths(pattern: str, found: list[str] | None) -> None:
    below = [path for path, _ in LIVE.walk("boot")][1:]
    assert LIVE.glob(pattern) == (below if found is None else found)


def test_a_case_that_fits_comes_first() -> None:
    tree = planted({"README": file_at(0), "readme": file_at(200)})
    assert tree.glob("readme") == ["readme"]
    assert tree.glob("Readme") == ["README", "readme"]


def test_a_pattern_that_matches_nothing_says_what_comes_close() -> None:
    with pytest.raises(ImageError) as caught:
        LIVE.glob("casper/filesystem.squash")
    assert caught.value.message == "casper/filesystem.squash matches nothing in the image"
    assert caught.value.cure == "did you mean casper/filesystem.squashfs?"


def matches(parts: list[str], pattern: list[str]) -> bool:
    """What it means that a path matches, in the plainest way."""
    if not pattern:
        return not parts
    if pattern == ["**"]:
        return bool(parts)
    if pattern[0] == "**":
        return any(matches(parts[skipped:], pattern[1:]) for skipped in range(len(parts) + 1))
    return (
        bool(parts)
        and fnmatch.fnmatchcase(parts[0], pattern[0])
        and matches(parts[1:], pattern[1:])
    )


NAMES = st.sampled_from(["a", "b", "ab", "A"])
PATHS = st.lists(NAMES, min_size=1, max_size=4).map("/".join)


@given(
    st.sets(PATHS, max_size=12),
    st.lists(st.sampled_from(["a", "*", "a*", "?", "**", "[ab]"]), min_size=1, max_size=5),
)
def test_globs_match_as_their_definition_says(wanted: set[str], parts: list[str]) -> None:
    tree = planted({path: Node("", Kind.DIRECTORY) for path in sorted(wanted)})
    every = [path for path, _ in tree.walk() if path]
    expected = [path for path in every if matches(path.split("/"), parts)]
    pattern = "/".join(parts)
    if expected:
        assert tree.glob(pattern) == expected
    elif "a" not in pattern and "b" not in pattern:
        with pytest.raises(ImageError):
            tree.glob(pattern)


@given(st.lists(st.sampled_from(["a", "b", "..", ".", "", "x"]), max_size=8))
def test_paths_without_links_are_normalised_as_posixpath_does(parts: list[str]) -> None:
    content = {"/".join(p): file_at(0) for p in [("a", "b", "a"), ("b", "a", "x"), ("a", "a", "b")]}
    tree = planted(content)
    path = "/" + "/".join(parts)
    try:
        real = tree.real_path(path)
    except ImageError:
        return
    assert real == posixpath.normpath(path).strip("/")


def test_ranges_are_merged_in_disk_order() -> None:
    assert LIVE.ranges(["casper/filesystem.squashfs", "boot/absolute", "casper/initrd"]) == [
        Span(0x4000, 0x4064),
        Span(0x5000, 0x5064),
        Span(0x8000, 0x8000 + 1000),
    ]
    assert LIVE.ranges([]) == []
    with pytest.raises(ImageError):
        LIVE.ranges(["nothing"])


def test_ranges_leave_out_holes_and_what_cannot_be_read() -> None:
    tree = planted(
        {
            "sparse": Node(
                "", Kind.FILE, size=30, extents=(Extent(0, 10), Extent(HOLE, 10), Extent(50, 10))
            ),
            "outside": file_at(SIZE - 1, 2),
        }
    )
    assert tree.ranges([""]) == [Span(0, 10), Span(50, 60)]


spans = st.lists(
    st.builds(lambda a, n: Span(a, a + n), st.integers(0, 60), st.integers(0, 9)), max_size=12
)


def test_coalesced_extents_are_few() -> None:
    assert coalesced([Extent(0, 5), Extent(5, 5), Extent(9, 0), Extent(20, 1)]) == (
        Extent(0, 10),
        Extent(20, 1),
    )
    assert coalesced([Extent(HOLE, 5), Extent(HOLE, 5), Extent(4, 1)]) == (
        Extent(HOLE, 10),
        Extent(4, 1),
    )


@pytest.mark.parametrize(
    ("extents", "size", "problem"),
    [
        ((Extent(0, SIZE),), SIZE, ""),
        ((Extent(1, SIZE),), SIZE, "it lies outside of the image"),
        ((Extent(-2, 10),), 10, "its place in the image makes no sense"),
        ((Extent(0, -1),), -1, "its place in the image makes no sense"),
        ((), 1 << 80, "the image holds less or more of it than its size"),
        ((Extent(0, 5),), 6, "the image holds less or more of it than its size"),
        ((Extent(HOLE, SIZE * 2),), SIZE * 2, ""),
    ],
)
def test_extents_that_cannot_be_are_a_problem(
    extents: tuple[Extent, ...], size: int, problem: str
) -> None:
    tree = planted({"a": Node("", Kind.FILE, size=size, extents=extents)})
    assert tree.node("a").problem == problem


odd = st.integers(-(1 << 80), 1 << 80)


@given(
    st.builds(
        Node, st.just(""), st.sampled_from(Kind), odd, odd, odd, odd, odd, odd, target=st.just("")
    )
)
def test_numbers_are_such_as_a_filesystem_can_show(node: Node) -> None:
    found = planted({"a": node._replace(device=(node.uid, node.gid))}).node("a", follow=False)
    assert found.mode == node.mode & 0o7777
    assert all(0 <= n < 1 << 32 for n in (found.uid, found.gid, found.nlink, *found.device))
    assert 0 <= found.size < 1 << 63
    assert abs(datetime.fromtimestamp(found.mtime, UTC).timestamp() - found.mtime) < 1


def test_links_have_limits_one_by_one_and_together() -> None:
    tree = planted({"long": link_to("x" * (MAX_TARGET + 1)), "fits": link_to("x" * MAX_TARGET)})
    assert [path for path, _ in tree.walk()] == ["", "fits"]
    with pytest.raises(ImageError, match="too long together"):
        planted({f"l{n}": link_to("x" * 4000) for n in range(MAX_TARGETS // 4000 + 1)})


def test_a_hundred_notes_are_enough() -> None:
    builder = Builder(Volume())
    for number in range(250):
        builder.note(f"note {number}")
    notes = builder.tree("").notes
    assert (len(notes), notes[-1]) == (101, "and 150 more")


def test_ten_thousand_files_take_less_than_ten_megabytes() -> None:
    rng = random.Random(1)
    tracemalloc.start()
    tree = planted(
        {
            f"d{n // 20}/file with a name {n}.txt": file_at(rng.randrange(SIZE - 100))
            for n in range(10_000)
        }
    )
    used, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert used < 10_000_000
    assert sum(1 for _ in tree.walk()) == 10_501

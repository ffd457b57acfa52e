"""A tree that was saved is the same when it is loaded; anything else is refused."""

import hashlib
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import ImageError
from lazyfs.formats import savedtree
from lazyfs.formats.savedtree import dump, load
from lazyfs.formats.tree import BootImage, Extent, Kind, Node, Tree, Volume
from lazyfs.formats.treebuilder import MAX_DEPTH, Builder

text = st.binary(max_size=12).map(lambda data: data.decode("utf-8", "surrogateescape"))
number = st.integers(0, 0xFFFFFFFF)
nodes = st.builds(
    Node,
    name=text,
    kind=st.sampled_from(Kind),
    mode=st.integers(0, 0o7777),
    uid=number,
    gid=number,
    nlink=number,
    mtime=st.integers(-(1 << 35), 1 << 35),
    size=st.integers(0, 50),
    extents=st.lists(st.builds(Extent, st.integers(-3, 1000), st.integers(-1, 60)), max_size=3).map(
        tuple
    ),
    target=text,
    device=st.tuples(number, number),
    compressed=st.sampled_from(["", "zisofs"]),
    problem=st.sampled_from(["", "it is broken"]),
    children=st.just({}),
)
volumes = st.builds(
    Volume,
    label=text,
    declared_size=number,
    image_size=st.integers(0, 1000),
    mbr=st.booleans(),
    gpt=st.booleans(),
    boot_images=st.lists(
        st.builds(BootImage, text, st.booleans(), text, number, number), max_size=3
    ).map(tuple),
)


def grown(volume: Volume, content: list[tuple[int, Node]]) -> Tree:
    """A tree of these nodes, each in one of the directories before it."""
    builder = Builder(volume)
    directories = [(builder.root, 0)]
    for where, node in content:
        directory, depth = directories[where % len(directories)]
        added = builder.add(directory, node, depth + 1)
        if added is not None and added.kind is Kind.DIRECTORY:
            directories.append((added, depth + 1))
    return builder.tree("Rock Ridge")


@given(volumes, st.lists(st.tuples(st.integers(0, 20), nodes), max_size=20))
def test_a_tree_comes_back_as_it_was(volume: Volume, content: list[tuple[int, Node]]) -> None:
    tree = grown(volume, content)
    loaded = load(dump(tree))
    assert loaded == tree
    assert [path for path, _ in loaded.walk()] == [path for path, _ in tree.walk()]


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    with pytest.raises(ImageError, match="another version, or damaged"):
        load(data)


SMALL = grown(Volume(image_size=100), [(0, Node("d", Kind.DIRECTORY)), (1, Node("f", Kind.FILE))])


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_noticed(place: int, change: int) -> None:
    data = bytearray(dump(SMALL))
    data[place % len(data)] ^= change
    with pytest.raises(ImageError, match="another version, or damaged"):
        load(bytes(data))


def forged(content: object) -> bytes:
    """What somebody could write who knows the format."""
    packed = zlib.compress(json.dumps(content).encode())
    return savedtree._FORMAT + hashlib.blake2b(packed, digest_size=16).digest() + packed


def content_of(tree: Tree) -> Any:
    return json.loads(zlib.decompress(dump(tree)[len(savedtree._FORMAT) + 16 :]))


def test_the_format_is_known_to_these_tests() -> None:
    assert load(forged(content_of(SMALL))) == SMALL


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
    max_leaves=8,
)


@given(st.data())
def test_a_forged_tree_is_a_tree_or_refused(data: st.DataObject) -> None:
    """Any part of the content is replaced by any other thing."""
    content = content_of(SMALL)
    part = content
    while True:
        at = data.draw(st.integers(0, len(part) - 1))
        if not (isinstance(part[at], list) and part[at] and data.draw(st.booleans())):
            break
        part = part[at]
    part[at] = data.draw(json_values)
    try:
        tree = load(forged(content))
    except ImageError:
        return
    assert load(dump(tree)) == tree
    assert all("/" not in node.name for _, node in tree.walk())


@pytest.mark.parametrize("name", ["..", "a/b", ""])
def test_forged_names_do_not_get_into_the_tree(name: str) -> None:
    content = content_of(SMALL)
    content[3][2][1][0] = name
    assert [path for path, _ in load(forged(content)).walk()] == ["", "d"]


@pytest.mark.parametrize("number", [1.5, True, "1", None, [1]])
@pytest.mark.parametrize("field", range(6))
def test_forged_numbers_that_are_none_are_refused(field: int, number: object) -> None:
    content = content_of(SMALL)
    content[3][2][2][field] = number
    with pytest.raises(ImageError, match="makes no sense"):
        load(forged(content))


def test_a_forged_tree_that_is_too_deep_is_refused() -> None:
    content = content_of(SMALL)
    directory = content[3][1]
    content[3][2:] = [[number, *directory[1:]] for number in range(1, MAX_DEPTH)]
    assert len(list(load(forged(content)).walk())) == MAX_DEPTH + 1
    content[3].append([MAX_DEPTH, *directory[1:]])
    with pytest.raises(ImageError, match="levels deep"):
        load(forged(content))


def test_a_forged_extent_outside_of_the_image_is_a_problem() -> None:
    content = content_of(SMALL)
    content[3][2][4] = [[1000, 1]]
    assert load(forged(content)).node("d/f").problem


@pytest.mark.parametrize(
    "content", [None, {}, [], [1, 2, 3, 4], ["x", [], [], []], "x", [[[[]]]], 1e999]
)
def test_forged_content_of_any_shape_is_refused(content: object) -> None:
    with pytest.raises(ImageError, match="makes no sense"):
        load(forged(content))


def test_a_name_that_no_filesystem_can_have_is_refused() -> None:
    content = content_of(SMALL)
    content[3][2][1][0] = "\ud800"
    with pytest.raises(ImageError, match="makes no sense"):
        load(forged(content))


def test_nested_and_inflated_content_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def packed(data: bytes) -> bytes:
        body = zlib.compress(data)
        return savedtree._FORMAT + hashlib.blake2b(body, digest_size=16).digest() + body

    with pytest.raises(ImageError, match="makes no sense"):
        load(packed(b"[" * 1_000_000))
    monkeypatch.setattr(savedtree, "_MAX_JSON", 1000)
    with pytest.raises(ImageError, match="too large"):
        load(packed(b" " * 1001))


def test_the_deepest_tree_can_be_saved_and_compared() -> None:
    builder = Builder(Volume())
    directory: Node | None = builder.root
    for depth in range(1, MAX_DEPTH + 1):
        assert directory is not None
        directory = builder.add(directory, Node("d", Kind.DIRECTORY), depth)
    tree = builder.tree("UDF")
    assert load(dump(tree)) == tree


def test_many_notes_stay_as_they_are() -> None:
    builder = Builder(Volume())
    for one in range(150):
        builder.note(f"note {one}")
    tree = builder.tree("UDF")
    assert load(dump(tree)).notes == tree.notes

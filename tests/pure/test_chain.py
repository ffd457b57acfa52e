"""The layers in a URL's fragment: their words, their names, and what tells views apart."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core import address
from lazyfs.core.device import Identity
from lazyfs.core.errors import UsageError
from lazyfs.core.ranges import Span
from lazyfs.formats.layer import Layer
from lazyfs.formats.slice import SliceDevice
from lazyfs.frontends.nbdkernel import backend_id
from lazyfs.images.chain import digest_of, named, parse, view_id, window_of
from lazyfs.testing.memory import MemoryDevice

SIZES = st.integers(0, 1 << 40)


def texts(fragment: str) -> list[str]:
    return [step.text for step in parse(fragment)]


@pytest.mark.parametrize(
    ("fragment", "canonical"),
    [
        ("", []),
        ("part=2", ["part=2"]),
        ("part=002", ["part=2"]),
        ("part=LABEL:a%2Cb%20c", ["part=LABEL:a%2Cb%20c"]),
        ("part=label:root", ["part=LABEL:root"]),
        ("part=PARTUUID:0FC6-01", ["part=PARTUUID:0FC6-01"]),
        ("offset=1M", ["offset=1048576"]),
        ("length=512", ["offset=0,length=512"]),
        ("length=1K,offset=1K", ["offset=1024,length=1024"]),
        ("offset=1M,offset=1K", ["offset=1048576", "offset=1024"]),
        (
            "offset=1M,length=1M,part=1,part=5",
            ["offset=1048576,length=1048576", "part=1", "part=5"],
        ),
    ],
)
def test_chain_is_read_from_left_to_right(fragment: str, canonical: list[str]) -> None:
    assert texts(fragment) == canonical
    assert texts(",".join(canonical)) == canonical


@pytest.mark.parametrize(
    ("fragment", "says"),
    [
        ("xz", "#xz is no layer of an image; known are #offset, #length, #part; see IMAGES in"),
        ("Hunter2=secret", "#... is no layer of an image"),
        (",", "#... is no layer of an image"),
        ("part", "'' names no partition; write part=2, part=PARTUUID:... or part=LABEL:..."),
        ("part=two", "'two' names no partition"),
        ("part=-1", "'-1' names no partition"),
        ("part=LABEL:", "'LABEL:' names no partition"),
        ("offset=much", "'much' is not a size"),
        ("length=0", "a slice of length 0 shows nothing; give another length, or none"),
    ],
)
def test_chain_that_makes_no_sense_is_refused(fragment: str, says: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(fragment)
    assert str(caught.value).startswith(says)


@given(st.text(max_size=40))
def test_chain_of_any_text_is_read_or_refused(fragment: str) -> None:
    try:
        found = texts(fragment)
    except UsageError:
        return
    assert texts(",".join(found)) == found


@given(st.text(min_size=1, max_size=30).filter(lambda text: "\0" not in text))
def test_chain_takes_any_label(label: str) -> None:
    (step,) = parse(f"part=LABEL:{address.quoted(label)}")
    assert step.arguments == f"LABEL:{label}"


@pytest.mark.parametrize(
    ("fragment", "name"),
    [
        ("", "disk.raw"),
        ("part=2", "disk.raw.part2"),
        ("part=LABEL:my/root", "disk.raw.my_root"),
        ("offset=512", "disk.raw.512-end"),
        ("offset=1K,length=1K,part=1", "disk.raw.1024-2048.part1"),
    ],
)
def test_chain_names_the_file_of_its_view(fragment: str, name: str) -> None:
    assert named("disk.raw", parse(fragment)) == name


def test_chain_gives_no_name_that_a_file_cannot_have() -> None:
    name = named("n" * 250, parse(f"part=LABEL:{address.quoted('ö' * 100)}"))
    assert len(name.encode()) <= 255


def test_view_ids_tell_slices_of_equal_size_apart() -> None:
    """As validators do not: they are the image's."""
    image = MemoryDevice(bytes(4096), Identity(4096, '"v1"'))
    one, other = (SliceDevice(image, Span(start, start + 1024)) for start in (0, 1024))
    assert one.identity == other.identity
    views = [view_id("disk.raw-0123", texts(f"offset={n},length=1K")) for n in (0, 1024)]
    views.append(view_id("disk.raw-0123", []))
    assert len(set(views)) == 3
    assert len({backend_id(one.identity, view) for view in views}) == 3
    assert len({digest_of(view) for view in views}) == 3
    assert digest_of(views[-1]) == ""


SPANS = st.builds(lambda start, length: Span(start, start + length), SIZES, SIZES)


@given(SPANS, SPANS)
def test_window_of_slices_is_where_their_bytes_lie(one: Span, other: Span) -> None:
    device = MemoryDevice(b"")
    layers = [Layer("", device, one), Layer("", device, other)]
    window = window_of(layers, 1 << 42)
    assert window == Span(one.start + other.start, one.start + other.stop)
    assert window_of([], 7) == Span(0, 7)
    assert window_of([layers[0], Layer("", device, None)], 1 << 42) is None

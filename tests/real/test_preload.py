"""--preload, --record and --profile: what is fetched though nobody has read it yet."""

import io
import json
import os
import random
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from iso.flavours import make

from lazyfs.core.device import Identity
from lazyfs.core.ranges import Span
from lazyfs.formats import squashfs
from lazyfs.formats.iso.catalog import Catalog, read_tree
from lazyfs.prefetch.profile import Profile, Use, as_text, parse
from lazyfs.sources.http import FIRST_BYTES

from .images import MIB, Images
from .mounts import LAZYFS, Lab, Mounted, loop_mounted, need_loop, need_tool, read, run, run_well
from .servers import HTTP_DATE, Answer, Nginx, Request, Scripted
from .waiting import eventually

BLOCK = 32 << 10  # bytes: lazyfs's default
TOLD_BLOCK = 8 << 10  # bytes: its default with a profile
KIB = 1 << 10
FILES_IN_SQUASHFS = 6000

_BOOTS = ["-b", "isolinux/isolinux.bin", "-c", "isolinux/boot.cat", "-no-emul-boot"]


def _plant(place: Path) -> Path:
    """A live medium, as they are."""
    rng = random.Random(3)
    for path, size in {
        "isolinux/isolinux.bin": 40 * KIB,
        "EFI/boot/bootx64.efi": 300 * KIB,
        "boot/grub/grub.cfg": 3 * KIB,
        "live/vmlinuz": 700 * KIB,
        "live/initrd.img": 2 * MIB + 9,
        "docs/manual.pdf": 3 * MIB,
        "pool/package.deb": 5 * MIB,
    }.items():
        file = place / "tree" / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rng.randbytes(size))
    for number in range(FILES_IN_SQUASHFS):
        file = place / f"root/usr/share/{number % 40:02d}/a file {number}"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(rng.randbytes(700))
    options = ["-noappend", "-no-progress", "-quiet", "-noD", "-noF", "-noI"]
    squashfs = place / "tree/live/filesystem.squashfs"
    run_well([need_tool("mksquashfs", "squashfs-tools"), place / "root", squashfs, *options])
    return place / "tree"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory that is served, with ``live.iso``."""
    place = tmp_path_factory.mktemp("preload")
    (place / "shelf").mkdir()
    make(["xorriso", "-as", "mkisofs", *_BOOTS], _plant(place), place / "shelf/live.iso")
    return place / "shelf"


@pytest.fixture(scope="module")
def catalog(shelf: Path) -> Catalog:
    with open(shelf / "live.iso", "rb") as file:
        return Catalog(file)


@pytest.fixture
def server(shelf: Path) -> Iterator[Nginx]:
    with Nginx(shelf) as nginx:
        yield nginx


def statistics(mounted: Mounted) -> dict[str, int]:
    hidden = mounted.path / ".lazyfs-image"
    file = hidden if hidden.exists() else mounted.image
    content: dict[str, int] = json.loads(os.getxattr(file, "user.lazyfs.statistics"))
    return content


def blocks_of(*spans: Span, size: int = BLOCK) -> set[int]:
    return {n for start, stop in spans for n in range(start // size, -(-stop // size))}


FIRST = Span(0, FIRST_BYTES)  # what comes when an image is opened


def file_blocks(catalog: Catalog, *paths: str) -> set[int]:
    extents = (extent for path in paths for extent in catalog.tree.extents(path))
    return blocks_of(*(Span(offset, offset + length) for offset, length in extents))


def blocks_of_the_tree(image: Path) -> set[int]:
    """The blocks that reading the catalog touches."""
    touched: set[int] = set()

    class Counted(io.FileIO):
        def read(self, size: int | None = -1, /) -> bytes:
            start = self.tell()
            data = super().read(size) or b""
            touched.update(blocks_of(Span(start, start + len(data))))
            return data

    with Counted(image) as file:
        read_tree(file)
    return touched


def present(cache: Path) -> set[int]:
    """The blocks that a cache holds, by its bitmap."""
    (bitmap,) = cache.glob("*/bitmap")
    bits = int.from_bytes(bitmap.read_bytes(), "little")
    return {n for n in range(bits.bit_length()) if bits >> n & 1}


def wait_until_present(cache: Path, wanted: set[int]) -> None:
    def all_here() -> bool:
        return bool(list(cache.glob("*/bitmap"))) and wanted <= present(cache)

    eventually(all_here, "all that is wanted has been fetched")


def complaints(mounted: Mounted) -> list[str]:
    """What was said at WARNING and above, before the mount was ready or after."""
    return [*mounted.said.splitlines(), *mounted.complaints()]


def wait_for_complaint(mounted: Mounted) -> str:
    """The only one that there is."""
    eventually(lambda: bool(complaints(mounted)), "it is said")
    (only,) = complaints(mounted)
    return only


# --preload


@pytest.mark.parametrize("options", [[], ["--browse"]], ids=["plain", "browse"])
def test_a_file_is_fetched_though_nobody_reads_it(
    server: Nginx, lab: Lab, catalog: Catalog, options: list[str]
) -> None:
    wanted = file_blocks(catalog, "live/initrd.img")
    words = [*options, "--readahead", "0", "--preload", "live/initrd*", server.url("live.iso")]
    with lab.mounted(*words) as mounted:
        wait_until_present(lab.cache, wanted)
        figures = statistics(mounted)
        assert figures["prefetched"] >= len(wanted) * BLOCK
        before = server.body_bytes()
        if options:
            expected = (server.root.parent / "tree/live/initrd.img").read_bytes()
            assert (mounted.path / "live/initrd.img").read_bytes() == expected
        else:
            offset, length = catalog.extent("live/initrd.img")
            read(mounted.image, offset, length)
        assert server.body_bytes() == before
    assert present(lab.cache) - wanted <= blocks_of_the_tree(server.root / "live.iso")


def test_several_patterns_are_fetched(server: Nginx, lab: Lab, catalog: Catalog) -> None:
    wanted = file_blocks(catalog, "live/vmlinuz", "docs/manual.pdf")
    words = ["--preload", "/live/vmlinuz", "--preload", "**/*.PDF"]
    with lab.mounted("--readahead", "0", *words, server.url("live.iso")):
        wait_until_present(lab.cache, wanted)
    assert present(lab.cache) - wanted <= blocks_of_the_tree(server.root / "live.iso")


def test_a_directory_stands_for_all_that_is_in_it(
    server: Nginx, lab: Lab, catalog: Catalog
) -> None:
    wanted = file_blocks(catalog, "live/vmlinuz", "live/initrd.img", "live/filesystem.squashfs")
    with lab.mounted("-o", "preload=live", server.url("live.iso")):
        wait_until_present(lab.cache, wanted)


def test_boot_stands_for_what_firmware_and_boot_loaders_read(
    server: Nginx, lab: Lab, catalog: Catalog
) -> None:
    names = ["isolinux/isolinux.bin", "EFI/boot/bootx64.efi", "boot/grub/grub.cfg"]
    wanted = file_blocks(catalog, *names)
    with lab.mounted("--readahead", "0", "--preload", "@boot", server.url("live.iso")):
        wait_until_present(lab.cache, wanted)
    more = blocks_of_the_tree(server.root / "live.iso") | file_blocks(catalog, "isolinux/boot.cat")
    assert present(lab.cache) - wanted <= more


@pytest.mark.parametrize("seen_before", [False, True])
def test_meta_stands_for_all_directories(server: Nginx, lab: Lab, seen_before: bool) -> None:
    """Also where lazyfs itself remembers them: who mounts the image will read them again."""
    wanted = blocks_of_the_tree(server.root / "live.iso")
    url = server.url("live.iso")
    if seen_before:
        assert lab.start("ls", "--cache-dir", lab.cache, url).returncode == 0
        (bitmap,) = lab.cache.glob("*/bitmap")
        bitmap.write_bytes(bytes(bitmap.stat().st_size))
    with lab.mounted("--readahead", "0", "--preload", "@meta", url):
        wait_until_present(lab.cache, wanted)
    assert present(lab.cache) == wanted | blocks_of(FIRST)


def test_the_tables_of_a_squashfs_make_find_cheap(server: Nginx, lab: Lab) -> None:
    need_loop()
    url = server.url("live.iso")
    words = ["--browse", "--readahead", "0"]
    costs: list[int] = []
    for preload in ([], ["--preload", "squashfs:live/*.squashfs"]):
        cache = lab.directory / f"cache{len(costs)}"
        with lab.mounted(*words, *preload, url, cache=cache) as mounted:
            if preload:
                eventually(lambda: bool(statistics(mounted)["prefetched"]), "tables have come")
                eventually(lambda: not statistics(mounted)["under_way"], "all of them")
            before = statistics(mounted)["requests"]
            squashfs = mounted.path / "live/filesystem.squashfs"
            with loop_mounted(squashfs, lab.mountpoint(), "squashfs") as at:
                names = run_well(["find", at, "-type", "f"]).splitlines()
                assert len(names) == FILES_IN_SQUASHFS
                costs.append(statistics(mounted)["requests"] - before)
    print(f"requests for find in a squashfs: {costs[0]}, with its tables preloaded {costs[1]}")
    assert costs[1] <= 4
    assert costs[1] < costs[0]


@pytest.mark.parametrize(
    ("pattern", "why"),
    [
        ("live/initrd.igm", "matches nothing in the image; did you mean live/initrd.img?"),
        ("squashfs:live/vmlinuz", "it is not a squashfs"),
        ("squashfs:live/filesystem.squash", "did you mean live/filesystem.squashfs?"),
    ],
)
def test_a_pattern_that_is_of_no_use_is_said_and_the_others_are_used(
    server: Nginx, lab: Lab, catalog: Catalog, pattern: str, why: str
) -> None:
    wanted = file_blocks(catalog, "live/vmlinuz")
    words = ["--preload", pattern, "--preload", "live/vmlinuz", server.url("live.iso")]
    with lab.mounted(*words, troubled=True) as mounted:
        said = wait_for_complaint(mounted)
        assert f"--preload {pattern}: " in said
        assert why in said
        assert server.url("live.iso") in said
        wait_until_present(lab.cache, wanted)
        assert len(complaints(mounted)) == 1


def test_an_image_that_is_no_iso_is_mounted_all_the_same(
    scripted: Scripted, lab: Lab, content: bytes
) -> None:
    words = ["--preload", "a", "--preload", "@boot", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        said = wait_for_complaint(mounted)
        assert "nothing is preloaded: this is neither an ISO 9660 nor a UDF image" in said
        assert mounted.image.read_bytes() == content
        assert len(complaints(mounted)) == 1


def test_a_mount_ends_in_the_middle_of_its_preload(server: Nginx, lab: Lab) -> None:
    server.stop()
    server.rate = 200 * KIB
    server.start()
    with lab.mounted("--preload", "**/*", server.url("live.iso")) as mounted:
        eventually(lambda: statistics(mounted)["under_way"] > 0, "it has begun")
        mounted.signal(signal.SIGTERM)
        mounted.wait_until_ended(10)


def test_who_reads_does_not_wait_for_the_preload(server: Nginx, lab: Lab, catalog: Catalog) -> None:
    """At 60 KiB/s and connection, the preload would take minutes."""
    server.stop()
    server.rate = 60 * KIB
    server.start()
    words = ["--preload", "pool", "--preload", "docs", "--preload", "live"]
    with lab.mounted(*words, server.url("live.iso"), troubled=True) as mounted:
        eventually(lambda: statistics(mounted)["prefetched"] > 0, "it has begun")
        offset, _ = catalog.extent("live/filesystem.squashfs")
        read(mounted.image, offset + 2 * MIB, 4096, limit=10)
        assert statistics(mounted)["cached"] < 8 * MIB
        mounted.signal(signal.SIGTERM)


# --record


READS = [(700 * KIB, 4096), (100 * KIB, 8192), (3 * MIB, 100 * KIB), (100 * KIB, 4096)]


def spans(reads: Sequence[tuple[int, int]]) -> list[Span]:
    return [Span(offset, offset + length) for offset, length in reads]


def bytes_in(found: Sequence[Span]) -> set[int]:
    """By page: the kernel reads whole ones."""
    return {n for start, stop in found for n in range(start // 4096, -(-stop // 4096))}


@pytest.mark.parametrize("end", ["umount", "sigterm"])
def test_what_is_read_is_recorded_in_order(
    scripted: Scripted, lab: Lab, content: bytes, end: str
) -> None:
    file = lab.directory / "run.profile"
    with lab.mounted("--record", str(file), scripted.url("image.raw")) as mounted:
        for offset, length in READS:
            assert read(mounted.image, offset, length) == content[offset : offset + length]
        if end == "sigterm":
            mounted.signal(signal.SIGTERM)
            mounted.wait_until_ended()
        else:
            mounted.umount()
    found = parse(file.read_text())
    assert found.url == scripted.url("image.raw")
    assert found.identity == Identity(len(content), '"v1"', HTTP_DATE)
    assert bytes_in([use.span for use in found.uses]) == bytes_in(spans(READS))
    starts = [use.span.start for use in found.uses]
    assert [s for s in starts if s in (700 * KIB, 100 * KIB, 3 * MIB)] == [
        700 * KIB,
        100 * KIB,
        3 * MIB,
    ]
    assert [use.time for use in found.uses] == sorted(use.time for use in found.uses)
    assert found.uses[0].time == 0


def test_what_comes_from_the_cache_is_recorded_too(
    scripted: Scripted, lab: Lab, content: bytes
) -> None:
    url = scripted.url("image.raw")
    with lab.mounted(url) as mounted:
        mounted.image.read_bytes()
    file = lab.directory / "run.profile"
    with lab.mounted("--record", str(file), url) as mounted:
        read(mounted.image, *READS[0])
    assert bytes_in([use.span for use in parse(file.read_text()).uses]) == bytes_in(
        spans(READS[:1])
    )


def test_a_login_does_not_get_into_a_profile(scripted: Scripted, lab: Lab) -> None:
    file = lab.directory / "run.profile"
    url = scripted.url("image.raw").replace("http://", "http://joe:sesame@")
    with lab.mounted("--record", str(file), url) as mounted:
        read(mounted.image, 0, 10)
    assert "sesame" not in file.read_text()


def test_browsing_is_recorded(server: Nginx, lab: Lab, catalog: Catalog) -> None:
    file = lab.directory / "run.profile"
    words = ["--browse", "--record", str(file), server.url("live.iso")]
    with lab.mounted(*words) as mounted:
        (mounted.path / "live/vmlinuz").read_bytes()
    found = parse(file.read_text())
    assert found.identity.size == (server.root / "live.iso").stat().st_size
    offset, length = catalog.extent("live/vmlinuz")
    recorded = bytes_in([use.span for use in found.uses])
    assert bytes_in([Span(offset, offset + length)]) <= recorded


# --profile


def test_a_second_run_fetches_what_the_first_one_read(scripted: Scripted, lab: Lab) -> None:
    """Without a single read, and nothing else."""
    file, url = lab.directory / "run.profile", scripted.url("image.raw")
    with lab.mounted("--record", str(file), "--readahead", "0", url) as mounted:
        for offset, length in READS:
            read(mounted.image, offset, length)
    read_spans = [use.span for use in parse(file.read_text()).uses]
    assert present(lab.cache) == blocks_of(FIRST, *read_spans)
    wanted = blocks_of(FIRST, *read_spans, size=TOLD_BLOCK)
    second = lab.directory / "second"
    with lab.mounted("--profile", str(file), url, cache=second) as mounted:
        wait_until_present(second, wanted)
        assert statistics(mounted)["wanted"] == 0
        eventually(lambda: not statistics(mounted)["under_way"], "nothing more comes")
    assert present(second) == wanted


def profile_of(content: bytes, *reads: Span, etag: str = '"v1"') -> str:
    """A profile in which each range was read ten seconds after the one before."""
    uses = tuple(Use(10.0 * number, span) for number, span in enumerate(reads))
    return as_text(Profile("http://h/image.raw", Identity(len(content), etag, HTTP_DATE), uses))


def test_a_profile_is_fetched_in_its_order(scripted: Scripted, lab: Lab, content: bytes) -> None:
    wanted = [Span(number * 5 * BLOCK, number * 5 * BLOCK + 10) for number in range(20)]
    random.Random(1).shuffle(wanted)
    file = lab.directory / "run.profile"
    file.write_text(profile_of(content, *wanted))
    words = ["--connections", "1", "--profile", str(file), scripted.url("image.raw")]
    with lab.mounted(*words):
        wait_until_present(lab.cache, blocks_of(*wanted, size=TOLD_BLOCK))
    asked = [request.span[0] for request in scripted.requests[1:] if request.span]
    assert asked == [span.start for span in wanted if span.start]


@pytest.mark.parametrize("anyway", [False, True])
def test_a_profile_of_another_version_is_used_only_on_request(
    scripted: Scripted, lab: Lab, content: bytes, anyway: bool
) -> None:
    wanted = Span(MIB, MIB + 10)
    file = lab.directory / "run.profile"
    file.write_text(profile_of(content, wanted, etag='"v0"'))
    words = ["--profile", str(file), *(["--profile-any"] if anyway else [])]
    with lab.mounted(*words, scripted.url("image.raw"), troubled=not anyway) as mounted:
        if anyway:
            wait_until_present(lab.cache, blocks_of(wanted, size=TOLD_BLOCK))
        else:
            said = wait_for_complaint(mounted)
            assert "the profile is not used: it is of another version of the image" in said
            assert "--profile-any" in said
            assert statistics(mounted)["requests"] == 1, "the opening"
        assert read(mounted.image, 0, 100) == content[:100]
        assert len(complaints(mounted)) == (0 if anyway else 1)


def test_a_profile_of_a_longer_image_does_no_harm(
    scripted: Scripted, lab: Lab, content: bytes
) -> None:
    inside, across = Span(MIB, MIB + 10), Span(len(content) - 10, len(content) + MIB)
    outside = Span(len(content) + 2 * MIB, len(content) + 3 * MIB)
    file = lab.directory / "run.profile"
    file.write_text(profile_of(content + bytes(4 * MIB), outside, across, inside))
    words = ["--profile", str(file), "--profile-any", scripted.url("image.raw")]
    with lab.mounted(*words) as mounted:
        last = (len(content) - 1) // TOLD_BLOCK
        wait_until_present(lab.cache, blocks_of(inside, size=TOLD_BLOCK) | {last})
        assert mounted.image.read_bytes() == content


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("what is this\n", "it does not begin with 'lazyfs profile 1'"),
        ("", "it does not begin with 'lazyfs profile 1'"),
        ("lazyfs profile 1\nsize 5\n\n0.0 x y\n", "line 1 of its ranges is not"),
        (None, "cannot be read: No such file or directory"),
    ],
    ids=["garbage", "empty", "a bad line", "absent"],
)
def test_what_is_no_profile_is_said_once(
    scripted: Scripted, lab: Lab, content: bytes, text: str | None, why: str
) -> None:
    file = lab.directory / "run.profile"
    if text is not None:
        file.write_text(text)
    words = ["--profile", str(file), scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        said = wait_for_complaint(mounted)
        assert "the profile is not used" in said
        assert why in said
        assert mounted.image.read_bytes() == content
        assert len(complaints(mounted)) == 1


def test_bytes_that_are_no_text_are_no_profile(scripted: Scripted, lab: Lab) -> None:
    file = lab.directory / "run.profile"
    file.write_bytes(bytes(range(256)))
    words = ["--profile", str(file), scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        assert "is no text" in wait_for_complaint(mounted)


# --profile auto


def beside(scripted: Scripted, content: bytes) -> None:
    """Put a file beside the image."""
    served = type(scripted.files["/image.raw"])(content, etag='"p"')
    scripted.files["/image.raw.lazyprofile"] = served


def test_the_profile_beside_an_image_is_used(scripted: Scripted, lab: Lab, content: bytes) -> None:
    wanted = [Span(MIB, MIB + 10), Span(3 * MIB, 3 * MIB + 5 * BLOCK)]
    beside(scripted, profile_of(content, *wanted).encode())
    with lab.mounted("--profile", "auto", scripted.url("image.raw")) as mounted:
        wait_until_present(lab.cache, blocks_of(*wanted, size=TOLD_BLOCK))
        assert statistics(mounted)["wanted"] == 0
    assert present(lab.cache) == blocks_of(FIRST, *wanted, size=TOLD_BLOCK)


def test_where_there_is_none_nothing_is_said(scripted: Scripted, lab: Lab, content: bytes) -> None:
    with lab.mounted("--profile", "auto", scripted.url("image.raw")) as mounted:
        eventually(
            lambda: any(r.path.endswith(".lazyprofile") for r in scripted.requests), "it is asked"
        )
        assert mounted.image.read_bytes() == content
    assert present(lab.cache)


@pytest.mark.parametrize(
    ("content_beside", "why"),
    [
        (b"<html>not found</html>", "it does not begin with"),
        (bytes(range(256)) * 10, "it does not begin with"),
        (b"", ""),
    ],
    ids=["a page", "bytes", "empty"],
)
def test_garbage_beside_an_image_is_said_once(
    scripted: Scripted, lab: Lab, content: bytes, content_beside: bytes, why: str
) -> None:
    beside(scripted, content_beside)
    words = ["--profile", "auto", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        said = wait_for_complaint(mounted)
        assert "the profile is not used" in said
        assert why in said
        assert mounted.image.read_bytes() == content
        assert len(complaints(mounted)) == 1


def test_a_profile_without_end_costs_neither_time_nor_memory(
    scripted: Scripted, lab: Lab, content: bytes
) -> None:
    head = f'lazyfs profile 1\nsize {len(content)}\netag "v1"\n\n'.encode()
    beside(scripted, head + b"0.0 0 1\n" * (8 << 20))
    words = ["--profile", "auto", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        wait_for_complaint(mounted)
        assert read(mounted.image, 0, MIB, limit=5) == content[:MIB]
        assert mounted.peak_memory() < 250 * MIB


def test_a_server_that_refuses_the_profile_is_said_once(
    scripted: Scripted, lab: Lab, content: bytes
) -> None:
    def refuse(request: Request) -> Answer | None:
        return Answer(403) if request.path.endswith(".lazyprofile") else None

    scripted.behaviour = refuse
    words = ["--profile", "auto", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        assert "the profile is not used" in wait_for_complaint(mounted)
        assert mounted.image.read_bytes() == content


def test_auto_starts_without_the_server(scripted: Scripted, lab: Lab, content: bytes) -> None:
    beside(scripted, profile_of(content, Span(0, 10)).encode())
    with lab.mounted("--profile", "auto", scripted.url("image.raw")) as mounted:
        mounted.image.read_bytes()
    scripted.stop()
    words = ["--profile", "auto", scripted.url("image.raw")]
    with lab.mounted(*words, troubled=True) as mounted:
        assert mounted.image.read_bytes() == content


# What can be wrong on the command line, and the tool for profiles


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--no-cache", "--preload", "a"], "need a cache"),
        (["--no-cache", "--profile", "a"], "need a cache"),
        (["--profile-any"], "--profile-any is for --profile"),
    ],
)
def test_what_cannot_be_is_said_at_once(
    scripted: Scripted, lab: Lab, words: list[str], why: str
) -> None:
    done = lab.start(*words, scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 2
    assert why in done.stderr
    assert not scripted.requests


def test_profiles_of_several_runs_become_one(lab: Lab, content: bytes) -> None:
    one, other = lab.directory / "one", lab.directory / "other"
    one.write_text(profile_of(content, Span(0, 10), Span(MIB, 2 * MIB)))
    other.write_text(profile_of(content, Span(5, 20)))
    merged = run([*LAZYFS, "profile", "merge", one, other])
    assert (merged.returncode, merged.stderr) == (0, "")
    found = parse(merged.stdout)
    assert found.length == 20 + MIB
    (lab.directory / "both").write_text(merged.stdout)
    shown = run_well([*LAZYFS, "profile", "show", lab.directory / "both"])
    assert "http://h/image.raw" in shown
    assert "1.0 MiB" in shown
    shutil.copyfile(__file__, lab.directory / "bad")
    bad = run([*LAZYFS, "profile", "show", lab.directory / "bad"])
    assert (bad.returncode, bad.stderr.count("\n")) == (1, 1)


# The tables of a filesystem


def test_tables_of_a_squashfs_come_with_its_first_use(lab: Lab, images: Images) -> None:
    """They are fetched once the image is read, and not before."""
    image = images.squashfs()
    tables = squashfs.tables(image.read_bytes()[: squashfs.SUPERBLOCK], image.stat().st_size)
    with Nginx(images.root) as server, lab.mounted(server.url(image.name)) as mounted:
        assert mounted.cached() == FIRST_BYTES
        read(mounted.image, 0, 10)
        eventually(lambda: mounted.cached() >= FIRST_BYTES + tables.length, "they are here", 20)
        before = server.body_bytes()
        read(mounted.image, tables.start, 50_000)
        assert server.body_bytes() == before


def test_tables_are_left_out_where_nothing_is_to_be_prefetched(lab: Lab, images: Images) -> None:
    image = images.squashfs()
    with (
        Nginx(images.root) as server,
        lab.mounted("--prefetch", "none", server.url(image.name)) as mounted,
    ):
        read(mounted.image, image.stat().st_size // 2, 10)
        read(mounted.image, image.stat().st_size // 2 + 100_000, 10)
        assert mounted.cached() <= FIRST_BYTES + 4 * 32768

"""What reading a tree costs: reads, bytes and time."""

import io
import time
from pathlib import Path

import pytest

from lazyfs.core.ranges import Span
from lazyfs.formats.iso import reader
from lazyfs.formats.iso.catalog import ROCK_RIDGE, Catalog
from lazyfs.formats.iso.reader import BATCH, MAX_SPAN, Reader, batches, chunks
from lazyfs.formats.iso.volume import SECTOR

from .flavours import IsoImages
from .handmade import DIRECTORY, ROOT, image, record

CACHE_BLOCK = 32 << 10


class Counted(io.FileIO):
    """A file that remembers what is read of it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.reads: list[Span] = []

    def read(self, size: int | None = -1, /) -> bytes:
        start = self.tell()
        data = super().read(size) or b""
        self.reads.append(Span(start, start + len(data)))
        return data

    def blocks(self) -> set[int]:
        """The blocks of the cache that were touched."""
        return {
            block
            for start, stop in self.reads
            for block in range(start // CACHE_BLOCK, -(-stop // CACHE_BLOCK))
        }


def test_ten_thousand_files_cost_few_reads_and_bytes(iso_images: IsoImages) -> None:
    """At most 24 reads, and 8 MB; on a link of 20 ms and 200 Mbit/s that is under a second."""
    with Counted(iso_images.many_files()) as file:
        started = time.process_time()
        catalog = Catalog(file)
        took = time.process_time() - started
        assert catalog.namespace == ROCK_RIDGE
        assert len(list(catalog.files())) == 10_000
        assert len(file.reads) <= 24
        assert len(file.blocks()) * CACHE_BLOCK <= 8_000_000
        assert took < 1.5


def test_neighbours_are_read_together_and_held() -> None:
    data = bytes(range(256)) * 4096
    reads = []

    class File(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            reads.append(size)
            return super().read(size)

    gathered = Reader(File(data))
    spans = [Span(500_000, 500_010), Span(100, 300), Span(300, 400), Span(2000, 2001)]
    gathered.gather(spans)
    assert reads == [1901, 10]
    assert [gathered.bytes_at(span) for span in spans] == [data[s.start : s.stop] for s in spans]
    gathered.gather([])
    assert gathered.bytes_at(spans[0]) == b""


def test_directories_are_read_in_disk_order_whatever_their_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where they are too many to be read at once."""
    monkeypatch.setattr(reader, "BATCH", 2 * SECTOR)
    blocks = [200, 600, 20, 300, 100, 500, 400]
    folders = {block: [record(b"A.;1", 30, 10)] for block in blocks}
    root = [record(b"D%d" % b, b, SECTOR, flags=DIRECTORY) for b in blocks]
    path = tmp_path / "image.iso"
    path.write_bytes(image({ROOT: root, **folders}, count=700))
    with Counted(path) as file:
        assert len(list(Catalog(file).files())) == len(blocks)
        starts = [read.start for read in file.reads][-len(set(blocks)) :]
        assert starts == sorted(starts)


def test_gaps_are_not_read_along_where_they_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytes(1 << 20)
    spans = [Span(start, start + 10) for start in range(0, 1 << 20, 100 << 10)]
    for batch, count in ((1 << 20, 1), (1 << 10, len(spans))):
        monkeypatch.setattr(reader, "BATCH", batch)
        reads = []

        class File(io.BytesIO):
            def read(self, size: int | None = -1, /) -> bytes:
                reads.append(size)  # noqa: B023
                return super().read(size)

        Reader(File(data)).gather(spans)
        assert len(reads) == count


def test_what_lies_behind_the_end_is_shorter() -> None:
    gathered = Reader(io.BytesIO(bytes(100)))
    gathered.gather([Span(90, 200), Span(500, 600), Span(-5, 0)])
    assert gathered.bytes_at(Span(90, 200)) == bytes(10)
    assert gathered.bytes_at(Span(500, 600)) == b""


def test_a_file_may_give_less_than_it_was_asked_for() -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(min(size or 0, 7))

    assert Reader(Slow(b"0123456789" * 5)).head(30) == b"0123456789" * 3


@pytest.mark.parametrize(
    "lengths", [[], [1], [BATCH], [BATCH, 1], [3 * BATCH, 1, 1], [1000] * 9000]
)
def test_batches_hold_all_in_order_and_not_too_much(lengths: list[int]) -> None:
    lots = list(batches(lengths, lambda length: length))
    assert [length for lot in lots for length in lot] == lengths
    assert all(sum(lot) <= BATCH or len(lot) == 1 for lot in lots)
    assert all(lots)


def test_chunks_hold_all_in_order() -> None:
    lots = list(chunks(range(20_000)))
    assert [number for lot in lots for number in lot] == list(range(20_000))
    assert len(lots) == 3


def test_a_directory_of_a_million_entries_fits_into_what_may_be_read() -> None:
    assert MAX_SPAN >= 1_000_000 * 60

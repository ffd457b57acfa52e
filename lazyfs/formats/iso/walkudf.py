"""Reading the tree of a UDF volume."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span
from lazyfs.formats.iso import udf
from lazyfs.formats.iso.reader import Reader, batches, chunks
from lazyfs.formats.iso.udf import BLOCK, Address, FileEntry, Identifier, UdfVolume
from lazyfs.formats.tree import HOLE, Extent, Kind, Node
from lazyfs.formats.treebuilder import Builder, coalesced, fault_of_directory

_MAX_SEQUENCE = 64 << 10  # bytes of volume descriptors
_MAX_TARGET = 16 << 10  # bytes that describe a symbolic link's target


class _Directory(NamedTuple):
    """A directory whose identifiers are to be read."""

    node: Node
    depth: int
    extents: tuple[Extent, ...]


def find_volume(reader: Reader) -> UdfVolume:
    """The UDF volume of the image. Raises ImageError if it has no readable one."""
    last = reader.size // BLOCK - 1
    for place in (256, last, last - 256):
        for sequence in udf.anchored(_block(reader, place * BLOCK)):
            length = min(sequence.length, _MAX_SEQUENCE)
            found = udf.volume(_read(reader, Span(sequence.offset, sequence.offset + length)))
            if found is not None:
                return found
    raise ImageError("the image's UDF volume is damaged")


class Walk:
    """One walk over one volume."""

    def __init__(self, reader: Reader, builder: Builder, volume: UdfVolume) -> None:
        self._reader = reader
        self._builder = builder
        self._volume = volume
        self._seen: set[Address] = set()
        self._linked: dict[Address, FileEntry] = {}  # entries with several names

    def run(self) -> None:
        """Add the whole tree to the builder. Raises ImageError or OSError."""
        level = [self._root()]
        while level:
            following: list[_Directory] = []
            level.sort(key=lambda directory: directory.extents)
            for lot in batches(level, lambda d: sum(e.length for e in d.extents)):
                for listed in chunks(self._listed(lot)):
                    following += self._plant(listed)
            level = following

    def _root(self) -> _Directory:
        address = self._root_address()
        entry = self._file_entries([address]).get(address) if address else None
        if address is None or entry is None or entry.kind is not Kind.DIRECTORY:
            raise ImageError("the image's UDF volume has no root directory")
        self._seen.add(address)
        node = self._builder.restate(None, self._builder.root, _node("", entry))
        return _Directory(node, 0, entry.extents)

    def _root_address(self) -> Address | None:
        file_set = self._volume.file_set
        if not self._volume.holds(file_set):
            return None
        return udf.root_entry(_block(self._reader, self._volume.offset(file_set)))

    def _listed(self, lot: list[_Directory]) -> Iterator[tuple[_Directory, Identifier]]:
        """All identifiers in these directories, each with its directory."""
        self._reader.gather(span for directory in lot for span in _spans(directory.extents))
        listings = [(directory, self._content(directory.extents)) for directory in lot]
        for directory, listing in listings:
            for identifier in udf.identifiers(listing):
                if identifier is not None:
                    yield directory, identifier
                else:
                    name = directory.node.name or "/"
                    self._builder.note(f"{name} has an entry that makes no sense")

    def _plant(self, listed: list[tuple[_Directory, Identifier]]) -> list[_Directory]:
        """Add entries to the tree; returns the directories among them."""
        entries = self._file_entries(identifier.entry for _, identifier in listed)
        targets = self._targets(entries)
        found = []
        for directory, (name, address) in listed:
            entry = entries.get(address)
            if entry is None:
                self._builder.note(f"left out {name!r}: nothing is recorded of it")
                continue
            node = _node(name, entry, targets.get(address, ""))
            is_known = address in self._seen
            if node.kind is Kind.DIRECTORY:
                end = max((span.stop for span in _spans(entry.extents)), default=0)
                fault = entry.fault or fault_of_directory(is_known, end, self._reader.size)
                node = node._replace(problem=fault)
            added = self._builder.add(directory.node, node, directory.depth + 1)
            if added is not None and added.kind is Kind.DIRECTORY and not is_known:
                self._seen.add(address)
                found.append(_Directory(added, directory.depth + 1, entry.extents))
        return found

    def _file_entries(self, addresses: Iterable[Address]) -> dict[Address, FileEntry]:
        """The existing file entries at these addresses."""
        wanted = {address for address in addresses if self._volume.holds(address)}
        found = {a: self._linked[a] for a in wanted if a in self._linked}
        places = {self._volume.offset(a): a for a in wanted if a not in found}
        spans = [Span(place, place + BLOCK) for place in sorted(places)]
        for lot in batches(spans, lambda span: span.length):
            self._reader.gather(lot)
            for span in lot:
                address = places[span.start]
                block = self._reader.bytes_at(span)
                entry = udf.file_entry(block, span.start, address.partition, self._volume)
                if entry is not None:
                    found[address] = entry
                    if entry.nlink > 1:
                        self._linked[address] = entry
        return found

    def _targets(self, entries: dict[Address, FileEntry]) -> dict[Address, str]:
        """The targets of the symbolic links among these."""
        links = [
            (address, entry)
            for address, entry in entries.items()
            if entry.kind is Kind.SYMLINK and entry.size <= _MAX_TARGET
        ]
        targets: dict[Address, str] = {}
        for lot in batches(links, lambda link: link[1].size):
            self._reader.gather(span for _, entry in lot for span in _spans(entry.extents))
            targets |= {a: udf.target(self._content(entry.extents)) for a, entry in lot}
        return targets

    def _content(self, extents: tuple[Extent, ...]) -> bytes:
        """The gathered bytes of these extents, joined."""
        return b"".join(self._reader.bytes_at(span) for span in _spans(extents))


def _node(name: str, entry: FileEntry, target: str = "") -> Node:
    node = Node(
        name,
        entry.kind,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        nlink=entry.nlink,
        mtime=entry.mtime,
    )
    if entry.kind is Kind.SYMLINK:
        size = len(target.encode("utf-8", "surrogateescape"))
        return node._replace(target=target, size=size)
    if entry.kind is not Kind.FILE:
        return node
    extents = coalesced(list(entry.extents))
    return node._replace(size=entry.size, extents=extents, problem=entry.fault)


def _spans(extents: Iterable[Extent]) -> list[Span]:
    return [Span(e.offset, e.offset + e.length) for e in extents if e.offset != HOLE]


def _block(reader: Reader, offset: int) -> bytes:
    return _read(reader, Span(offset, offset + BLOCK))


def _read(reader: Reader, span: Span) -> bytes:
    reader.gather([span])
    return reader.bytes_at(span)

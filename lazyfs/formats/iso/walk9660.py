"""Reading the tree of an ISO 9660 volume, with Rock Ridge, Joliet or plain names."""

from collections.abc import Collection, Iterator
from typing import NamedTuple

from lazyfs.core.errors import ImageError
from lazyfs.core.ranges import Span
from lazyfs.formats.iso import records, rockridge
from lazyfs.formats.iso.reader import Reader, batches, chunks
from lazyfs.formats.iso.records import Record
from lazyfs.formats.iso.rockridge import Area, Entries
from lazyfs.formats.iso.volume import Descriptor
from lazyfs.formats.tree import Extent, Kind, Node, names_in
from lazyfs.formats.treebuilder import Builder, coalesced, fault_of_directory

_MAX_PIECES = 10_000  # of a file; they are usually 4 GiB each
_OWN, _PARENT = b"\0", b"\1"  # the identifiers of a directory's first two records


class _Directory(NamedTuple):
    """A directory whose records are to be read."""

    parent: Node | None  # None for the root
    node: Node
    depth: int
    where: Span
    is_moved: bool = False  # whether its attributes are only in its own record


class _Entry(NamedTuple):
    """A name in a directory, with all records of its file."""

    directory: _Directory
    pieces: list[Record]
    entries: Entries | None  # of Rock Ridge
    is_complete: bool = True


class Walk:
    """One walk over one volume."""

    def __init__(
        self,
        reader: Reader,
        builder: Builder,
        volume: Descriptor,
        *,
        joliet: bool,
        only: Collection[str] | None = None,
    ) -> None:
        """``only``: paths; directories that lead to none of them are not read."""
        self._reader = reader
        self._builder = builder
        self._block = volume.block_size
        self._joliet = joliet
        self._only = None if only is None else _names_by_depth(only)
        self._skip: int | None = None  # bytes before Rock Ridge's entries; None: no Rock Ridge
        root = records.parse(volume.root)
        self._root = _Directory(None, builder.root, 0, self._span(root) if root else Span(0, 0))
        self._seen = {self._root.where.start}  # the offsets of the directories in the tree

    def has_rock_ridge(self) -> bool:
        """Whether the volume has Rock Ridge, which is then used from now on."""
        self._reader.gather([Span(self._root.where.start, self._root.where.start + self._block)])
        own = self._own_record(self._root)
        skip = rockridge.bytes_to_skip(own.system_use) if own else None
        if own is None or skip is None:
            return False
        entries = Entries()
        entries.take(own.system_use[_skip_of_root(own, skip) :])
        if entries.is_there:
            self._skip = skip
        return entries.is_there

    def run(self) -> None:
        """Add the whole tree to the builder. Raises ImageError or OSError."""
        if self._root.where.stop > self._reader.size or not self._root.where.length:
            raise ImageError("the image's root directory is not in it: it is cut short or damaged")
        level = [self._root]
        while level:
            following: list[_Directory] = []
            for lot in batches(self._measured(level), lambda directory: directory.where.length):
                for found in chunks(self._entries(lot)):
                    self._continue([e.entries for e in found if e.entries])
                    for entry in found:
                        following += self._plant(entry)
            level = following

    def _measured(self, level: list[_Directory]) -> list[_Directory]:
        """These directories in disk order; moved ones with their true lengths.

        Only a directory's own record, in its first block, has that length.
        """
        self._reader.gather(directory.where for directory in level if directory.is_moved)
        found = []
        for directory in level:
            own = self._own_record(directory) if directory.is_moved else None
            if own is not None:
                stop = directory.where.start + own.length
                directory = directory._replace(where=Span(directory.where.start, stop))
            found.append(directory)
        return sorted(found, key=lambda directory: directory.where)

    def _entries(self, lot: list[_Directory]) -> Iterator[_Entry]:
        """All entries of these directories."""
        self._reader.gather(directory.where for directory in lot)
        listings = [(directory, self._reader.bytes_at(directory.where)) for directory in lot]
        for directory, listing in listings:
            yield from self._listed(directory, listing)

    def _listed(self, directory: _Directory, listing: bytes) -> Iterator[_Entry]:
        """The entries of a directory, and its own record if that has more than its parent's."""
        pieces: list[Record] = []
        for record in records.records(listing, self._block):
            if record is None:
                self._builder.note(f"{directory.node.name or '/'} has a record that makes no sense")
            elif record.identifier in (_OWN, _PARENT):
                if record.identifier == _OWN and (directory.is_moved or directory.parent is None):
                    yield self._entry(directory, [record])
            elif not record.is_associated:
                if pieces and record.identifier != pieces[0].identifier:
                    yield self._entry(directory, pieces, is_complete=False)
                    pieces = []
                pieces.append(record)
                if not record.is_continued or len(pieces) == _MAX_PIECES:
                    yield self._entry(directory, pieces, is_complete=not record.is_continued)
                    pieces = []
        if pieces:
            yield self._entry(directory, pieces, is_complete=False)

    def _entry(
        self, directory: _Directory, pieces: list[Record], *, is_complete: bool = True
    ) -> _Entry:
        entries = None
        if self._skip is not None:
            of_root = directory.parent is None and pieces[0].identifier == _OWN
            skip = _skip_of_root(pieces[0], self._skip) if of_root else self._skip
            entries = Entries()
            entries.take(pieces[0].system_use[skip:])
        return _Entry(directory, pieces, entries, is_complete)

    def _continue(self, found: list[Entries]) -> None:
        """Read the continuation areas of records, and the continuations of these."""
        for _ in range(rockridge.MAX_AREAS):
            waiting = [(e, self._span_of(e.continued)) for e in found if e.continued]
            if not waiting:
                return
            self._reader.gather(span for _, span in waiting)
            for entries, span in waiting:
                entries.take(self._reader.bytes_at(span))
        if any(entries.continued for entries in found):
            self._builder.note("some Rock Ridge entries go on without an end")

    def _plant(self, entry: _Entry) -> list[_Directory]:
        """Add an entry to the tree; returns it if it is a directory to be read."""
        directory, first = entry.directory, entry.pieces[0]
        if first.identifier == _OWN:
            self._restate(entry)
            return []
        rock_ridge = entry.entries
        if rock_ridge and rock_ridge.is_moved:
            return []
        where, is_moved = self._span(first), False
        if rock_ridge and rock_ridge.moved_to is not None:
            # Its length is in its first block.
            start, is_moved = rock_ridge.moved_to * self._block, True
            where = Span(start, start + self._block)
        node = self._node(entry, is_directory=first.is_directory or is_moved)
        is_known = where.start in self._seen
        if node.kind is Kind.DIRECTORY and where.length:
            node = node._replace(
                problem=fault_of_directory(is_known, where.stop, self._reader.size)
            )
        added = self._builder.add(directory.node, node, directory.depth + 1)
        if added is None or added.kind is not Kind.DIRECTORY or is_known or not where.length:
            return []
        self._seen.add(where.start)
        if self._only is not None and (directory.depth + 1, added.name) not in self._only:
            return []
        return [_Directory(directory.node, added, directory.depth + 1, where, is_moved)]

    def _restate(self, entry: _Entry) -> None:
        """Give a directory the attributes from its own record."""
        directory = entry.directory
        node = self._node(entry, is_directory=True)
        self._builder.restate(directory.parent, directory.node, node)

    def _node(self, entry: _Entry, *, is_directory: bool) -> Node:
        first = entry.pieces[0]
        plain = Node(
            self._name(first.identifier),
            Kind.DIRECTORY if is_directory else Kind.FILE,
            mode=0o555 if is_directory else 0o444,
            mtime=records.seconds(first.time),
        )
        if not is_directory:
            extents = [Extent(piece.block * self._block, piece.length) for piece in entry.pieces]
            size = sum(piece.length for piece in entry.pieces)
            plain = plain._replace(size=size, extents=coalesced(extents))
            if any(piece.interleaved for piece in entry.pieces):
                plain = plain._replace(problem="its content is interleaved with other data")
            elif not entry.is_complete:
                plain = plain._replace(problem="a part of it is missing in its directory")
        return entry.entries.node(plain) if entry.entries else plain

    def _name(self, identifier: bytes) -> str:
        if self._joliet:
            return identifier.decode("utf-16-be", "replace").partition(";")[0]
        plain = identifier.partition(b";")[0].rstrip(b".").lower()  # of bytes: in ASCII only
        return plain.decode("utf-8", "surrogateescape")

    def _own_record(self, directory: _Directory) -> Record | None:
        found = records.records(self._reader.bytes_at(directory.where), self._block)
        return next((r for r in found if r and r.identifier == _OWN), None)

    def _span(self, record: Record) -> Span:
        start = record.block * self._block
        return Span(start, start + record.length)

    def _span_of(self, area: Area) -> Span:
        start = area.block * self._block + area.offset
        return Span(start, start + min(area.length, rockridge.MAX_AREA))


def _names_by_depth(paths: Collection[str]) -> set[tuple[int, str]]:
    """The depths and names of the directories that lead to these paths (and maybe others)."""
    return {place for path in paths for place in enumerate(names_in(path), start=1)}


def _skip_of_root(own: Record, skip: int) -> int:
    """In the root's own record, SUSP's entries begin at 0 if "SP" is there, else at ``skip``."""
    return 0 if own.system_use.startswith(b"SP") else skip

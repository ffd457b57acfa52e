"""The registry of sources, by URL scheme.

A new source is a file in this package and a row here; its schemes and their ports are listed in
``core/address.py``. Each is imported when the first image needs it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from lazyfs.core import address
from lazyfs.core.device import Priority, Source
from lazyfs.core.errors import NotFound
from lazyfs.core.options import ServerOptions

if TYPE_CHECKING:
    from lazyfs.sources.httpclient import HttpClient


@dataclass(frozen=True)
class Wanted:
    """The parameters of a source.

    ``patience``: seconds that a reader waits; 0: no limit.
    ``vouched``: whether the user vouches that the image never changes.
    ``fresh``: whether nothing of the image is cached, so that opening it should fetch its first
    bytes too.
    """

    url: str
    server: ServerOptions
    patience: float
    vouched: bool = False
    fresh: bool = False


class Clients:
    """The clients that the sources of a process share."""

    def __init__(self) -> None:
        self._http: dict[tuple[ServerOptions, float], HttpClient] = {}

    async def open(self, wanted: Wanted) -> Source:
        """Create the source of an image, without contacting the server. Raises UsageError."""
        kind = _KINDS[address.scheme(wanted.url)]
        if kind is _http:
            await self._client(wanted)
        return kind(wanted, self)

    async def sidecar(self, wanted: Wanted, ending: str, most: int) -> bytes | None:
        """The first ``most`` bytes of a sidecar: the file at the image's URL plus ``ending``.

        None if there is none, or if servers of this kind have no files. Raises a SourceError.
        """
        if _KINDS[address.scheme(wanted.url)] is not _http:
            return None
        url = address.with_ending(wanted.url, ending)
        source = await self.open(Wanted(url, wanted.server, wanted.patience, fresh=True))
        try:
            size = min((await source.open()).size, most)
        except NotFound:
            return None
        content = bytearray(source.opening)
        if len(content) < size:
            content += await _read(source, len(content), size - len(content))
        return bytes(content[:size])

    def http(self, wanted: Wanted) -> "HttpClient":
        """The client for a source that is being opened."""
        return self._http[wanted.server, wanted.patience]

    async def reload_credentials(self) -> None:
        """Reload the credentials of all servers. Raises UsageError."""
        for client in self._http.values():
            await client.renew_credentials()

    async def aclose(self) -> None:
        for client in self._http.values():
            await client.aclose()

    async def _client(self, wanted: Wanted) -> None:
        from lazyfs.sources.httpclient import HttpClient

        key = wanted.server, wanted.patience
        if key not in self._http:  # in a thread: reads credentials from files or runs a program
            client = await trio.to_thread.run_sync(HttpClient, *key)
            self._http.setdefault(key, client)


async def _read(source: Source, offset: int, length: int) -> bytes:
    slot = await source.slot(Priority.PRELOAD)
    try:
        (stream,) = slot.streams([(offset, length)])
        async with stream as pieces:
            return b"".join([bytes(piece) async for piece in pieces])
    finally:
        slot.release()


def _http(wanted: Wanted, clients: Clients) -> Source:
    from lazyfs.sources.http import FIRST_BYTES, HttpSource

    return HttpSource(clients.http(wanted), wanted.url, first=FIRST_BYTES if wanted.fresh else 1)


def _nbd(wanted: Wanted, _clients: Clients) -> Source:
    from lazyfs.sources.nbd import NbdSource

    return NbdSource(
        wanted.url,
        address.shown(wanted.url),
        wanted.server,
        patience=wanted.patience,
        vouched=wanted.vouched,
    )


_KINDS: dict[str, Callable[[Wanted, Clients], Source]] = {
    **dict.fromkeys(address.HTTP, _http),
    **dict.fromkeys(address.NBD, _nbd),
}

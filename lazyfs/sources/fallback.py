"""The fallback path of HTTP, through httpx. Nothing else imports it.

It knows proxies and every shape of an answer. httpx is imported with this module, when the first
request needs it: most runs need none, and it is a tenth of what a start imports.

``httpx.AsyncHTTPTransport`` is used, not ``httpx.AsyncClient``: the client's additions (redirects,
cookies, decoding) are handled in ``http.py``. HTTP/1.1 only: HTTP/2 in Python is 3 to 6 times
slower.

No message repeats the text of a library or a server where it may contain a secret.
"""

import re
import ssl
from collections.abc import AsyncGenerator, Callable
from typing import Any, cast

import httpx
import trio

from lazyfs.core import address
from lazyfs.core.errors import BadAnswer, LazyfsError, Unreachable, UsageError
from lazyfs.sources import httprange
from lazyfs.sources.failures import reason, untrusted
from lazyfs.sources.http1 import Fields
from lazyfs.sources.slots import Host
from lazyfs.sources.stall import StallTimer

# Messages for failed requests. The first class that matches decides.
_FAILURES: tuple[tuple[type[httpx.TransportError], str], ...] = (
    (httpx.ConnectTimeout, "cannot connect to {host}: no answer"),
    (httpx.TimeoutException, "{host} fell silent"),
    (httpx.ConnectError, "cannot connect to {host}: {reason}"),
    (httpx.RemoteProtocolError, "{host} broke off"),
    (httpx.NetworkError, "the connection to {host} broke: {reason}"),
    (httpx.TransportError, "cannot talk to {host}"),
)

_ENDED = re.compile("closed connection|disconnected")  # httpcore: the connection broke
_STATUS = re.compile(r"\d{3}\b")


class Fallback:
    """The connections of the fallback path, of all hosts."""

    def __init__(self, tls: Callable[[], ssl.SSLContext], patience: float) -> None:
        """``patience``: seconds to wait for a connection, and for each step of a body."""
        self._tls = tls
        self._patience = patience
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}

    async def ask(
        self, url: str, fields: Fields, proxy: str | None, known: Host
    ) -> "FallbackAnswer":
        """Send a GET. ``known``: the host of ``url``. Raises a SourceError."""
        origin, patience = address.origin(url), self._patience
        host, heads = origin.host, known.heads
        wait, asked = heads.left, trio.current_time()
        timeouts = {"connect": patience, "read": wait, "write": patience, "pool": None}
        request = _request(url, origin, fields, timeouts)
        transport = self._transport(proxy)
        try:
            # Connecting and the head have a limit each; httpx limits neither as a whole.
            with trio.fail_after(patience + wait):
                response = await transport.handle_async_request(request)
        except trio.TooSlowError as error:
            heads.ran_out(wait)
            raise Unreachable(f"{host} never comes to its answer") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _translated(
                error, f"the proxy {address.shown(proxy)}" if proxy else host
            ) from error
        except httpx.TransportError as error:
            if isinstance(error, httpx.ReadTimeout):
                heads.ran_out(wait)
            raise _translated(error, host) from error
        heads.came(trio.current_time() - asked)
        return FallbackAnswer(response, host, patience)

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()

    def _transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        """The connection pool for a proxy, or for direct connections."""
        if proxy not in self._transports:
            self._transports[proxy] = self._new_transport(proxy)
        return self._transports[proxy]

    def _new_transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        # The slots limit the requests in flight; the pool must never be a second queue.
        limits = httpx.Limits(
            max_connections=None, max_keepalive_connections=None, keepalive_expiry=55.0
        )
        unusable = UsageError(
            f"the proxy {address.shown(proxy or '')} cannot be used", "give http://HOST:PORT"
        )
        try:
            if proxy is None or httpx.URL(proxy).host:
                return httpx.AsyncHTTPTransport(verify=self._tls(), proxy=proxy, limits=limits)
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise unusable from error
        raise unusable


class FallbackAnswer:
    """An answer received through httpx."""

    def __init__(self, response: httpx.Response, host: str, patience: float) -> None:
        self.status = response.status_code
        response.headers.encoding = "latin-1"
        self.headers: httprange.Headers = response.headers
        self._response = response
        self._host = host
        self._stall = StallTimer.of_body(patience)
        self._pieces = cast(httpx.AsyncByteStream, response.stream).__aiter__()

    def __aiter__(self) -> "FallbackAnswer":
        return self

    async def __anext__(self) -> bytes:
        asked = trio.current_time()
        try:
            with trio.fail_after(self._stall.left):
                piece = await self._pieces.__anext__()
        except trio.TooSlowError as error:
            raise Unreachable(self._stall.verdict(self._host)) from error
        except httpx.TransportError as error:
            raise _translated(error, self._host) from error
        self._stall.received(len(piece), trio.current_time() - asked)
        return piece

    async def abandon(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


def _request(
    url: str, origin: address.Origin, fields: Fields, timeouts: dict[str, float | None]
) -> httpx.Request:
    """A GET as httpx wants it: it knows no zones, and must not write the Host field by itself."""
    extensions: dict[str, Any] = {"timeout": timeouts}
    try:
        where = httpx.URL(url)
        if ":" in origin.host:
            where = where.copy_with(host=origin.host)
            extensions["sni_hostname"] = origin.certified
        if origin.host.isascii() and not any(name.lower() == "host" for name, _ in fields):
            fields = [("Host", origin.field), *fields]
        return httpx.Request("GET", where, headers=fields, extensions=extensions)
    except (httpx.InvalidURL, UnicodeError) as error:
        raise Unreachable(f"{origin.host} cannot be the name of a host") from error


def _translated(error: httpx.TransportError, host: str) -> LazyfsError:
    """The LazyfsError for a failed request."""
    if isinstance(error, httpx.RemoteProtocolError) and not _ENDED.search(str(error)):
        return BadAnswer("the server's answer is not valid HTTP", "check the URL, and its port")
    if isinstance(error, httpx.ProxyError):
        said = _STATUS.match(str(error))
        return Unreachable(
            f"the proxy on the way to {host} refuses{f': {said[0]}' if said else ''}",
            "check the proxy, and its login",
        )
    what = next(text for kind, text in _FAILURES if isinstance(error, kind))
    return untrusted(host, error) or Unreachable(what.format(host=host, reason=reason(error)))

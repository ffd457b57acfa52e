"""The HTTP client of a process: TLS, proxies, credentials, connections. Nothing else imports httpx.

The fallback path uses ``httpx.AsyncHTTPTransport``, not ``httpx.AsyncClient``: the client's
additions (redirects, cookies, decoding) are handled in ``http.py``. HTTP/1.1 only: HTTP/2 in Python
is 3 to 6 times slower.

No message repeats the text of a library or a server where it may contain a secret.
"""

import logging
import math
import os
import re
import ssl
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, Protocol, cast

import httpx
import trio

from lazyfs.core import address
from lazyfs.core.errors import BadAnswer, LazyfsError, Unreachable, UsageError
from lazyfs.core.options import ServerOptions
from lazyfs.sources import httprange
from lazyfs.sources.credentials import Credentials
from lazyfs.sources.failures import reason, untrusted
from lazyfs.sources.fastpath import FastOrigin
from lazyfs.sources.learned import AnswerLimit
from lazyfs.sources.proxies import proxy_of
from lazyfs.sources.slots import Host
from lazyfs.sources.stall import StallTimer
from lazyfs.sources.tls import client_context

log = logging.getLogger(__name__)

Fields = list[tuple[str, str]]  # header fields: names and values

_RENEW_EVERY = 10.0  # seconds between two reloads of refused credentials

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


class Answer(Protocol):
    """A status, header fields and a body, from either path."""

    status: int
    headers: httprange.Headers

    def __aiter__(self) -> AsyncIterator[bytes | bytearray]: ...
    async def aclose(self) -> None: ...

    async def abandon(self) -> None:
        """Close it; the answers to requests sent along with it will not be read."""
        ...


class HttpClient:
    """Connections, credentials and limits shared by all images of a process."""

    def __init__(self, options: ServerOptions, patience: float = 0.0) -> None:
        """``patience``: seconds that a reader waits; 0: no limit."""
        self._options = options
        self.patience = patience
        self._credentials = Credentials(options)
        self._renewing = trio.Lock()
        self._renewed = -math.inf  # when credentials were last reloaded
        self._tls: ssl.SSLContext | None = None
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}
        self._origins: dict[address.Origin, FastOrigin] = {}
        self._limits: dict[address.Origin, AnswerLimit] = {}
        self._hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """The host of this name, whose ``connections`` slots all its images share."""
        if name not in self._hosts:
            options = self._options
            self._hosts[name] = Host(name, options.connections, self.patience, options.stall)
        return self._hosts[name]

    async def ask_by_fallback(self, url: str, fields: Fields) -> "FallbackAnswer":
        """Send a GET through httpx. Raises a SourceError."""
        origin, proxy, patience = address.origin(url), self._proxy(url), self._options.stall
        host, heads = origin.host, self.host(origin.host).heads
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

    def fast_origin(self, url: str) -> FastOrigin | None:
        """The fast path to the server of ``url``; None if only the fallback path can be used."""
        origin = address.origin(url)
        if self._proxy(url) is not None or not origin.host.isascii():
            return None
        if origin not in self._origins:
            tls = self._tls_context() if origin.scheme == "https" else None
            host = self.host(origin.host)
            self._origins[origin] = FastOrigin(origin, tls, self._options.stall, host)
        return self._origins[origin]

    def answer_limit(self, origin: address.Origin) -> AnswerLimit:
        """What is known of this server's limit for an answer."""
        return self._limits.setdefault(origin, AnswerLimit())

    def fields(self, url: str, home: str) -> Fields:
        """Fields for a request to ``url`` on behalf of an image whose own URL is ``home``."""
        return self._credentials.fields(url, home)

    async def renew_credentials(self) -> None:
        """Reload the credentials that may have changed. Raises UsageError."""
        async with self._renewing:
            await trio.to_thread.run_sync(self._credentials.read)
            self._renewed = trio.current_time()

    async def reload_credentials(self) -> bool:
        """Reload credentials after a 401 or 403; returns whether a retry is worthwhile.

        They are reloaded at most every ten seconds, however many requests are refused.
        """
        if not self._credentials.may_change:
            return False
        async with self._renewing:
            if trio.current_time() - self._renewed >= _RENEW_EVERY:
                try:
                    await trio.to_thread.run_sync(self._credentials.read)
                except UsageError as error:
                    log.warning("the login cannot be renewed: %s", error)
                self._renewed = trio.current_time()
        return True

    def may_follow(self, here: str, target: str) -> bool:
        """Whether a redirect may be followed: from https to http only if the user allows it."""
        downgrade = (
            address.origin(here).scheme == "https" and address.origin(target).scheme == "http"
        )
        return self._options.insecure_redirects or not downgrade

    async def close_idle(self) -> None:
        """Close the idle connections of the fast path; more are opened when needed."""
        for origin in self._origins.values():
            await origin.close_idle()

    async def aclose(self) -> None:
        await self.close_idle()
        for transport in self._transports.values():
            await transport.aclose()

    def _proxy(self, url: str) -> str | None:
        return self._options.proxy or proxy_of(address.origin(url), os.environ)

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
                return httpx.AsyncHTTPTransport(
                    verify=self._tls_context(), proxy=proxy, limits=limits
                )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise unusable from error
        raise unusable

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = client_context(self._options)
        return self._tls


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

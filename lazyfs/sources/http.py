"""An image on an HTTP server. Nothing else imports httpx.

``HttpClient`` is one for a process: TLS, proxies, logins, and how many connections a host gets.
``HttpSource`` is one image: it follows the redirects of its URL once, remembers where they led, and
resolves them again when that place expires (signed links do).

Requests go to ``httpx.AsyncHTTPTransport`` and not to ``httpx.AsyncClient``: the client costs 1.5
to 2 times the CPU a request, and what it adds (redirects, cookies, decoding) is what must be
decided here. HTTP/1.1 only: HTTP/2 in Python is 3 to 6 times slower.

A login goes to the host that it was given for, and nowhere else: not to where that host redirects.
"""

import logging
import netrc
import ssl
import urllib.request
from base64 import b64encode
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import cast
from urllib.parse import urlsplit

import httpx

from lazyfs.device import Identity, Priority
from lazyfs.errors import (
    BadAnswer,
    LazyfsError,
    Unreachable,
    UntrustedServer,
    UsageError,
)
from lazyfs.options import HttpOptions
from lazyfs.sources import httprange, urls
from lazyfs.sources.lanes import HostLane, Lanes

log = logging.getLogger(__name__)

MAX_REDIRECTS = 10

# What a failed request says of the way to the server. The first class that fits decides.
_FAILURES: tuple[tuple[type[httpx.TransportError], str], ...] = (
    (httpx.ConnectTimeout, "cannot connect to {host}: no answer"),
    (httpx.TimeoutException, "{host} fell silent"),
    (httpx.ProxyError, "the proxy on the way to {host} refuses"),
    (httpx.ConnectError, "cannot connect to {host}"),
    (httpx.RemoteProtocolError, "{host} broke off"),
    (httpx.NetworkError, "the connection to {host} broke"),
    (httpx.TransportError, "cannot talk to {host}"),
)


class HttpClient:
    """Connections, credentials and limits shared by all images of a process."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._netrc = _read_netrc() if options.netrc else None
        self._tls: ssl.SSLContext | None = None
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}
        self._lanes: dict[str, Lanes] = {}
        patience = options.stall
        self.timeouts = {"connect": patience, "read": patience, "write": patience, "pool": None}

    def lanes(self, host: str) -> Lanes:
        """The lanes of a host: ``connections`` in total, whatever is read from it."""
        return self._lanes.setdefault(host, Lanes(self._options.connections))

    def transport(self, url: str) -> httpx.AsyncHTTPTransport:
        """The connection pool for ``url``: one for each proxy, and one for going direct."""
        proxy = self._options.proxy or _proxy_of_environment(url)
        if proxy not in self._transports:
            self._transports[proxy] = self._new_transport(proxy)
        return self._transports[proxy]

    def headers(self, url: str, home: str) -> list[tuple[str, str]]:
        """Fields for a request to ``url`` on behalf of an image whose own URL is ``home``."""
        fields = [("User-Agent", self._options.user_agent)]
        there = urls.origin(url)
        at_home = urls.origin(home).may_share(there)
        if at_home:
            fields += self._options.headers
        if any(name.lower() == "authorization" for name, _ in fields):
            return fields
        login = (urls.login(home) if at_home else None) or self._netrc_login(there.host)
        if login:
            token = b64encode(":".join(login).encode()).decode()
            fields.append(("Authorization", f"Basic {token}"))
        return fields

    def may_follow(self, here: str, target: str) -> bool:
        """Whether a redirect may be followed: never from https down to http, unless told."""
        downgrade = urls.origin(here).scheme == "https" and urls.origin(target).scheme == "http"
        return self._options.insecure_redirects or not downgrade

    async def aclose(self) -> None:
        for transport in self._transports.values():
            await transport.aclose()

    def _netrc_login(self, host: str) -> tuple[str, str] | None:
        entry = self._netrc.authenticators(host) if self._netrc else None
        return (entry[0], entry[2] or "") if entry else None

    def _new_transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        try:
            return httpx.AsyncHTTPTransport(
                verify=self._tls_context(),
                proxy=proxy,
                # The lanes bound what is under way; the pool must never be a second queue.
                limits=httpx.Limits(
                    max_connections=None,
                    max_keepalive_connections=None,
                    keepalive_expiry=60.0,
                ),
            )
        except (ValueError, ImportError, httpx.InvalidURL) as error:
            raise UsageError(
                f"the proxy {urls.shown(proxy or '')} cannot be used", "give http://HOST:PORT"
            ) from error

    def _tls_context(self) -> ssl.SSLContext:
        """The system's certificates (or the user's own), not a bundle carried along."""
        if self._tls is None:
            cafile = self._options.cacert
            try:
                self._tls = ssl.create_default_context(cafile=str(cafile) if cafile else None)
            except OSError as error:
                raise UsageError(f"{cafile} cannot be used as certificates: {error}") from error
            if self._options.insecure:
                self._tls.check_hostname = False
                self._tls.verify_mode = ssl.CERT_NONE
        return self._tls


class HttpSource:
    """One image behind a URL. A Source."""

    def __init__(self, client: HttpClient, url: str, identity: Identity | None = None) -> None:
        """``identity``: what the image must be, when that is known from before."""
        urls.parse(url)
        self._client = client
        self._home = url
        self._target = urls.bare(url)
        self._name = urls.shown(url)
        self._identity = identity

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise BadAnswer(f"{self._name} has not been opened")
        return self._identity

    async def open(self) -> Identity:
        """Ask the server what the image is now; from then on that version is pinned.

        A ranged GET, not a HEAD: only this shows that ranges work, and some servers refuse HEAD.
        """
        async with self._request(0, 1) as response:
            self._identity = httprange.judge_opening(
                self._name, response.status_code, response.headers
            )
        return self._identity

    @asynccontextmanager
    async def stream(self, offset: int, length: int) -> AsyncIterator[AsyncIterator[bytes]]:
        """The bytes of a range as they come in; see ``device.Source``."""
        async with self._request(offset, length) as response:
            httprange.judge_answer(
                self._name, response.status_code, response.headers, offset, length, self.identity
            )
            async with aclosing(self._exactly(response, length)) as pieces:
                yield pieces

    async def lane(self, priority: Priority) -> HostLane:
        return await self._client.lanes(urls.origin(self._target).host).acquire(priority)

    async def aclose(self) -> None:
        """Nothing is held here: connections belong to the client."""

    async def _exactly(self, response: httpx.Response, length: int) -> AsyncGenerator[bytes, None]:
        """The body, which must have exactly ``length`` bytes."""
        received = 0
        async for piece in cast(httpx.AsyncByteStream, response.stream):
            received += len(piece)
            if received > length:
                raise BadAnswer(f"{self._name}: the server sent more than the range asked for")
            yield piece
        if received < length:
            raise Unreachable(f"{self._name}: the answer ended {length - received} bytes early")

    @asynccontextmanager
    async def _request(self, offset: int, length: int) -> AsyncIterator[httpx.Response]:
        """The answer to a range request, redirects followed, failures translated."""
        try:
            response = await self._resolve(offset, length)
            try:
                yield response
            finally:
                await response.aclose()
        except httpx.TransportError as error:
            raise _translated(error, self._name, urls.origin(self._target).host) from error

    async def _resolve(self, offset: int, length: int) -> httpx.Response:
        """Ask where the redirects last led; if that has expired, start again at the first URL."""
        home = urls.bare(self._home)
        response = await self._follow(self._target, offset, length)
        if self._target != home and response.status_code in httprange.EXPIRED:
            await response.aclose()
            log.info("%s: the redirect's target has expired, resolving it again", self._name)
            self._target = home
            response = await self._follow(home, offset, length)
        return response

    async def _follow(self, url: str, offset: int, length: int) -> httpx.Response:
        """The first answer that is no redirect; its URL becomes the target if it is good."""
        for _ in range(MAX_REDIRECTS + 1):
            response = await self._get(url, offset, length)
            target = httprange.redirect_target(
                self._name, url, response.status_code, response.headers
            )
            if target is None:
                if response.status_code == 206:
                    self._target = url
                return response
            await response.aclose()
            if not self._client.may_follow(url, target):
                raise BadAnswer(
                    f"{self._name}: the server redirects from https to http",
                    "use --insecure-redirects if you trust the network",
                )
            url = urls.bare(target)
        raise BadAnswer(f"{self._name}: more than {MAX_REDIRECTS} redirects", "check the URL")

    async def _get(self, url: str, offset: int, length: int) -> httpx.Response:
        fields = self._client.headers(url, self._home)
        request = httpx.Request(
            "GET",
            url,
            headers=fields + httprange.request_headers(offset, length),
            extensions={"timeout": self._client.timeouts},
        )
        return await self._client.transport(url).handle_async_request(request)


def _translated(error: httpx.TransportError, image: str, host: str) -> LazyfsError:
    """The error of ours that a failed request means."""
    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return UntrustedServer(
                f"{image}: the certificate of {host} does not hold: {cause.verify_message}",
                "give the right authority with --cacert, or accept any with --insecure",
            )
    what = next(text for kind, text in _FAILURES if isinstance(error, kind)).format(host=host)
    detail = str(error).strip()
    return Unreachable(
        f"{image}: {what}" + (f" ({detail})" if detail else ""), "check the network and the URL"
    )


def _causes(error: BaseException) -> list[BaseException]:
    """``error`` and all that it was raised from, nearest first."""
    chain: list[BaseException] = []
    step: BaseException | None = error
    while step is not None and step not in chain:
        chain.append(step)
        step = step.__cause__ or step.__context__
    return chain


def _proxy_of_environment(url: str) -> str | None:
    """The proxy that http_proxy, https_proxy, all_proxy and no_proxy name for ``url``."""
    proxies = urllib.request.getproxies()
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxies.get(parts.scheme) or proxies.get("all") or None


def _read_netrc() -> netrc.netrc | None:
    """The user's ~/.netrc. Raises UsageError when it cannot be read."""
    try:
        return netrc.netrc()
    except FileNotFoundError as error:
        raise UsageError("--netrc was given, but there is no ~/.netrc") from error
    except (netrc.NetrcParseError, OSError) as error:
        raise UsageError(f"~/.netrc cannot be used: {error}") from error

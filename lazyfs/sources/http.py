"""An image on an HTTP server. Nothing else imports httpx.

``HttpClient`` is one for a process: TLS, proxies, logins, and how many requests a host gets.
``HttpSource`` is one image: it follows the redirects of its URL once, remembers where they led, and
resolves them again when that place expires (signed links do) or fails (mirrors do). The place is
given up only when another one has answered well: either may be back first.

There are two ways to ask. The careful one, through httpx, knows proxies and every shape of an
answer; it follows redirects. The direct one (``direct.py``) takes a fifth of its CPU time; it is
tried first, unless a proxy stands between, and leaves to the careful one what it cannot tell. The
answers of both are judged by the same rules (``httprange.py``).

The careful way uses ``httpx.AsyncHTTPTransport`` and not ``httpx.AsyncClient``: what the client
adds (redirects, cookies, decoding) is what must be decided here. HTTP/1.1 only: HTTP/2 in Python is
3 to 6 times slower.

No message repeats what a library or a server says in words, where that may hold a secret.
"""

import logging
import math
import re
import ssl
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from typing import Protocol, cast
from urllib.parse import urlsplit

import httpx
import trio

from lazyfs.core import address
from lazyfs.core.device import Identity, Priority
from lazyfs.core.errors import BadAnswer, InternalError, LazyfsError, Unreachable, UsageError
from lazyfs.core.options import HttpOptions
from lazyfs.sources import http1, httprange
from lazyfs.sources.direct import Connection, DirectAnswer, DirectOrigin
from lazyfs.sources.failures import reason, untrusted
from lazyfs.sources.link import Link
from lazyfs.sources.logins import Logins
from lazyfs.sources.slots import HostLane, Lanes
from lazyfs.sources.stall import Pace
from lazyfs.sources.tls import client_context

log = logging.getLogger(__name__)

Fields = list[tuple[str, str]]  # of a header: names and values

MAX_REDIRECTS = 10
FIRST_BYTES = 64 << 10  # of a new image, asked for when it is opened: every use of it begins there
NEXT_DATE = 1.0  # seconds to the next date that HTTP can write
_RENEW_EVERY = 10.0  # seconds between two readings of logins that servers refuse

# What a failed request says of the way to the server. The first class that fits decides.
_FAILURES: tuple[tuple[type[httpx.TransportError], str], ...] = (
    (httpx.ConnectTimeout, "cannot connect to {host}: no answer"),
    (httpx.TimeoutException, "{host} fell silent"),
    (httpx.ConnectError, "cannot connect to {host}: {reason}"),
    (httpx.RemoteProtocolError, "{host} broke off"),
    (httpx.NetworkError, "the connection to {host} broke: {reason}"),
    (httpx.TransportError, "cannot talk to {host}"),
)

_ENDED = re.compile("closed connection|disconnected")  # httpcore: what broke was the connection
_STATUS = re.compile(r"\d{3}\b")


class Answer(Protocol):
    """A status, header fields and a body, whichever way it came."""

    status: int
    headers: httprange.Headers

    def __aiter__(self) -> AsyncIterator[bytes | bytearray]: ...
    async def aclose(self) -> None: ...

    async def abandon(self) -> None:
        """Close it; what was sent along with it will not be asked for."""
        ...


class HttpClient:
    """Connections, credentials and limits shared by all images of a process."""

    def __init__(self, options: HttpOptions) -> None:
        self._options = options
        self._logins = Logins(options)
        self._renewing = trio.Lock()
        self._renewed = -math.inf  # when
        self._tls: ssl.SSLContext | None = None
        self._transports: dict[str | None, httpx.AsyncHTTPTransport] = {}
        self._origins: dict[address.Origin, DirectOrigin] = {}
        self._lanes: dict[str, Lanes] = {}
        self._links: dict[str, Link] = {}

    def lanes(self, host: str) -> Lanes:
        """The lanes of a host: ``connections`` in total, whatever is read from it."""
        return self._lanes.setdefault(host, Lanes(self._options.connections))

    def link(self, host: str) -> Link:
        """What is known of the link to a host."""
        return self._links.setdefault(host, Link())

    async def ask_carefully(self, url: str, fields: Fields) -> "CarefulAnswer":
        """GET through the complete client. Raises a SourceError."""
        patience = self._options.stall
        timeouts = {"connect": patience, "read": patience, "write": patience, "pool": None}
        host, proxy = address.origin(url).host, self._proxy(url)
        try:
            request = httpx.Request("GET", url, headers=fields, extensions={"timeout": timeouts})
        except (httpx.InvalidURL, UnicodeError) as error:
            raise Unreachable(f"{host} cannot be the name of a host") from error
        transport = self._transport(proxy)
        try:
            # Connecting may take the patience, and then the head; httpx limits neither as a whole.
            with trio.fail_after(2 * patience):
                return CarefulAnswer(await transport.handle_async_request(request), host, patience)
        except trio.TooSlowError as error:
            raise Unreachable(f"{host} never comes to its answer") from error
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise _translated(
                error, f"the proxy {address.shown(proxy)}" if proxy else host
            ) from error
        except httpx.TransportError as error:
            raise _translated(error, host) from error

    def direct(self, url: str) -> DirectOrigin | None:
        """The direct way to the server of ``url``; None if only the careful one leads there."""
        origin = address.origin(url)
        if self._proxy(url) is not None or not origin.host.isascii():
            return None
        if origin not in self._origins:
            tls = self._tls_context() if origin.scheme == "https" else None
            self._origins[origin] = DirectOrigin(origin, tls, self._options.stall)
        return self._origins[origin]

    def fields(self, url: str, home: str) -> Fields:
        """Fields for a request to ``url`` on behalf of an image whose own URL is ``home``."""
        return self._logins.fields(url, home)

    async def renew_logins(self) -> None:
        """Read anew what may have changed of who we are. Raises UsageError."""
        async with self._renewing:
            await trio.to_thread.run_sync(self._logins.read)
            self._renewed = trio.current_time()

    async def was_refused(self) -> bool:
        """A server does not take us for whom it should; whether it is worth asking it again.

        What may have changed is read anew, but not for each of many requests.
        """
        if not self._logins.may_change:
            return False
        async with self._renewing:
            if trio.current_time() - self._renewed >= _RENEW_EVERY:
                try:
                    await trio.to_thread.run_sync(self._logins.read)
                except UsageError as error:
                    log.warning("the login cannot be renewed: %s", error)
                self._renewed = trio.current_time()
        return True

    def may_follow(self, here: str, target: str) -> bool:
        """Whether a redirect may be followed: never from https down to http, unless told."""
        downgrade = (
            address.origin(here).scheme == "https" and address.origin(target).scheme == "http"
        )
        return self._options.insecure_redirects or not downgrade

    async def close_idle(self) -> None:
        """Close the connections that no request is using; more are opened when needed."""
        for origin in self._origins.values():
            await origin.close_idle()

    async def aclose(self) -> None:
        await self.close_idle()
        for transport in self._transports.values():
            await transport.aclose()

    def _proxy(self, url: str) -> str | None:
        return self._options.proxy or _proxy_of_environment(url)

    def _transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        """The connection pool for a proxy, or for going without one."""
        if proxy not in self._transports:
            self._transports[proxy] = self._new_transport(proxy)
        return self._transports[proxy]

    def _new_transport(self, proxy: str | None) -> httpx.AsyncHTTPTransport:
        # The lanes bound what is under way; the pool must never be a second queue.
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


class CarefulAnswer:
    """An answer that came through httpx."""

    def __init__(self, response: httpx.Response, host: str, patience: float) -> None:
        self.status = response.status_code
        self.headers: httprange.Headers = response.headers
        self._response = response
        self._host = host
        self._pace = Pace.of_body(patience)
        self._pieces = cast(httpx.AsyncByteStream, response.stream).__aiter__()

    def __aiter__(self) -> "CarefulAnswer":
        return self

    async def __anext__(self) -> bytes:
        asked = trio.current_time()
        try:
            with trio.fail_after(self._pace.left):
                piece = await self._pieces.__anext__()
        except trio.TooSlowError as error:
            raise Unreachable(self._pace.complaint(self._host)) from error
        except httpx.TransportError as error:
            raise _translated(error, self._host) from error
        self._pace.received(len(piece), trio.current_time() - asked)
        return piece

    async def abandon(self) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        await self._response.aclose()
        if isinstance(self._pieces, AsyncGenerator):
            await self._pieces.aclose()


class _Body:
    """The body of a judged answer: exactly ``length`` bytes, and the link measured by them."""

    def __init__(self, answer: Answer, length: int, link: Link) -> None:
        self._pieces = answer.__aiter__()
        self._left = length
        self._link = link

    def __aiter__(self) -> "_Body":
        return self

    async def __anext__(self) -> bytes | bytearray:
        try:
            piece = await self._pieces.__anext__()
        except StopAsyncIteration:
            if self._left:
                raise Unreachable(f"the answer ended {self._left} bytes early") from None
            raise
        self._left -= len(piece)
        if self._left < 0:
            raise BadAnswer("the server sent more than the range asked for")
        self._link.received(trio.current_time(), len(piece))
        return piece


@dataclass(frozen=True)
class _Place:
    """Where an image is found now, and what a request there needs. ``url``: without login."""

    url: str
    host: str
    authority: str  # host and port, as the Host field has them
    path: str  # with the query, as the request line has them
    direct: DirectOrigin | None  # None: only the careful way leads there

    @classmethod
    def at(cls, url: str, client: HttpClient) -> "_Place":
        host, authority = address.origin(url).host, urlsplit(url).netloc
        return cls(url, host, authority, address.on_the_wire(url), client.direct(url))


_Ask = Callable[[Fields], Awaitable[Answer | None]]


class HttpSource:
    """One image behind a URL. A Source."""

    def __init__(
        self, client: HttpClient, url: str, identity: Identity | None = None, *, first: int = 1
    ) -> None:
        """``identity``: what the image must be, when that is known from before.

        ``first``: bytes to ask for when it is opened. They save who needs them a round trip.
        """
        address.parse(url)
        self._client = client
        self._first = first
        self.opening = b""  # the image's first bytes, as they came when it was opened
        self._home = url
        self._name = address.shown(url)
        self._identity = identity
        self._place = _Place.at(address.bare(url), client)

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise InternalError(f"{self._name} has not been opened")
        return self._identity

    @property
    def link(self) -> Link:
        return self._client.link(self._place.host)

    def expect(self, identity: Identity) -> None:
        """It could not be opened, but what it must be is known from before."""
        self._identity = identity
        self.opening = b""

    async def open(self) -> Identity:
        """Ask the server what the image is now; from then on that version is pinned.

        A ranged GET, not a HEAD: only this shows that ranges work, and some servers refuse HEAD.
        An image that was written this very second is asked for again a second later, when its
        validators are good. Raises a SourceError.
        """
        identity, just_written = await self._open()
        if just_written and not identity.pinned:
            await trio.sleep(NEXT_DATE)
            identity, _ = await self._open()
        self._identity = identity
        return identity

    async def _open(self) -> tuple[Identity, bool]:
        """What the image is, and whether it was written in this very second."""
        async with self._answer(0, self._first, self._ask_directly) as answer:
            if self._first > 1 and httprange.is_empty(answer.status, answer.headers):
                # Or it is only shorter than that: not every server knows that it may send less.
                self._first = 1
                return await self._open()
            identity = httprange.judge_opening(
                self._name, answer.status, answer.headers, self._first
            )
            with self._body(answer, min(self._first, identity.size)) as pieces:
                self.opening = b"".join([bytes(piece) async for piece in pieces])
            return identity, httprange.just_written(answer.headers)

    def streams(
        self, ranges: Sequence[tuple[int, int]]
    ) -> Sequence[AbstractAsyncContextManager[AsyncIterator[bytes | bytearray]]]:
        """The bytes of ranges, several for one round trip; see ``device.Source``."""
        ask = self._ask_together([httprange.request_headers(*wanted) for wanted in ranges])
        return [self._stream(offset, length, ask) for offset, length in ranges]

    @asynccontextmanager
    async def _stream(
        self, offset: int, length: int, ask: _Ask
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        async with self._answer(offset, length, ask) as answer:
            httprange.judge_answer(
                self._name, answer.status, answer.headers, offset, length, self.identity
            )
            with self._body(answer, length) as pieces:
                yield pieces

    @contextmanager
    def _body(self, answer: Answer, length: int) -> Iterator["_Body"]:
        """The body of a judged answer, measured."""
        link = self.link  # a redirect may lead to another host meanwhile
        link.body_begins(trio.current_time())
        try:
            yield _Body(answer, length, link)
        finally:
            link.body_ends()

    async def lane(self, priority: Priority) -> HostLane:
        return await self._client.lanes(self._place.host).acquire(priority)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:  # noqa: ARG002
        """HTTP says nothing of holes."""
        return [(length, False)]

    async def rest(self) -> None:
        await self._client.close_idle()

    @asynccontextmanager
    async def _answer(self, offset: int, length: int, ask: _Ask) -> AsyncIterator[Answer]:
        """The answer to a range request, by ``ask`` if that can tell; errors name the image."""
        try:
            answer = await self._find(httprange.request_headers(offset, length), ask)
            try:
                yield answer
            except BaseException:
                await answer.abandon()
                raise
            await answer.aclose()
        except LazyfsError as error:
            if self._name not in error.message:
                error.about(self._name)
            raise

    async def _find(self, wanted: Fields, ask: _Ask) -> Answer:
        """The answer to a request; if the server refuses us, with a login that was read anew."""
        answer = await self._find_place(wanted, ask)
        if answer.status in httprange.REFUSED and await self._client.was_refused():
            await answer.aclose()
            answer = await self._follow(address.bare(self._home), wanted)
        return answer

    async def _find_place(self, wanted: Fields, ask: _Ask) -> Answer:
        """The answer from where redirects last led; if that has failed, from where they lead now.

        ``ask`` comes first; where it cannot tell, the careful way does.
        """
        home = address.bare(self._home)
        redirected = self._place.url != home
        try:
            answer = await ask(wanted) or await self._follow(self._place.url, wanted)
        except Unreachable as error:
            if not redirected:
                raise
            log.info("%s: %s; resolving the redirect again", self._name, error.message)
        else:
            if not (redirected and answer.status in httprange.FAILED_TARGET):
                return answer
            await answer.aclose()
            log.info("%s: the redirect's target has expired, resolving it again", self._name)
        return await self._follow(home, wanted)

    async def _ask_directly(self, wanted: Fields) -> Answer | None:
        """Ask where the redirects last led; None if only the careful way can tell."""
        if self._place.direct is None:
            return None
        return await self._accepted(await self._send(self._place.direct, [wanted]))

    async def _send(self, direct: DirectOrigin, requests: list[Fields]) -> DirectAnswer:
        """Send requests together; returns the answer to the first. Measures the round trip."""
        asked = trio.current_time()
        answer, reused = await direct.get(
            b"".join(self._request(wanted) for wanted in requests), len(requests)
        )
        if reused:
            self.link.answered(trio.current_time() - asked)
        return answer

    def _ask_together(self, unsent: list[Fields]) -> _Ask:
        """An asker that sends all these requests with the first, and takes the answers in order.

        When the connection has ended before an answer's turn, that request is sent by itself.
        """
        direct = self._place.direct  # a redirect may change the place before all are answered
        connection: Connection | None = None

        async def ask(wanted: Fields) -> Answer | None:
            nonlocal connection
            answer: DirectAnswer | None = None
            if direct is not None and unsent:
                requests = unsent.copy()
                unsent.clear()
                answer = await self._send(direct, requests)
                connection = answer.connection
            elif direct is not None and connection is not None:
                answer = await direct.following(connection)
            return await (self._accepted(answer) if answer else self._ask_directly(wanted))

        return ask

    def _request(self, wanted: Fields) -> bytes:
        place = self._place
        fields = self._client.fields(place.url, self._home) + wanted
        return http1.request(place.authority, place.path, fields)

    async def _accepted(self, answer: DirectAnswer) -> Answer | None:
        """``answer`` if it can be judged as it is; None if the careful way has to ask again."""
        if answer.status in httprange.REDIRECTS:
            await answer.aclose()
            return None
        if answer.status == 206 and not answer.counted:
            await answer.aclose()
            log.info("%s: the server does not count the bytes of its answers", self._name)
            self._place = replace(self._place, direct=None)
            return None
        return answer

    async def _follow(self, url: str, wanted: Fields) -> Answer:
        """The first answer that is no redirect; its URL becomes the target if it is good."""
        for _ in range(MAX_REDIRECTS + 1):
            fields = self._client.fields(url, self._home) + wanted
            answer = await self._client.ask_carefully(url, fields)
            target = httprange.redirect_target(self._name, url, answer.status, answer.headers)
            if target is None:
                if answer.status == 206 and url != self._place.url:
                    self._place = _Place.at(url, self._client)
                return answer
            await answer.aclose()
            if not self._client.may_follow(url, target):
                raise BadAnswer(
                    f"{self._name}: the server redirects from https to http",
                    "use --insecure-redirects if you trust the network",
                )
            url = address.bare(target)
        raise BadAnswer(f"{self._name}: more than {MAX_REDIRECTS} redirects", "check the URL")


def _translated(error: httpx.TransportError, host: str) -> LazyfsError:
    """The error of ours that a failed request means."""
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


def _proxy_of_environment(url: str) -> str | None:
    """The proxy that http_proxy, https_proxy, all_proxy and no_proxy name for ``url``."""
    proxies = urllib.request.getproxies()
    parts = urlsplit(url)
    if urllib.request.proxy_bypass(parts.netloc.rpartition("@")[2]):
        return None
    return proxies.get(parts.scheme) or proxies.get("all") or None

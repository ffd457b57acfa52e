"""An image on an HTTP server.

``HttpSource`` follows the redirects of its URL once, remembers the target, and resolves them again
when the target expires (signed links do) or fails (mirrors do). The target is replaced only when
another one has answered well: either may recover first.

There are two paths for a request. The fallback path, through httpx (``httpclient.py``), supports
proxies and every form of answer; it follows redirects. The fast path (``fastpath.py``) takes a
fifth of its CPU time; it is tried first, unless there is a proxy, and leaves answers that it cannot
interpret to the fallback path. The answers of both are judged by the same rules (``httprange.py``).

A request needs a slot of the host that it goes to. When a redirect leads to another host, the slot
is exchanged for one of that host first.
"""

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from urllib.parse import urlsplit

import trio

from lazyfs.core import address
from lazyfs.core.device import Identity, Priority, Stream, Trouble
from lazyfs.core.errors import (
    BadAnswer,
    InternalError,
    LazyfsError,
    TransientError,
    Unreachable,
)
from lazyfs.sources import http1, httprange
from lazyfs.sources.fastpath import Connection, FastAnswer, FastOrigin
from lazyfs.sources.httpclient import Answer, Fields, HttpClient
from lazyfs.sources.link import LinkEstimate
from lazyfs.sources.slots import Host, HostSlot

log = logging.getLogger(__name__)

MAX_REDIRECTS = 10
FIRST_BYTES = 64 << 10  # requested when a new image is opened: every use of it begins there
NEXT_DATE = 1.0  # seconds: the resolution of HTTP dates


class _Body:
    """The body of a judged answer: exactly ``length`` bytes. Measures the link."""

    def __init__(self, answer: Answer, length: int, link: LinkEstimate) -> None:
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


@contextmanager
def _measured(link: LinkEstimate, answer: Answer, length: int) -> Iterator[_Body]:
    """The body of a judged answer. Measures the link."""
    link.body_begins(trio.current_time())
    try:
        yield _Body(answer, length, link)
    finally:
        link.body_ends()


@dataclass(frozen=True)
class _Target:
    """The current location of an image, with the parts of a request to it.

    ``url``: without credentials.
    ``authority``: host and port, for the Host field.
    ``path``: path and query, for the request line.
    ``origin``: the fast path; None if only the fallback path can be used.
    """

    url: str
    host: Host
    authority: str
    path: str
    origin: FastOrigin | None

    @classmethod
    def at(cls, url: str, client: HttpClient) -> "_Target":
        host, authority = client.host(address.origin(url).host), urlsplit(url).netloc
        return cls(url, host, authority, address.on_the_wire(url), client.fast_origin(url))


class HttpSlot:
    """A slot of the host that requests go to. A Slot."""

    def __init__(
        self, source: "HttpSource", host: Host, held: HostSlot, priority: Priority
    ) -> None:
        self._source = source
        self._host = host
        self._held: HostSlot | None = held  # None while it is being exchanged
        self._priority = priority

    @property
    def last(self) -> bool:
        return self._held is None or self._held.last

    @property
    def link(self) -> LinkEstimate:
        return self._host.link

    def streams(self, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        return self._source.streams(self, ranges)

    def failed(self, error: TransientError) -> None:
        self._host.health.failed(error)

    def succeeded(self) -> None:
        self._host.health.succeeded()

    async def move_to(self, host: Host) -> None:
        """Exchange the slot for one of ``host``, unless it is one already."""
        if host is self._host:
            return
        self.release()
        self._host = host
        self._held = await host.limiter.acquire(self._priority)

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()


_Ask = Callable[[Fields], Awaitable[Answer | None]]


class HttpSource:
    """One image behind a URL. A Source."""

    def __init__(
        self, client: HttpClient, url: str, identity: Identity | None = None, *, first: int = 1
    ) -> None:
        """``identity``: the expected identity, if known from an earlier run.

        ``first``: bytes to request on opening, which saves a round trip if they are needed.
        """
        address.parse(url)
        self._client = client
        self._first = first
        self.opening = b""  # the image's first bytes, received on opening
        self._home = url
        self._name = address.shown(url)
        self._identity = identity
        self._target = _Target.at(address.bare(url), client)

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise InternalError(f"{self._name} has not been opened")
        return self._identity

    @property
    def link(self) -> LinkEstimate:
        return self._target.host.link

    @property
    def trouble(self) -> Trouble | None:
        return self._target.host.health.trouble

    def expect(self, identity: Identity) -> None:
        """Assume this identity, known from an earlier run, since the image cannot be opened."""
        self._identity = identity
        self.opening = b""

    async def open(self) -> Identity:
        """Get the image's current identity from the server, and pin that version.

        A ranged GET, not a HEAD: only this shows that ranges work, and some servers refuse HEAD.
        For an image that was written in this very second, the request is repeated a second later,
        when its validators are good. Raises a SourceError.
        """
        identity, just_written = await self._open()
        if just_written and not identity.pinned:
            await trio.sleep(NEXT_DATE)
            identity, _ = await self._open()
        self._identity = identity
        return identity

    async def _open(self) -> tuple[Identity, bool]:
        """The image's identity, and whether it was written in this very second."""
        host = self._target.host
        slot = HttpSlot(self, host, await host.limiter.acquire(Priority.DEMAND), Priority.DEMAND)
        ask = partial(self._ask_fast_path, slot)
        try:
            async with self._answer(slot, 0, self._first, ask) as answer:
                if self._first > 1 and httprange.is_empty(answer.status, answer.headers):
                    # Perhaps only shorter than that: not every server knows it may send less.
                    self._first = 1
                else:
                    return await self._judged_opening(slot, answer)
        finally:
            slot.release()
        return await self._open()

    async def _judged_opening(self, slot: HttpSlot, answer: Answer) -> tuple[Identity, bool]:
        identity = httprange.judge_opening(self._name, answer.status, answer.headers, self._first)
        with _measured(slot.link, answer, min(self._first, identity.size)) as pieces:
            self.opening = b"".join([bytes(piece) async for piece in pieces])
        return identity, httprange.just_written(answer.headers)

    def streams(self, slot: HttpSlot, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        """Streams for ranges, requested together for one round trip; see ``device.Slot``."""
        ask = self._ask_together(slot, [httprange.request_headers(*wanted) for wanted in ranges])
        return [self._stream(slot, offset, length, ask) for offset, length in ranges]

    @asynccontextmanager
    async def _stream(
        self, slot: HttpSlot, offset: int, length: int, ask: _Ask
    ) -> AsyncIterator[AsyncIterator[bytes | bytearray]]:
        async with self._answer(slot, offset, length, ask) as answer:
            httprange.judge_answer(
                self._name, answer.status, answer.headers, offset, length, self.identity
            )
            with _measured(slot.link, answer, length) as pieces:
                yield pieces

    async def run(self) -> None:
        """Nothing to do in the background."""
        await trio.sleep_forever()

    async def slot(self, priority: Priority) -> HttpSlot:
        host = self._target.host
        return HttpSlot(self, host, await host.slot(priority), priority)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:  # noqa: ARG002
        """HTTP has no information about holes."""
        return [(length, False)]

    async def rest(self) -> None:
        await self._client.close_idle()

    async def aclose(self) -> None:
        """Nothing to close: the client, shared with other images, keeps the connections."""

    @asynccontextmanager
    async def _answer(
        self, slot: HttpSlot, offset: int, length: int, ask: _Ask
    ) -> AsyncIterator[Answer]:
        """The answer to a range request, through ``ask`` if possible; errors name the image."""
        try:
            answer = await self._find(slot, httprange.request_headers(offset, length), ask)
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

    async def _find(self, slot: HttpSlot, wanted: Fields, ask: _Ask) -> Answer:
        """The answer to a request; after a refusal, retried with reloaded credentials."""
        answer = await self._find_target(slot, wanted, ask)
        if answer.status in httprange.REFUSED and await self._client.reload_credentials():
            await answer.aclose()
            answer = await self._follow(slot, address.bare(self._home), wanted)
        return answer

    async def _find_target(self, slot: HttpSlot, wanted: Fields, ask: _Ask) -> Answer:
        """The answer from the last redirect target; if that has failed, from the current one.

        ``ask`` is tried first; if it returns None, the fallback path is used.
        """
        home = address.bare(self._home)
        redirected = self._target.url != home
        try:
            answer = await ask(wanted) or await self._follow(slot, self._target.url, wanted)
        except Unreachable as error:
            if not redirected:
                raise
            log.info("%s: %s; resolving the redirect again", self._name, error.message)
        else:
            if not (redirected and answer.status in httprange.FAILED_TARGET):
                return answer
            await answer.aclose()
            log.info("%s: the redirect's target has expired, resolving it again", self._name)
        return await self._follow(slot, home, wanted)

    async def _ask_fast_path(self, slot: HttpSlot, wanted: Fields) -> Answer | None:
        """The answer from the last redirect target; None if it needs the fallback path."""
        target = self._target
        if target.origin is None:
            return None
        await slot.move_to(target.host)
        return await self._accepted(await self._send(slot, target.origin, target, [wanted]))

    async def _send(
        self, slot: HttpSlot, origin: FastOrigin, target: _Target, requests: list[Fields]
    ) -> FastAnswer:
        """Send requests together; returns the answer to the first. Measures the round trip."""
        asked = trio.current_time()
        answer, reused = await origin.get(
            b"".join(self._request(target, wanted) for wanted in requests), len(requests)
        )
        if reused:
            slot.link.answered(trio.current_time() - asked)
        return answer

    def _ask_together(self, slot: HttpSlot, unsent: list[Fields]) -> _Ask:
        """A function that sends all these requests when first called; each call takes one answer.

        If the connection ends before an answer's turn, that request is sent by itself.
        """
        target = self._target  # which a redirect may change before all are answered
        connection: Connection | None = None

        async def ask(wanted: Fields) -> Answer | None:
            nonlocal connection
            answer: FastAnswer | None = None
            if target.origin is not None and unsent:
                await slot.move_to(target.host)
                requests = unsent.copy()
                unsent.clear()
                answer = await self._send(slot, target.origin, target, requests)
                connection = answer.connection
            elif target.origin is not None and connection is not None:
                answer = await target.origin.following(connection)
            return await (self._accepted(answer) if answer else self._ask_fast_path(slot, wanted))

        return ask

    def _request(self, target: _Target, wanted: Fields) -> bytes:
        fields = self._client.fields(target.url, self._home) + wanted
        return http1.request(target.authority, target.path, fields)

    async def _accepted(self, answer: FastAnswer) -> Answer | None:
        """``answer`` if it can be judged; None if the request must take the fallback path."""
        if answer.status in httprange.REDIRECTS:
            await answer.aclose()
            return None
        if answer.status == 206 and not answer.counted:
            await answer.aclose()
            log.info("%s: the server does not count the bytes of its answers", self._name)
            self._target = replace(self._target, origin=None)
            return None
        return answer

    async def _follow(self, slot: HttpSlot, url: str, wanted: Fields) -> Answer:
        """Follow redirects to the first other answer; its URL becomes the target if it is good."""
        for _ in range(MAX_REDIRECTS + 1):
            await slot.move_to(self._client.host(address.origin(url).host))
            fields = self._client.fields(url, self._home) + wanted
            answer = await self._client.ask_by_fallback(url, fields)
            target = httprange.redirect_target(self._name, url, answer.status, answer.headers)
            if target is None:
                if answer.status == 206 and url != self._target.url:
                    self._target = _Target.at(url, self._client)
                return answer
            await answer.aclose()
            if not self._client.may_follow(url, target):
                raise BadAnswer(
                    f"{self._name}: the server redirects from https to http",
                    "use --insecure-redirects if you trust the network",
                )
            url = address.bare(target)
        raise BadAnswer(f"{self._name}: more than {MAX_REDIRECTS} redirects", "check the URL")

"""An image on an HTTP server.

``HttpSource`` follows the redirects of its URL once, remembers the target, and resolves them again
when the target expires (signed links do) or fails (mirrors do). The target is replaced only when
another one has answered well: either may recover first.

There are two paths for a request. The fallback path, through httpx (``fallback.py``), supports
proxies and every form of answer; it follows redirects. The fast path (``fastpath.py``) takes a
fifth of its CPU time; it is tried first, unless there is a proxy, and leaves answers that it cannot
interpret to the fallback path. The answers of both are judged by the same rules (``httprange.py``).

A request needs a slot of the host that it goes to. When a redirect leads to another host, the slot
is exchanged for one of that host first.
"""

import logging
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from types import TracebackType

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
from lazyfs.core.ranges import clamp
from lazyfs.sources import http1, httprange
from lazyfs.sources.fastpath import Connection, FastAnswer, FastOrigin
from lazyfs.sources.http1 import Fields
from lazyfs.sources.httpclient import Answer, HttpClient
from lazyfs.sources.learned import SMALLEST_ANSWER, AnswerLimit
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
    ``authority``: the Host field.
    ``path``: path and query, for the request line.
    ``origin``: the fast path; None if only the fallback path can be used.
    ``limit``: the server's, for an answer.
    """

    url: str
    host: Host
    authority: str
    path: str
    origin: FastOrigin | None
    limit: AnswerLimit

    @classmethod
    def at(cls, url: str, client: HttpClient) -> "_Target":
        origin = address.origin(url)
        return cls(
            url,
            client.host(origin.host),
            origin.field,
            address.on_the_wire(url),
            client.fast_origin(url),
            client.answer_limit(origin),
        )


class HttpSlot:
    """A slot of the host that requests go to. A Slot."""

    def __init__(
        self, source: "HttpSource", host: Host, held: HostSlot, priority: Priority
    ) -> None:
        self.host = host
        self._source = source
        self._held: HostSlot | None = held  # None while it is being exchanged
        self._priority = priority

    @property
    def last(self) -> bool:
        return self._held is None or self._held.last

    @property
    def link(self) -> LinkEstimate:
        return self.host.link

    def streams(self, ranges: Sequence["Range"]) -> Sequence[Stream]:
        return self._source.streams(self, ranges)

    def failed(self, error: TransientError) -> None:
        self.host.health.failed(error)

    def succeeded(self) -> None:
        self.host.health.succeeded()

    async def move_to(self, host: Host) -> None:
        """Exchange the slot for one of ``host``, unless it is one already."""
        if host is self.host:
            return
        self.release()
        self.host = host
        self._held = await host.limiter.acquire(self._priority)

    def release(self) -> None:
        held, self._held = self._held, None
        if held is not None:
            held.release()


Range = tuple[int, int]  # offset and length
_Ask = Callable[[Fields], Awaitable[Answer | None]]


class _Together:
    """Requests that are sent together, as far as the server takes that.

    Their answers are taken one by one, in order. If none comes for a request, because the
    connection ends or the server has answered enough, that request is sent by itself.
    """

    def __init__(self, source: "HttpSource", slot: HttpSlot, unsent: list[Fields]) -> None:
        self._source = source
        self._slot = slot
        self._unsent = unsent
        self._target = source.target  # which a redirect may change before all are answered
        self._connection: Connection | None = None
        self._due = 0  # answers that it still owes to this; then it may belong to another

    async def ask(self, wanted: Fields) -> Answer | None:
        """The answer to one of them; None if it needs the fallback path."""
        answer: FastAnswer | None = None
        if self._unsent[:1] == [wanted]:
            answer = await self._send()
        elif self._due and self._connection is not None and self._target.origin is not None:
            self._due -= 1
            answer = await self._following(self._target.origin, self._connection, wanted)
        if answer is None:
            return await self._source.ask_fast_path(self._slot, wanted)
        return await self._source.accepted(answer)

    async def _send(self) -> FastAnswer | None:
        """Send as many as the server takes; returns the answer to the first."""
        self._target = self._source.target
        origin, unsent = self._target.origin, self._unsent
        count = 1 if origin is None else origin.pipelining.grant(len(unsent), trio.current_time())
        requests, self._unsent = unsent[:count], unsent[count:]
        if origin is None:
            return None
        self._due = 0
        answer = await self._source.send(self._slot, self._target, origin, requests)
        self._connection, self._due = answer.connection, len(requests) - 1
        return answer

    async def _following(
        self, origin: FastOrigin, connection: Connection, wanted: Fields
    ) -> FastAnswer | None:
        """The next answer on a connection; None if none comes, or it cannot be trusted yet."""
        answer = await origin.following(connection)
        if answer is None or httprange.answers(wanted, answer.status, answer.headers):
            if answer is not None:
                origin.pipelining.worked()
            return answer
        if origin.pipelining.proven:
            return answer
        # It may be the answer to half a request, or to another one.
        await answer.abandon()
        self._due = 0
        origin.pipelining.failed()
        return None


class _Range(AbstractAsyncContextManager[AsyncIterator[bytes | bytearray]]):
    """The bytes of one range, in as many answers as the server makes of it. A Stream."""

    def __init__(
        self, source: "HttpSource", slot: HttpSlot, parts: Sequence[Range], ask: _Ask
    ) -> None:
        """``parts``: the range, cut into requests."""
        self._source = source
        self._slot = slot
        self._left = deque((part, ask) for part in parts)
        self._crumbs = 0  # answers in a row that were shorter than a server's limit can be
        self._answer: AbstractAsyncContextManager[tuple[_Body, int]] | None = None
        self._pieces: _Body

    async def __aenter__(self) -> "_Range":
        await self._begin()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool | None:
        answer, self._answer = self._answer, None
        return await answer.__aexit__(kind, error, traceback) if answer else None

    def __aiter__(self) -> "_Range":
        return self

    async def __anext__(self) -> bytes | bytearray:
        while True:
            try:
                return await self._pieces.__anext__()
            except StopAsyncIteration:
                if not self._left:
                    raise
            await self.__aexit__(None, None, None)
            await self._begin()

    async def _begin(self) -> None:
        """Have the next part answered; what its answer leaves out becomes the next part."""
        if self._crumbs > 1:
            raise BadAnswer(f"{self._source.name}: the server sends its answers in crumbs")
        (offset, length), ask = self._left.popleft()
        answer = self._source.part(self._slot, offset, length, ask)
        self._pieces, got = await answer.__aenter__()
        self._answer = answer
        short = got < length
        self._crumbs = self._crumbs + 1 if short and got < SMALLEST_ANSWER else 0
        if short:
            rest = self._source.requests_for_rest(self._slot, offset + got, length - got, got)
            self._left.extendleft(reversed(rest))


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
        self.name = address.shown(url)
        self._identity = identity
        self._target = _Target.at(address.bare(url), client)
        self._sized: Identity | None = None  # if the server does not say the size with a range

    @property
    def identity(self) -> Identity:
        if self._identity is None:
            raise InternalError(f"{self.name} has not been opened")
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
        self._sized = None
        identity, just_written = await self._open()
        if just_written and not identity.pinned:
            await trio.sleep(NEXT_DATE)
            identity, _ = await self._open()
        self._identity = identity
        return identity

    async def _open(self) -> tuple[Identity, bool]:
        """The image's identity, and whether it was written in this very second.

        A silent host is asked again while a reader would wait, if nothing of the image is cached.
        """
        began, waited = trio.current_time(), 0.0
        while True:
            host = self._target.host
            held = await host.limiter.acquire(Priority.DEMAND)
            slot = HttpSlot(self, host, held, Priority.DEMAND)
            try:
                return await self._open_once(slot)
            except Unreachable:
                wait = slot.host.heads.longer_than_usual
                left = self._client.patience - (trio.current_time() - began)
                if self._first == 1 or not waited < wait <= left:
                    raise
                waited = wait
            finally:
                slot.release()

    async def _open_once(self, slot: HttpSlot) -> tuple[Identity, bool]:
        ask = partial(self.ask_fast_path, slot)
        hides_size = False
        async with self._answer(slot, httprange.request_headers(0, self._first), ask) as answer:
            if self._first > 1 and httprange.is_empty(answer.status, answer.headers):
                # Perhaps only shorter than that: not every server knows it may send less.
                self._first = 1
            elif self._sized is None and httprange.hides_size(answer.status, answer.headers):
                hides_size = True
            else:
                return await self._judged_opening(slot, answer)
        if hides_size:
            self._sized = await self._ask_size(slot, ask)
        return await self._open_once(slot)

    async def _ask_size(self, slot: HttpSlot, ask: _Ask) -> Identity:
        """The identity of an image whose server does not say the size with a range."""
        async with self._answer(slot, httprange.THE_LAST_BYTE, ask) as answer:
            return httprange.judge_size(self.name, answer.status, answer.headers)

    async def _judged_opening(self, slot: HttpSlot, answer: Answer) -> tuple[Identity, bool]:
        identity, length = httprange.judge_opening(
            self.name, answer.status, answer.headers, self._first, self._sized
        )
        if length < min(self._first, identity.size):
            self._target.limit.came_short(length)
        with _measured(slot.link, answer, length) as pieces:
            self.opening = b"".join([bytes(piece) async for piece in pieces])
        return identity, httprange.just_written(answer.headers)

    def streams(self, slot: HttpSlot, ranges: Sequence[tuple[int, int]]) -> Sequence[Stream]:
        """Streams for ranges, requested together for one round trip; see ``device.Slot``."""
        parts = [httprange.cut(*wanted, self._target.limit.size) for wanted in ranges]
        ask = self.ask_together(slot, [part for range_parts in parts for part in range_parts])
        return [_Range(self, slot, range_parts, ask) for range_parts in parts]

    @asynccontextmanager
    async def part(
        self, slot: HttpSlot, offset: int, length: int, ask: _Ask
    ) -> AsyncIterator[tuple[_Body, int]]:
        """The answer to one request for a range, and how many of its bytes it has."""
        wanted = httprange.request_headers(offset, length)
        async with self._answer(slot, wanted, ask) as answer:
            got = httprange.judge_answer(
                self.name, answer.status, answer.headers, offset, length, self.identity
            )
            with _measured(slot.link, answer, got) as pieces:
                yield pieces, got

    def requests_for_rest(
        self, slot: HttpSlot, offset: int, length: int, got: int
    ) -> list[tuple[Range, _Ask]]:
        """The requests for what an answer of ``got`` bytes left out."""
        limit = self._target.limit
        limit.came_short(got)
        parts = httprange.cut(offset, length, limit.size)
        ask = self.ask_together(slot, parts)
        return [(part, ask) for part in parts]

    def ask_together(self, slot: HttpSlot, ranges: Sequence[Range]) -> _Ask:
        return _Together(self, slot, [httprange.request_headers(*wanted) for wanted in ranges]).ask

    @property
    def target(self) -> _Target:
        """The current location of the image."""
        return self._target

    async def run(self) -> None:
        """Nothing to do in the background."""
        await trio.sleep_forever()

    async def slot(self, priority: Priority) -> HttpSlot:
        host = self._target.host
        return HttpSlot(self, host, await host.slot(priority), priority)

    async def zeros(self, offset: int, length: int) -> Sequence[tuple[int, bool]]:
        """HTTP says nothing of holes."""
        here = clamp(offset, length, self.identity.size).length
        return [(here, False)] if here else []

    async def rest(self) -> None:
        await self._client.close_idle()

    async def aclose(self) -> None:
        """Nothing to close: the client, shared with other images, keeps the connections."""

    @asynccontextmanager
    async def _answer(self, slot: HttpSlot, wanted: Fields, ask: _Ask) -> AsyncIterator[Answer]:
        """The answer to a range request, through ``ask`` if possible; errors name the image."""
        try:
            answer = await self._find(slot, wanted, ask)
            try:
                yield answer
            except BaseException:
                await answer.abandon()
                raise
            await answer.aclose()
        except LazyfsError as error:
            if self.name not in error.message:
                error.about(self.name)
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
            log.info("%s: %s; resolving the redirect again", self.name, error.message)
        else:
            if not (redirected and httprange.is_failed_target(answer.status)):
                return answer
            await answer.aclose()
            log.info("%s: the redirect's target has expired, resolving it again", self.name)
        return await self._follow(slot, home, wanted)

    async def ask_fast_path(self, slot: HttpSlot, wanted: Fields) -> Answer | None:
        """The answer from the last redirect target; None if it needs the fallback path."""
        target = self._target
        if target.origin is None:
            return None
        return await self.accepted(await self.send(slot, target, target.origin, [wanted]))

    async def send(
        self, slot: HttpSlot, target: _Target, origin: FastOrigin, requests: list[Fields]
    ) -> FastAnswer:
        """Send requests together; returns the answer to the first. Measures the round trip."""
        await slot.move_to(target.host)
        asked = trio.current_time()
        answer, reused = await origin.get(
            b"".join(self._request(target, wanted) for wanted in requests), len(requests)
        )
        if reused:
            slot.link.answered(trio.current_time() - asked)
        return answer

    def _request(self, target: _Target, wanted: Fields) -> bytes:
        fields = self._client.fields(target.url, self._home) + wanted
        return http1.request(target.authority, target.path, fields)

    async def accepted(self, answer: FastAnswer) -> Answer | None:
        """``answer`` if it can be judged; None if the request must take the fallback path."""
        if answer.status in httprange.REDIRECTS:
            await answer.aclose()
            return None
        if answer.status == 206 and not answer.counted:
            await answer.aclose()
            log.info("%s: the server does not count the bytes of its answers", self.name)
            self._target = replace(self._target, origin=None)
            return None
        return answer

    async def _follow(self, slot: HttpSlot, url: str, wanted: Fields) -> Answer:
        """Follow redirects to the first other answer; its URL becomes the target if it is good."""
        for _ in range(MAX_REDIRECTS + 1):
            await slot.move_to(self._client.host(address.origin(url).host))
            fields = self._client.fields(url, self._home) + wanted
            answer = await self._client.ask_by_fallback(url, fields)
            target = httprange.redirect_target(self.name, url, answer.status, answer.headers)
            if target is None:
                if answer.status == 206 and url != self._target.url:
                    self._target = _Target.at(url, self._client)
                return answer
            await answer.aclose()
            if not self._client.may_follow(url, target):
                raise BadAnswer(
                    f"{self.name}: the server redirects from https to http",
                    "use --insecure-redirects if you trust the network",
                )
            url = address.bare(target)
        raise BadAnswer(f"{self.name}: more than {MAX_REDIRECTS} redirects", "check the URL")

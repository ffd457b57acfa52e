"""The HTTP client of a process: TLS, proxies, credentials, and what is known of servers."""

import logging
import math
import os
import ssl
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

import trio

from lazyfs.core import address
from lazyfs.core.errors import UsageError
from lazyfs.core.options import ServerOptions
from lazyfs.sources import httprange
from lazyfs.sources.credentials import Credentials
from lazyfs.sources.fastpath import FastOrigin
from lazyfs.sources.http1 import Fields
from lazyfs.sources.learned import AnswerLimit
from lazyfs.sources.proxies import proxy_of
from lazyfs.sources.slots import Host
from lazyfs.sources.tls import client_context

if TYPE_CHECKING:
    from lazyfs.sources.fallback import Fallback

log = logging.getLogger(__name__)

_RENEW_EVERY = 10.0  # seconds between two reloads of refused credentials


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
        self._fallback: Fallback | None = None  # until it is needed
        self._origins: dict[address.Origin, FastOrigin] = {}
        self._limits: dict[address.Origin, AnswerLimit] = {}
        self._hosts: dict[str, Host] = {}

    def host(self, name: str) -> Host:
        """The host of this name, whose ``connections`` slots all its images share."""
        if name not in self._hosts:
            options = self._options
            self._hosts[name] = Host(name, options.connections, self.patience, options.stall)
        return self._hosts[name]

    async def ask_by_fallback(self, url: str, fields: Fields) -> Answer:
        """Send a GET by the fallback path. Raises a SourceError."""
        if self._fallback is None:
            from lazyfs.sources.fallback import Fallback

            self._fallback = Fallback(self._tls_context, self._options.stall)
        known = self.host(address.origin(url).host)
        return await self._fallback.ask(url, fields, self._proxy(url), known)

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
        """The longest answer of this server, as far as it is known."""
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
        if self._fallback is not None:
            await self._fallback.aclose()

    def _proxy(self, url: str) -> str | None:
        return self._options.proxy or proxy_of(address.origin(url), os.environ)

    def _tls_context(self) -> ssl.SSLContext:
        if self._tls is None:
            self._tls = client_context(self._options)
        return self._tls

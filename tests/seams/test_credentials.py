"""Fields that come from files and programs, and what becomes of them when a server refuses us."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from fakes import noise, streams_of
from sites import Reply, Request, Site, response, serving

from lazyfs.core.device import Identity
from lazyfs.core.errors import AccessDenied, UsageError
from lazyfs.core.options import ServerOptions
from lazyfs.sources import credentials, httpclient
from lazyfs.sources.credentials import Credentials
from lazyfs.sources.http import HttpSource
from lazyfs.sources.httpclient import HttpClient

CONTENT = noise(1 << 16)
URL = "https://host/a.iso"


def sent(found: Credentials) -> list[tuple[str, str]]:
    return [field for field in found.fields(URL, URL) if field[0] != "User-Agent"]


def test_fields_come_from_the_user_from_files_and_from_a_program(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("# mine\nX-Two: 2\n")
    options = ServerOptions(
        headers=(("X-One", "1"),), header_files=(file,), header_command="echo X-Three: 3"
    )
    found = Credentials(options)
    assert sent(found) == [("X-One", "1"), ("X-Two", "2"), ("X-Three", "3")]
    assert found.fields("https://other/", URL) == [("User-Agent", "")]
    file.write_text("X-Two: two\n")
    assert sent(found)[1] == ("X-Two", "2")
    found.read()
    assert sent(found)[1] == ("X-Two", "two")


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("exit 3", "failed with exit code 3"),
        ("echo secret", "is no header field"),
        ("sleep 60", r"did not end within 0\.1 seconds"),
    ],
)
def test_a_program_that_does_not_do_its_work(
    command: str, complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(credentials, "PATIENCE", 0.1 if "sleep" in command else 10)
    with pytest.raises(UsageError, match=complaint) as caught:
        Credentials(ServerOptions(header_command=command))
    assert "secret" not in str(caught.value)


def test_files_that_cannot_be_used(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Credentials(ServerOptions(header_files=(tmp_path / "none",)))
    long = tmp_path / "long"
    long.write_text("X: y\n" * 20_000)
    with pytest.raises(UsageError, match="too long to hold headers"):
        Credentials(ServerOptions(header_files=(long,)))


def test_what_cannot_be_read_again_stays_as_it_was(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("X: 1")
    found = Credentials(ServerOptions(header_files=(file,)))
    file.unlink()
    with pytest.raises(UsageError):
        found.read()
    assert sent(found) == [("X", "1")]


@asynccontextmanager
async def source_at(site: Site, **options: Any) -> AsyncIterator[HttpSource]:
    client = HttpClient(ServerOptions(**options))
    try:
        yield HttpSource(client, site.url(), Identity(len(CONTENT), '"v1"'))
    finally:
        await client.aclose()


async def got(source: HttpSource, offset: int, length: int) -> bytes:
    with trio.fail_after(20):
        async with streams_of(source, [(offset, length)]) as (stream,), stream as pieces:
            return b"".join([bytes(piece) async for piece in pieces])


def wants(site: Site, token: str, status: int) -> None:
    """From now on the server serves who has this token."""

    def script(request: Request) -> Reply | None:
        right = request.fields.get("x-token") == token
        return None if right else Reply(response(status))

    site.script = script


@pytest.mark.parametrize("status", [401, 403])
async def test_an_expired_token_is_renewed_once_for_all_that_were_refused(
    tmp_path: Path, status: int
) -> None:
    token, runs = tmp_path / "token", tmp_path / "runs"
    token.write_text("1")
    command = f"echo X-Token: $(cat {token}); echo >>{runs}"
    async with serving(CONTENT) as site, source_at(site, header_command=command) as source:
        wants(site, "1", status)
        assert await got(source, 0, 100) == CONTENT[:100]
        token.write_text("2")
        wants(site, "2", status)
        ranges = [(0, 10), (5000, 10), (900, 10)]
        with trio.fail_after(20):
            async with streams_of(source, ranges) as streams:
                for stream, (offset, length) in zip(streams, ranges, strict=True):
                    async with stream as pieces:
                        content = b"".join([bytes(piece) async for piece in pieces])
                    assert content == CONTENT[offset : offset + length]
        assert runs.read_text() == "\n\n"


async def test_who_is_refused_with_a_new_token_too_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = tmp_path / "runs"
    command = f"echo X-Token: 1; echo >>{runs}"
    async with serving(CONTENT) as site, source_at(site, header_command=command) as source:
        wants(site, "2", 403)
        for _ in range(3):
            with pytest.raises(AccessDenied):
                await got(source, 0, 10)
        assert runs.read_text() == "\n\n", "it is not run for each refusal"
        monkeypatch.setattr(httpclient, "_RENEW_EVERY", 0.0)
        with pytest.raises(AccessDenied):
            await got(source, 0, 10)
        assert runs.read_text() == "\n\n\n"


async def test_a_renewal_that_fails_is_said(tmp_path: Path, expected_log: Any) -> None:
    expected_log("the login cannot be renewed: the headers in .* cannot be read")
    file = tmp_path / "token"
    file.write_text("X-Token: 1")
    async with serving(CONTENT) as site, source_at(site, header_files=(file,)) as source:
        file.unlink()
        wants(site, "2", 401)
        with pytest.raises(AccessDenied):
            await got(source, 0, 10)


async def test_without_anything_to_renew_a_refusal_stands(tmp_path: Path) -> None:
    async with serving(CONTENT) as site, source_at(site, headers=(("X-Token", "1"),)) as source:
        wants(site, "2", 401)
        with pytest.raises(AccessDenied):
            await got(source, 0, 10)
        assert len(site.requests) == 1


def test_a_program_that_hangs_is_to_be_tried_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PATIENCE", 0.1)
    with pytest.raises(UsageError) as caught:
        Credentials(ServerOptions(header_command="exec sleep 60"))
    assert str(caught.value) == (
        "the --header-command did not end within 0.1 seconds; try it by itself"
    )

"""Credentials and tokens go to the server that they are for, and nowhere else."""

import os
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest

from .mounts import Lab, Mounted, environment, mount_line, read, run
from .servers import Answer, Request, Scripted

USER, PASSWORD, TOKEN, SIGNATURE = "ursula", "geheim-4711", "token-0815", "signature-2342"
SECRETS = (PASSWORD, TOKEN, SIGNATURE)
BASIC = "Basic " + b64encode(f"{USER}:{PASSWORD}".encode()).decode()


def with_login(url: str) -> str:
    return url.replace("http://", f"http://{USER}:{PASSWORD}@")


def only_for(*expected: tuple[str, str]) -> object:
    """A behaviour: 401 for requests without these header fields."""

    def behaviour(request: Request) -> Answer | None:
        good = all(request.headers.get(name) == value for name, value in expected)
        return None if good else Answer(401)

    return behaviour


def everything_shown(mounted: Mounted) -> bytes:
    """All that others could see of a mount: process, mount table, files' names and contents."""
    process = Path(f"/proc/{mounted.pid}")
    shown = [
        (process / "cmdline").read_bytes(),
        (process / "comm").read_bytes(),
        mount_line(mounted.path).encode(),
        mounted.log.read_bytes(),
        repr({name: os.getxattr(mounted.image, name) for name in os.listxattr(mounted.image)})
        .encode(),
    ]  # fmt: skip
    for path in [mounted.cache, *mounted.cache.rglob("*")]:
        shown.append(os.fsencode(path))
        if path.is_file():
            shown.append(path.read_bytes())
    return b"\n".join(shown)


def test_nothing_secret_shows(lab: Lab, scripted: Scripted, content: bytes) -> None:
    scripted.behaviour = only_for(("authorization", BASIC), ("x-token", TOKEN))  # type: ignore[assignment]
    path = f"/image.raw?X-Signature={SIGNATURE}"
    scripted.files[path] = scripted.files["/image.raw"]
    url = with_login(scripted.url(path[1:]))
    with lab.mounted("-v", "--header", f"X-Token: {TOKEN}", url, troubled=True) as mounted:
        assert mounted.image.read_bytes() == content
        del scripted.files[path]
        scripted.files["/image.raw"].content = b""
        shown = everything_shown(mounted)
        assert b"image.raw" in shown
    for secret in SECRETS:
        assert secret.encode() not in shown
        assert secret not in mounted.messages()
        found = run(["grep", "-rla", secret, lab.directory], limit=20)
        assert (found.returncode, found.stdout) == (1, "")


def test_errors_hide_them_too(lab: Lab, scripted: Scripted) -> None:
    url = with_login(scripted.url(f"no.raw?sig={SIGNATURE}"))
    done = lab.start("-v", "--header", f"X-Token: {TOKEN}", "--no-cache", url, lab.mountpoint())
    assert done.returncode == 1
    assert "no.raw" in done.stderr
    for secret in SECRETS:
        assert secret not in done.stderr


def test_a_core_dump_would_hold_no_memory(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        dumped = Path(f"/proc/{mounted.pid}/coredump_filter").read_text()
        assert int(dumped, 16) == 0


def test_only_the_owner_may_read_the_cache(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted(scripted.url("image.raw")) as mounted:
        read(mounted.image, 0, 10)
        for path in [mounted.cache, *mounted.cache.rglob("*"), mounted.log]:
            assert path.stat().st_mode & 0o077 == 0, path


@pytest.fixture
def elsewhere(content: bytes) -> Iterator[Scripted]:
    """Another server that has the image too; it takes everybody."""
    with Scripted(**{"moved.raw": content}) as server:
        yield server


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_credentials_do_not_follow_to_another_server(
    lab: Lab, scripted: Scripted, elsewhere: Scripted, content: bytes, host: str, status: int
) -> None:
    """Another port of the same host is another server."""
    target = elsewhere.url("moved.raw", host)
    scripted.behaviour = lambda _: Answer(status, {"Location": target})
    url = with_login(scripted.url("image.raw"))
    options = ["--header", f"X-Token: {TOKEN}", "--header", f"Cookie: c={TOKEN}"]
    with lab.mounted(*options, url) as mounted:
        assert mounted.image.read_bytes() == content
    assert scripted.requests[0].headers["authorization"] == BASIC
    assert scripted.requests[0].headers["x-token"] == TOKEN
    opening = all(request.opens for request in scripted.requests)
    assert opening, "after that the redirect is remembered"
    assert len(elsewhere.requests) > 1
    for request in elsewhere.requests:
        assert {"authorization", "x-token", "cookie"}.isdisjoint(request.headers)


def test_credentials_follow_on_the_same_server(
    lab: Lab, scripted: Scripted, content: bytes
) -> None:
    scripted.files["/moved.raw"] = scripted.files["/image.raw"]

    def behaviour(request: Request) -> Answer | None:
        if request.path == "/image.raw":
            return Answer(302, {"Location": "/moved.raw"})
        return None if request.headers.get("authorization") == BASIC else Answer(401)

    scripted.behaviour = behaviour
    with lab.mounted(with_login(scripted.url("image.raw"))) as mounted:
        assert mounted.image.read_bytes() == content


def test_a_login_in_a_redirect_is_not_logged(
    lab: Lab, scripted: Scripted, elsewhere: Scripted, content: bytes
) -> None:
    target = with_login(elsewhere.url("moved.raw")) + f"?sig={SIGNATURE}"
    elsewhere.files[f"/moved.raw?sig={SIGNATURE}"] = elsewhere.files["/moved.raw"]
    scripted.behaviour = lambda _: Answer(302, {"Location": target})
    with lab.mounted("-v", scripted.url("image.raw")) as mounted:
        assert mounted.image.read_bytes() == content
        shown = everything_shown(mounted)
    for secret in SECRETS:
        assert secret.encode() not in shown


def test_netrc(lab: Lab, scripted: Scripted, content: bytes) -> None:
    netrc = lab.home / ".netrc"
    netrc.write_text(f"machine 127.0.0.1 login {USER} password {PASSWORD}\n")
    netrc.chmod(0o600)
    scripted.behaviour = only_for(("authorization", BASIC))  # type: ignore[assignment]
    url = scripted.url("image.raw")
    assert lab.start("--no-cache", url, lab.mountpoint()).returncode == 1
    with lab.mounted("-v", "--netrc", url) as mounted:
        assert mounted.image.read_bytes() == content
        assert PASSWORD.encode() not in everything_shown(mounted)


def test_netrc_is_missing(lab: Lab, scripted: Scripted) -> None:
    done = lab.start("--netrc", scripted.url("image.raw"), lab.mountpoint())
    assert done.returncode == 2
    assert "there is no ~/.netrc" in done.stderr


def test_a_login_for_one_host_is_not_used_for_another(
    lab: Lab, scripted: Scripted, elsewhere: Scripted, content: bytes
) -> None:
    """Each image of a mount has its own."""
    first, second = with_login(scripted.url("image.raw")), elsewhere.url("moved.raw")
    with lab.mounted(first, second) as mounted:
        assert (mounted.path / "moved.raw").read_bytes() == content
        assert (mounted.path / "image.raw").read_bytes() == content
    assert all(request.headers["authorization"] == BASIC for request in scripted.requests)
    assert all("authorization" not in request.headers for request in elsewhere.requests)


def test_a_user_agent_of_ones_own(lab: Lab, scripted: Scripted) -> None:
    with lab.mounted("--user-agent", "something else", scripted.url("image.raw")) as mounted:
        read(mounted.image, 0, 10)
    assert {request.headers["user-agent"] for request in scripted.requests} == {"something else"}


def test_a_proxy(lab: Lab, scripted: Scripted, content: bytes) -> None:
    """The proxy gets the whole URL, and the login meant for the server behind it."""
    scripted.files["http://host.invalid/image.raw"] = scripted.files["/image.raw"]
    proxy = scripted.url("")
    with lab.mounted("--proxy", proxy, "http://host.invalid/image.raw") as mounted:
        assert mounted.image.read_bytes() == content
    env = environment(lab.home, http_proxy=proxy)
    with lab.mounted(
        "http://host.invalid/image.raw", cache=lab.directory / "2", env=env
    ) as mounted:
        assert mounted.image.read_bytes() == content

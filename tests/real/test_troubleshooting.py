"""Each message of docs/troubleshooting.rst is what lazyfs says when that happens."""

import os
import re
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from docutils import nodes

from .blocks import ROOT, tree_of
from .mounts import (
    LAZYFS,
    Lab,
    Mounted,
    ReadFailed,
    environment,
    loop_device,
    need_loop,
    need_tool,
    read,
    run,
    run_well,
    start_reading,
)
from .servers import Answer, Certificates, Request, Scripted, WithoutRanges
from .waiting import eventually

DOCUMENT = ROOT / "docs/troubleshooting.rst"
NAME = "disk.raw"
MIB = 1 << 20


def messages() -> dict[str, str]:
    """What stands in the document, by the names of its blocks."""
    blocks = tree_of(DOCUMENT).findall(nodes.literal_block)
    return {block["names"][0]: block.astext() for block in blocks}


def is_said_in(message: str, seen: str) -> bool:
    """Whether a message, which the document may break into lines, is somewhere in ``seen``."""
    parts = (r"\s+".join(map(re.escape, part.split())) for part in message.split("..."))
    return re.search(r"\s*[^\n]*?\s*".join(parts), seen) is not None


class Scene:
    """A server with an image, where that is mounted, and the message that is to come."""

    def __init__(self, lab: Lab, server: Scripted, message: str) -> None:
        self.lab = lab
        self.server = server
        self.image = server.files[f"/{NAME}"]
        self.url = server.url(NAME)
        self.at = lab.mountpoint()
        self._message = message

    def fails(self, *options: str | Path) -> str:
        """What the command says that mounts the image, which must fail."""
        done = self.lab.start(*options, "--cache-dir", self.lab.cache, self.url, self.at)
        assert done.returncode == 1
        return self.told(done.stderr)

    def told(self, text: str) -> str:
        """``text`` in the words of the document."""
        text = text.replace(self.url, f"https://host/{NAME}")
        return text.replace(str(self.at), "/mnt/img")

    def use_once(self, *options: str) -> None:
        """Mount the image, read a little, and unmount it."""
        with self.lab.mounted(*options, self.url) as mounted:
            read(mounted.image, 0, 4096)

    def warns(self, *options: str, reading: int | None = None) -> str:
        """What is said when the image is mounted, and read at ``reading``."""
        with self.lab.mounted(*options, self.url, at=self.at, troubled=True) as mounted:
            if reading is not None:
                _try_to_read(mounted, reading)
            return self.logged(mounted)

    def logged(self, mounted: Mounted) -> str:
        """What was said of a mount, as soon as the message is in it, or after a while."""

        def said() -> str:
            return self.told(mounted.said + mounted.messages())

        eventually(lambda: is_said_in(self._message, said()), said() or "something is said", 20)
        return said()


def _try_to_read(mounted: Mounted, offset: int) -> None:
    try:
        read(mounted.image, offset, 4096)
    except ReadFailed:
        return


# The command fails

Provocation = Callable[[Scene], str]


def answer(status: int) -> Provocation:
    def provoke(scene: Scene) -> str:
        scene.server.behaviour = lambda _: Answer(status)
        return scene.fails()

    return provoke


def no_ranges(scene: Scene) -> str:
    (scene.lab.directory / NAME).write_bytes(scene.image.content)
    with WithoutRanges(scene.lab.directory) as server:
        scene.url = server.url(NAME)
        return scene.fails()


def compressed(scene: Scene) -> str:
    def behaviour(request: Request) -> Answer:
        right = scene.server.right_answer(request)
        right.headers["Content-Encoding"] = "gzip"
        return right

    scene.server.behaviour = behaviour
    return scene.fails()


def refused(scene: Scene) -> str:
    scene.server.stop()
    return scene.fails()


def no_such_host(scene: Scene) -> str:
    scene.url = f"https://host.invalid/{NAME}"
    return scene.fails().replace("https://host/", "https://host.invalid/")


def proxy_refuses(scene: Scene) -> str:
    """The server knows no CONNECT."""
    scene.url = f"https://host.invalid/{NAME}"
    return scene.fails("--proxy", scene.server.url(""))


def speak_tls(scene: Scene) -> None:
    scene.server.stop()
    scene.server.tls = Certificates(scene.lab.directory).server()
    scene.server.start()
    scene.url = scene.server.url(NAME)


def untrusted(scene: Scene) -> str:
    speak_tls(scene)
    return scene.fails()


def no_tls(scene: Scene) -> str:
    scene.url = scene.url.replace("http://", "https://")
    return scene.fails()


def downgrade(scene: Scene) -> str:
    elsewhere = Answer(302, {"Location": scene.url})
    speak_tls(scene)
    scene.server.behaviour = lambda _: elsewhere
    return scene.fails("--insecure")


def no_mount_point(scene: Scene) -> str:
    scene.at.rmdir()
    return scene.fails()


def mounted_already(scene: Scene) -> str:
    with scene.lab.mounted(scene.url, at=scene.at):
        return scene.fails()


def dead_mount(scene: Scene) -> str:
    with scene.lab.mounted(scene.url, at=scene.at) as mounted:
        mounted.signal(signal.SIGKILL)
        mounted.wait_until_ended()
        return scene.fails()


def no_fuse(scene: Scene) -> str:
    lazyfs = shlex.join([*LAZYFS, scene.url, str(scene.at)])
    script = f"mount -t tmpfs none /dev && exec {lazyfs}"
    return run(["unshare", "--mount", "sh", "-c", script], env=environment(scene.lab.home)).stderr


def cache_in_use(scene: Scene) -> str:
    with scene.lab.mounted(scene.url):
        return scene.fails()


def cache_unusable(scene: Scene) -> str:
    scene.lab.cache.touch()
    return scene.fails()


def cache_of_others(scene: Scene) -> str:
    scene.lab.cache.mkdir()
    scene.lab.cache.chmod(0o777)
    return scene.fails()


def kept_version(scene: Scene) -> str:
    scene.use_once()
    scene.image.etag = '"v2"'
    return scene.fails("--on-change", "fail")


# Warnings at the start


def from_the_cache(scene: Scene) -> str:
    scene.use_once()
    scene.server.stop()
    return scene.warns()


def no_validator(scene: Scene) -> str:
    scene.image.etag = scene.image.last_modified = None
    return scene.warns()


def new_version(scene: Scene) -> str:
    scene.use_once()
    scene.image.etag = '"v2"'
    return scene.warns()


def other_profile(scene: Scene) -> str:
    profile = str(scene.lab.directory / "profile")
    scene.use_once("--record", profile)
    scene.image.etag = '"v2"'
    return scene.warns("--profile", profile)


def no_match(scene: Scene) -> str:
    tree, iso = scene.lab.directory / "tree", scene.lab.directory / "iso"
    (tree / "live").mkdir(parents=True)
    maker = need_tool("xorriso", "xorriso")
    run_well([maker, "-as", "mkisofs", "-quiet", "-R", "-o", iso, tree])
    scene.image.content = iso.read_bytes()
    return scene.warns("--preload", "nothing/*")


def block_size(scene: Scene) -> str:
    scene.use_once()
    return scene.warns("--block-size", "64K")


# Reads fail, or nearly


def timed_out(scene: Scene) -> str:
    with scene.lab.mounted("--timeout", "1", scene.url, at=scene.at, troubled=True) as mounted:
        scene.server.stop()
        _try_to_read(mounted, MIB)
        return scene.logged(mounted)


def changed(scene: Scene) -> str:
    with scene.lab.mounted(scene.url, at=scene.at, troubled=True) as mounted:
        scene.image.etag = '"v2"'
        _try_to_read(mounted, MIB)
        return scene.logged(mounted)


def expired(scene: Scene) -> str:
    scene.server.behaviour = lambda request: None if request.opens else Answer(403)
    return scene.warns(reading=MIB)


def other_range(scene: Scene) -> str:
    def behaviour(request: Request) -> Answer | None:
        if request.opens:
            return None
        assert request.span
        first, last = request.span
        moved = {"range": f"bytes={first + 1}-{last + 1}"}
        return scene.server.right_answer(Request(request.path, moved))

    scene.server.behaviour = behaviour
    return scene.warns(reading=MIB)


def damaged(scene: Scene) -> str:
    scene.use_once()
    (data,) = scene.lab.cache.glob("*/data")
    with data.open("r+b") as file:
        file.write(b"rotten")
    return scene.warns(reading=0)


def disk_full(scene: Scene) -> str:
    return scene.warns("--min-free", "1000T", reading=MIB)


def fill_stops(scene: Scene) -> str:
    scene.image.content = os.urandom(20 * MIB)
    return scene.warns("--fill", "--cache-size", "16M")


def status_in_trouble(scene: Scene) -> str:
    with scene.lab.mounted(scene.url, at=scene.at, troubled=True) as mounted:
        scene.server.stop()
        with start_reading(mounted.image, MIB, 4096) as reader:
            said = [""]

            def is_in_trouble() -> bool:
                said[0] = scene.lab.start("status", scene.at).stdout
                return "trouble" in said[0]

            eventually(is_in_trouble, "status tells of it")
            reader.kill()
        return said[0]


# It cannot be unmounted


def in_use(scene: Scene) -> str:
    with scene.lab.mounted(scene.url, at=scene.at) as mounted, mounted.image.open("rb"):
        return scene.told(scene.lab.start("umount", scene.at).stderr)


def in_use_by_loop(scene: Scene) -> str:
    need_loop()
    with scene.lab.mounted(scene.url, at=scene.at) as mounted, loop_device(mounted.image):
        return scene.told(scene.lab.start("umount", scene.at).stderr)


def not_ending(scene: Scene) -> str:
    need_loop()
    with (
        scene.lab.mounted(scene.url, at=scene.at, troubled=True) as mounted,
        loop_device(mounted.image),
    ):
        mounted.signal(signal.SIGTERM)
        return scene.logged(mounted)


PROVOCATIONS: dict[str, Provocation] = {
    "status-in-trouble": status_in_trouble,
    "no-ranges": no_ranges,
    "compressed": compressed,
    "wants-a-login": answer(401),
    "forbidden": answer(403),
    "not-found": answer(404),
    "refused": refused,
    "no-such-host": no_such_host,
    "busy": answer(503),
    "proxy-refuses": proxy_refuses,
    "untrusted": untrusted,
    "no-tls": no_tls,
    "downgrade": downgrade,
    "no-mount-point": no_mount_point,
    "mounted-already": mounted_already,
    "dead-mount": dead_mount,
    "no-fuse": no_fuse,
    "cache-in-use": cache_in_use,
    "cache-unusable": cache_unusable,
    "cache-of-others": cache_of_others,
    "kept-version": kept_version,
    "from-the-cache": from_the_cache,
    "no-validator": no_validator,
    "new-version": new_version,
    "other-profile": other_profile,
    "no-match": no_match,
    "block-size": block_size,
    "timed-out": timed_out,
    "changed": changed,
    "expired": expired,
    "other-range": other_range,
    "damaged": damaged,
    "disk-full": disk_full,
    "fill-stops": fill_stops,
    "in-use": in_use,
    "in-use-by-loop": in_use_by_loop,
    "not-ending": not_ending,
}


@pytest.fixture
def server() -> Iterator[Scripted]:
    with Scripted(**{NAME: os.urandom(2 * MIB)}) as server:
        yield server


def test_every_message_of_the_document_is_provoked() -> None:
    assert list(messages()) == list(PROVOCATIONS)


def test_a_message_that_is_not_said_is_not_found() -> None:
    assert is_said_in("no ... for\nyou", "lazyfs: no data for you; wait")
    assert not is_said_in("no ... for you", "lazyfs: no data\nfor me; wait")


@pytest.mark.parametrize("name", PROVOCATIONS)
def test_the_message_is_what_lazyfs_says(lab: Lab, server: Scripted, name: str) -> None:
    message = messages()[name]
    seen = PROVOCATIONS[name](Scene(lab, server, message))
    assert is_said_in(message, seen), seen

"""An attached device, and a kernel that is played: it says what Linux would say."""

import errno
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from dataclasses import replace

import pytest
import trio
from fakes import RecordingDevice, noise

from lazyfs.cli.main import main
from lazyfs.core.device import Identity
from lazyfs.core.errors import DeviceError, Unreachable
from lazyfs.frontends.nbdcontrol import index_of, offered, was_taken
from lazyfs.frontends.nbdkernel import KernelDevice, backend_id
from lazyfs.protocols.nbd import COMPACT_REQUEST, REQUEST, SIMPLE_HEAD, SIMPLE_REPLY, Command

CONTENT = noise(200 * 512)


class PlayedLinks:
    """Tells of dead connections when the kernel says so."""

    def __init__(self) -> None:
        self.socket, self.kernel = socket.socketpair()
        self.socket.setblocking(False)

    def take(self) -> bool:
        try:
            return bool(self.socket.recv(1))
        except BlockingIOError:
            return False

    def close(self) -> None:
        self.socket.close()
        self.kernel.close()


class PlayedKernel:
    """The kernel with one device; ``end`` is its end of the connection."""

    def __init__(self) -> None:
        self.links = PlayedLinks()
        self.end: trio.SocketStream | None = None
        self.alive = True  # whether it holds a connection
        self.renewed = trio.Event()
        self.offers = 0

    def connect(self, index: int | None, setup: object, kernels: socket.socket) -> int:
        self._keep(kernels)
        return 3 if index is None else index

    def reconfigure(self, index: int, backend: str, kernels: socket.socket) -> None:
        self.offers += 1
        if not self.alive:
            self.alive = True
            self._keep(kernels)
            trio.from_thread.run_sync(self.renewed.set)

    def dead_links(self, index: int) -> PlayedLinks:
        return self.links

    def lose_connection(self) -> None:
        self.alive = False
        assert self.end is not None
        self.end.socket.close()
        self.links.kernel.send(b"!")

    async def ask(self, command: Command, offset: int = 0, length: int = 0) -> None:
        assert self.end is not None
        raw = COMPACT_REQUEST.pack(REQUEST, 0, command, 77, offset, length)
        await self.end.send_all(raw)

    async def receive(self, count: int) -> bytes:
        """So many bytes; fewer when the connection ends before."""
        assert self.end is not None
        received = b""
        while len(received) < count and (piece := await self.end.receive_some(count)):
            received += piece
        return received

    async def read(self, offset: int, length: int) -> bytes:
        await self.ask(Command.READ, offset, length)
        head = SIMPLE_HEAD.unpack(await self.receive(SIMPLE_HEAD.size))
        assert head == (SIMPLE_REPLY, 0, 77)
        return await self.receive(length)

    def _keep(self, kernels: socket.socket) -> None:
        self.end = trio.SocketStream(trio.socket.from_stdlib_socket(kernels.dup()))

    def close(self) -> None:
        self.links.close()
        if self.end is not None:
            self.end.socket.close()


class WaitingDevice(RecordingDevice):
    """Reads wait for ever."""

    def __init__(self, content: bytes) -> None:
        super().__init__(content)
        self.asked = trio.Event()

    def cached(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, False)]

    async def read(self, offset: int, length: int) -> bytes:
        self.asked.set()
        await trio.sleep_forever()
        raise AssertionError


class FailingDevice(WaitingDevice):
    async def read(self, offset: int, length: int) -> bytes:
        raise Unreachable("img: no answer")


class QuickDevice(RecordingDevice):
    def cached(self, offset: int, length: int) -> list[tuple[int, bool]]:
        return [(length, True)]


@asynccontextmanager
async def attached(
    image: RecordingDevice, then: Callable[[], None] = lambda: None
) -> AsyncIterator[tuple[PlayedKernel, trio.CancelScope]]:
    """An attached image that is served; ``then`` is called when that ends."""
    kernel = PlayedKernel()
    device = KernelDevice.attach(kernel, None, image, "img", 300)  # type: ignore[arg-type]
    try:
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope()

            async def serve() -> None:
                with scope:
                    await device.run(image)
                then()

            nursery.start_soon(serve)
            with trio.fail_after(20):
                yield kernel, scope
                nursery.cancel_scope.cancel()
    finally:
        device.close()
        kernel.close()


async def test_the_kernel_is_answered_until_it_says_goodbye() -> None:
    ended = trio.Event()
    async with attached(QuickDevice(CONTENT), ended.set) as (kernel, _):
        assert await kernel.read(512, 4096) == CONTENT[512:4608]
        assert await kernel.read(0, 102_400) == CONTENT[:102_400]
        assert not ended.is_set()
        await kernel.ask(Command.DISC)
        await ended.wait()
    assert kernel.offers == 0


async def test_a_read_that_fails_is_an_input_output_error() -> None:
    async with attached(FailingDevice(CONTENT)) as (kernel, _):
        await kernel.ask(Command.READ, 0, 512)
        head = SIMPLE_HEAD.unpack(await kernel.receive(SIMPLE_HEAD.size))
        assert head == (SIMPLE_REPLY, errno.EIO, 77)


async def test_a_connection_that_dies_without_goodbye_is_replaced(
    expected_log: Callable[..., None],
) -> None:
    expected_log("/dev/nbd3: the connection died")
    async with attached(QuickDevice(CONTENT)) as (kernel, _):
        await kernel.read(0, 512)
        kernel.lose_connection()
        await kernel.renewed.wait()
        assert await kernel.read(1024, 512) == CONTENT[1024:1536]
    assert kernel.offers == 1


async def test_what_is_under_way_at_the_end_is_not_answered_with_an_error() -> None:
    """So that whoever takes the device over is asked again."""
    image = WaitingDevice(CONTENT)
    async with attached(image) as (kernel, scope):
        await kernel.ask(Command.READ, 0, 512)
        await image.asked.wait()
        scope.cancel()
        assert await kernel.receive(1) == b""


async def test_bytes_that_fill_no_sector_are_not_shown_and_that_is_said(
    expected_log: Callable[..., None],
) -> None:
    expected_log("the last 160 bytes of the image cannot be seen")
    with closing(PlayedKernel()) as kernel:
        image = RecordingDevice(CONTENT + bytes(160))
        KernelDevice.attach(kernel, 5, image, "img", 300).close()  # type: ignore[arg-type]


def test_an_image_without_a_whole_sector_is_refused() -> None:
    with closing(PlayedKernel()) as kernel, pytest.raises(DeviceError, match="100 bytes is too"):
        KernelDevice.attach(kernel, None, RecordingDevice(bytes(100)), "img", 300)  # type: ignore[arg-type]


def test_an_image_is_known_again_and_told_from_its_other_versions() -> None:
    identity = Identity(1000, '"v1"', "Mon, 06 Jan 2025 10:00:00 GMT")
    others = [
        replace(identity, size=1001),
        replace(identity, etag='"v2"'),
        replace(identity, last_modified=None),
    ]
    known = backend_id(identity, "img")
    assert known == backend_id(replace(identity), "img")
    assert len({known, backend_id(identity, "other"), *(backend_id(o, "img") for o in others)}) == 5


def test_a_connection_that_the_kernel_did_not_take_is_seen_to_be_closed() -> None:
    with offered() as (ours, kernels):
        kept = kernels.dup()
    assert was_taken(ours)
    kept.close()
    assert not was_taken(ours)
    ours.close()


@pytest.mark.parametrize("device", ["/dev/sda", "/dev/nbd", "/dev/nbd0p1", "nbd0", "/dev/nbd007"])
def test_what_is_no_nbd_device_is_refused(device: str) -> None:
    with pytest.raises(DeviceError, match="is not an NBD device"):
        index_of(device)
    assert index_of("/dev/nbd15") == 15


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["http://host/a", "http://host/b"], "one URL is needed"),
        (["/dev/nbd0"], "one URL is needed"),
        (["http://host/a", "/dev/nbd0", "/dev/nbd1"], "at most one device"),
        (["--repair", "http://host/a"], "--repair must know which device"),
        (["--dead-timeout", "0", "http://host/a"], "cannot be waited for"),
        (["--dead-timeout", "8d", "http://host/a"], "cannot be waited for"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    arguments: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["attach", *arguments]) == 2
    assert says in capsys.readouterr().err

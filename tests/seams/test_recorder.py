"""What is read is written down: in order, now and then, and once more in the end."""

import logging
import os
import shutil
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
import trio.testing
from fakes import RecordingDevice, noise

from lazyfs.core.device import Identity, Priority, Statistics
from lazyfs.core.errors import ProfileError, ReadTimeout
from lazyfs.core.ranges import Span
from lazyfs.prefetch.profile import Profile, Use, parse
from lazyfs.prefetch.recorder import SAVE_EVERY, Recorder

URL = "https://host/a.iso"
CONTENT = noise(100_000)
IDENTITY = Identity(len(CONTENT), '"v1"', "Mon, 06 Jan 2025 10:00:00 GMT")


@pytest.fixture
def below() -> RecordingDevice:
    device = RecordingDevice(CONTENT)
    device.identity = IDENTITY
    return device


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "a.profile"


@pytest.fixture
def older(file: Path) -> Path:
    """A file in which there is something else."""
    file.write_text("an older one")
    return file


@asynccontextmanager
async def running(recorder: Recorder) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(recorder.run)
        yield
        nursery.cancel_scope.cancel()


async def recording(below: RecordingDevice, file: Path) -> Recorder:
    """One that writes to ``file``."""
    recorder = Recorder(below, URL)
    await recorder.record_to(file)
    return recorder


def profile_in(file: Path) -> Profile:
    return parse(file.read_text())


def written(file: Path) -> tuple[Use, ...]:
    return profile_in(file).uses


async def test_what_was_read_is_in_the_file_with_its_time(
    below: RecordingDevice, file: Path, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = await recording(below, file)
    async with running(recorder):
        assert await recorder.read(5000, 100) == CONTENT[5000:5100]
        await trio.sleep(2.5)
        assert await recorder.read(0, 10) == CONTENT[:10]
        await recorder.read(5050, 100)
    found = profile_in(file)
    assert (found.url, found.identity) == (URL, IDENTITY)
    assert found.uses == (
        Use(0.0, Span(5000, 5100)),
        Use(2.5, Span(0, 10)),
        Use(2.5, Span(5100, 5150)),
    )


async def test_what_a_hint_brings_is_not_what_was_read(below: RecordingDevice, file: Path) -> None:
    recorder = await recording(below, file)
    async with running(recorder):
        await recorder.ensure(0, 5000, Priority.READAHEAD)
    assert below.calls == [("ensure", 0, 5000, Priority.READAHEAD)]
    assert written(file) == ()


async def test_only_bytes_of_the_image_are_written_down(below: RecordingDevice, file: Path) -> None:
    recorder = await recording(below, file)
    async with running(recorder):
        assert await recorder.read(len(CONTENT) - 10, 4096) == CONTENT[-10:]
        assert await recorder.read(len(CONTENT) + 10, 4096) == b""
    assert [use.span for use in written(file)] == [Span(len(CONTENT) - 10, len(CONTENT))]


async def test_a_read_that_fails_was_wanted_all_the_same(file: Path) -> None:
    class Failing(RecordingDevice):
        async def read(self, offset: int, length: int) -> bytes:
            raise ReadTimeout("no data")

    recorder = await recording(Failing(CONTENT), file)
    async with running(recorder):
        with pytest.raises(ReadTimeout):
            await recorder.read(0, 10)
    assert [use.span for use in written(file)] == [Span(0, 10)]


async def test_it_is_saved_now_and_then(
    below: RecordingDevice, file: Path, autojump_clock: trio.testing.MockClock
) -> None:
    recorder = await recording(below, file)
    async with running(recorder):
        for number in range(1, 4):
            await recorder.read(number * 5000, 10)
            began = time.monotonic()  # a thread writes the file, and takes no part in the clock
            while not os.listdir(file.parent) or len(written(file)) < number:
                await trio.sleep(SAVE_EVERY / 10)
                await trio.to_thread.run_sync(time.sleep, 0.001)
                assert time.monotonic() - began < 30


async def test_a_file_that_was_there_is_replaced_whole(below: RecordingDevice, older: Path) -> None:
    recorder = await recording(below, older)
    async with running(recorder):
        await recorder.read(0, 10)
    assert len(written(older)) == 1
    assert os.listdir(older.parent) == [older.name]


async def test_a_place_that_cannot_be_written_is_said_and_fails_no_read(
    below: RecordingDevice,
    tmp_path: Path,
    expected_log: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    autojump_clock: trio.testing.MockClock,
) -> None:
    expected_log("ERROR: the profile .*/place/file cannot be written: No such file or directory")
    place = tmp_path / "place"
    place.mkdir()
    recorder = await recording(below, place / "file")
    shutil.rmtree(place)
    with caplog.at_level(logging.ERROR):
        async with running(recorder):
            await trio.sleep(20 * SAVE_EVERY)
            assert await recorder.read(0, 10) == CONTENT[:10]
    assert len(caplog.records) == 1


async def test_a_write_that_fails_leaves_nothing_behind(
    below: RecordingDevice, file: Path, expected_log: Callable[..., None]
) -> None:
    expected_log("ERROR: the profile .* cannot be written: Is a directory")
    recorder = await recording(below, file)
    os.remove(file)
    os.mkdir(file)
    async with running(recorder):
        await recorder.read(0, 10)
    assert os.listdir(file.parent) == [file.name]


async def test_the_rest_of_a_device_is_passed_through(below: RecordingDevice, file: Path) -> None:
    recorder = await recording(below, file)
    assert recorder.identity is IDENTITY
    assert recorder.link is below.link
    assert recorder.statistics() == Statistics(size=len(CONTENT), cached=7)
    await recorder.aclose()
    assert below.calls == [("aclose",)]


async def test_a_recording_can_begin_later_and_go_to_another_file(
    below: RecordingDevice, tmp_path: Path
) -> None:
    recorder = Recorder(below, URL)
    async with running(recorder):
        await recorder.read(0, 10)
        for name, offset in (("first", 100), ("second", 200)):
            await recorder.record_to(tmp_path / name)
            assert parse((tmp_path / name).read_text()).uses == ()
            await recorder.read(offset, 10)
        await recorder.record_to(None)
        await recorder.read(300, 10)
    assert recorder.file is None
    spans = [parse((tmp_path / name).read_text()).uses[0].span for name in ("first", "second")]
    assert spans == [Span(100, 110), Span(200, 210)]
    assert sorted(os.listdir(tmp_path)) == ["first", "second"]


async def test_a_file_that_cannot_be_written_leaves_a_recording_as_it_was(
    below: RecordingDevice, file: Path, tmp_path: Path
) -> None:
    recorder = await recording(below, file)
    async with running(recorder):
        with pytest.raises(ProfileError, match="no/such cannot be written: No such file"):
            await recorder.record_to(tmp_path / "no/such")
        assert recorder.file == file
        await recorder.read(0, 10)
    assert [use.span for use in written(file)] == [Span(0, 10)]

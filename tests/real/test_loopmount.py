"""``lazyfs loop``: one command mounts the filesystem in an image; the mount outlives the rest."""

import contextlib
import itertools
import mmap
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from lazyfs.daemon.handover import ExportedFile, LocalCopy, Outcome, hand_over
from lazyfs.sources.file import FileDevice

from .images import MIB, Images, listing
from .mounts import (
    COMMAND_LIMIT,
    LAZYFS,
    Lab,
    Mounted,
    daemon_of,
    environment,
    is_mounted,
    loop_device,
    mount_line,
    need_loop,
    need_tool,
    run,
    run_well,
    same_content,
)
from .servers import Nginx, Scripted, free_port
from .waiting import eventually

_LIMIT = 240.0  # seconds after which a mount is taken from under a test that hangs
_FILL_LIMIT = 120.0  # seconds for the fill of an image by the slow server

Listing = dict[str, tuple[str, str]]


@pytest.fixture(autouse=True)
def _need_loop() -> None:
    need_loop()


@pytest.fixture
def slow(images: Images) -> Iterator[Nginx]:
    """A server that takes some seconds for an image, so that much can happen meanwhile."""
    server = Nginx(images.root)
    server.rate = 8 * MIB
    with server:
        yield server


@dataclass
class Looped:
    """What ``lazyfs loop`` made: ``file`` is the image, as the loop device first stood on it."""

    path: Path
    device: Path
    file: Path
    daemon: Mounted

    def umount(self) -> None:
        """Unmount as users do, and wait for the daemon's end."""
        run_well(["umount", self.path])
        self.daemon.wait_until_ended()

    def leaves_nothing(self) -> bool:
        """Whether no mount, loop device, directory or process of it is left."""
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape")
        return not (
            is_mounted(self.path)
            or f" {self.file.parent} " in mounts
            or os.path.lexists(self.file.parent)
            or backing(self.device) == self.file
            or not self.daemon.has_ended()
        )

    def make_sure_it_ends(self) -> None:
        with contextlib.suppress(Exception):
            if is_mounted(self.path):
                run(["umount", self.path], limit=20)
        if not self.daemon.has_ended(20):
            self.daemon.take_away()
        if is_mounted(self.file.parent):
            run(["umount", "-l", self.file.parent], limit=20)
        with contextlib.suppress(FileNotFoundError):
            self.file.parent.rmdir()
        if backing(self.device) == self.file:
            run(["losetup", "--detach", self.device], limit=20)


@contextlib.contextmanager
def looped(
    lab: Lab, *arguments: str, at: Path | None = None, troubled: bool = False, says: str = ""
) -> Iterator[Looped]:
    """``lazyfs loop ARGUMENTS MOUNTPOINT``, mounted for as long as the block lasts.

    ``troubled``: the daemon may log warnings and errors; otherwise none is accepted. ``says``: what
    the command prints on stderr.
    """
    at = at or lab.mountpoint()
    log = lab.directory / f"loop-{at.name}.log"
    words = ["loop", *arguments, "--cache-dir", lab.cache, "--log-file", log, at]
    done = lab.start(*words)
    if "unknown filesystem type" in done.stderr:
        pytest.skip(f"this kernel cannot mount it: {done.stderr}")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", says)
    device = Path(mount_line(at).split(" ")[0])
    file = backing(device)
    assert file is not None
    mounted = Looped(at, device, file, Mounted(file.parent, lab.cache, log, daemon_of(at)))
    watchdog = threading.Timer(_LIMIT, mounted.daemon.take_away)
    watchdog.start()
    try:
        yield mounted
    finally:
        mounted.make_sure_it_ends()
        watchdog.cancel()
        watchdog.join()
        mounted.daemon.close()
    if not troubled:
        assert mounted.daemon.complaints() == []


def backing(device: Path) -> Path | None:
    """The file that a loop device stands on."""
    try:
        return Path(_loop_attribute(device, "backing_file"))
    except OSError:
        return None


def _loop_attribute(device: Path, name: str) -> str:
    return Path(f"/sys/block/{device.name}/loop/{name}").read_text().rstrip("\n")


def copy_of(lab: Lab) -> Path:
    """The cache file of the only image in the lab's cache."""
    (data,) = lab.cache.glob("*/data")
    return data


def processes_for(at: Path) -> list[str]:
    """Command lines that end with this mount point."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            words = entry.read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            if words.endswith(f" {at}"):
                found.append(words)
    return found


def loops_on(name: str) -> list[Path]:
    """Loop devices whose backing file has this name."""
    devices = [Path("/dev", entry.parent.name) for entry in Path("/sys/block").glob("loop*/loop")]
    return [device for device in devices if (file := backing(device)) and file.name == name]


class DirectReader:
    """Reads of a device that no cache of the kernel answers, compared with the original."""

    def __init__(self, device: Path, original: Path) -> None:
        self._original = original
        self._device = os.open(device, os.O_RDONLY | os.O_DIRECT)
        self._size = original.stat().st_size // 4096 * 4096

    def __enter__(self) -> "DirectReader":
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._device)

    def same(self, offset: int, length: int) -> bool:
        """Whether these bytes are right; both are multiples of 4096. Raises OSError."""
        with mmap.mmap(-1, length) as buffer, open(self._original, "rb") as original:
            count = os.preadv(self._device, [buffer], offset)
            original.seek(offset)
            return buffer[:count] == original.read(count) and count > 0

    def same_everywhere(self, step: int = MIB) -> bool:
        return all(self.same(at, min(step, self._size - at)) for at in range(0, self._size, step))


# One command


@pytest.mark.parametrize("kind", ["squashfs", "ext4", "erofs"])
def test_one_command_mounts_the_filesystem(
    lab: Lab, images: Images, nginx: Nginx, kind: str
) -> None:
    image: Path = getattr(images, kind)()
    with looped(lab, nginx.url(image.name)) as mounted:
        words = mount_line(mounted.path).split(" ")
        assert (words[2], words[3].split(",")[0]) == (kind, "ro")
        assert mounted.file.name == image.name
        assert _loop_attribute(mounted.device, "dio") == "1"
        queue = Path(f"/sys/block/{mounted.device.name}/queue/read_ahead_kb")
        assert int(queue.read_text()) >= 1024
        assert Path(f"/sys/block/{mounted.device.name}/ro").read_text() == "1\n"
        assert listing(mounted.path) == listing(images.tree())


@pytest.mark.parametrize("command", ["umount", "lazyfs umount"])
def test_umount_leaves_nothing(lab: Lab, images: Images, nginx: Nginx, command: str) -> None:
    with looped(lab, nginx.url(images.squashfs().name)) as mounted:
        assert (mounted.path / "text").stat().st_size > 0
        if command == "umount":
            run_well(["umount", mounted.path])
        else:
            done = lab.start("umount", mounted.path)
            assert (done.returncode, done.stderr) == (0, "")
        mounted.daemon.wait_until_ended()
        assert mounted.leaves_nothing()
        assert processes_for(mounted.path) == []


def test_the_runtime_directory_is_for_root_alone(lab: Lab, images: Images, nginx: Nginx) -> None:
    with looped(lab, nginx.url(images.erofs().name)) as mounted:
        assert mounted.file.parent.parent.stat().st_mode & 0o077 == 0


def test_a_busy_filesystem_is_not_unmounted(lab: Lab, images: Images, nginx: Nginx) -> None:
    with looped(lab, nginx.url(images.erofs().name)) as mounted:
        with open(mounted.path / "text"):
            done = lab.start("umount", mounted.path)
        assert done.returncode == 1
        assert "busy" in done.stderr
        assert done.stderr.count("\n") == 1
        assert (mounted.path / "text").read_text() == (images.tree() / "text").read_text()


def test_type_and_options(lab: Lab, images: Images, nginx: Nginx) -> None:
    words = ["-t", "erofs", "-o", "nodev,noexec", "-o", "cache_strategy=disabled"]
    with looped(lab, *words, nginx.url(images.erofs().name)) as mounted:
        options = mount_line(mounted.path).split(" ")[3].split(",")
        assert {"ro", "nodev", "noexec", "cache_strategy=disabled"} <= set(options)


def test_sigterm_is_refused_while_it_is_mounted(lab: Lab, images: Images, nginx: Nginx) -> None:
    with looped(lab, nginx.url(images.squashfs().name), troubled=True) as mounted:
        mounted.daemon.signal(signal.SIGTERM)
        said = f"in use by {mounted.device}"
        eventually(lambda: said in mounted.daemon.messages(), "the daemon says so")
        assert not mounted.daemon.has_ended()
        assert listing(mounted.path) == listing(images.tree())
        mounted.umount()
        assert mounted.leaves_nothing()


# What cannot be mounted

# In a mount table of its own, so that what is left in lazyfs's directory can only be ours.
_WATCHED = """\
mkdir -p /run/lazyfs
mount -t tmpfs -o mode=755 none /run/lazyfs
before=$(cat /proc/self/mounts)
code=0
"$@" || code=$?
ls -A /run/lazyfs
grep -vxF -e "$before" /proc/self/mounts || true
exit $code
"""


def refused(lab: Lab, *arguments: str | Path, name: str, at: Path) -> str:
    """``lazyfs loop`` that must fail, and leave nothing; returns the one line that it says."""
    words = [*LAZYFS, "loop", "--cache-dir", lab.cache, *arguments, at]
    command = ["unshare", "--mount", "sh", "-ec", _WATCHED, "sh", *words]
    done = run(command, env=environment(lab.home), cwd=lab.directory)
    assert (done.returncode, done.stdout) == (1, ""), done.stderr
    assert done.stderr.startswith("lazyfs: ")
    assert done.stderr.count("\n") == 1, done.stderr
    assert not is_mounted(at)
    assert processes_for(at) == []
    eventually(lambda: loops_on(name) == [], "no loop device is left", 20)
    return done.stderr


@pytest.fixture
def odd(scripted: Scripted, content: bytes) -> str:
    """The name of an image without any filesystem, which no other test uses."""
    name = f"odd-{os.getpid()}.raw"
    scripted.files[f"/{name}"] = Scripted(odd=content).files["/odd"]
    return name


@pytest.mark.parametrize("words", [[], ["-t", "ext4"], ["-t", "squashfs"], ["-o", "noload"]])
def test_an_image_without_a_filesystem(
    lab: Lab, scripted: Scripted, odd: str, words: list[str]
) -> None:
    said = refused(lab, *words, scripted.url(odd), name=odd, at=lab.mountpoint())
    assert "mount: " in said


@pytest.mark.parametrize("words", [["-t", "ext4"], ["-t", "erofs", "-o", "nonsense=1"]])
def test_another_filesystem_or_option_than_it_has(
    lab: Lab, images: Images, nginx: Nginx, words: list[str]
) -> None:
    name = f"loop-refused-{os.getpid()}.erofs"
    (images.root / name).symlink_to(images.erofs())
    try:
        said = refused(lab, *words, nginx.url(name), name=name, at=lab.mountpoint())
    finally:
        (images.root / name).unlink()
    assert "mount: " in said


def test_the_mount_point_is_missing(lab: Lab, scripted: Scripted, odd: str) -> None:
    at = lab.directory / "nothing"
    said = refused(lab, scripted.url(odd), name=odd, at=at)
    assert f"mkdir {at}" in said
    assert scripted.requests == []


def test_a_file_as_mount_point(lab: Lab, scripted: Scripted, odd: str) -> None:
    at = lab.directory / "file"
    at.touch()
    assert "is not a directory" in refused(lab, scripted.url(odd), name=odd, at=at)
    assert scripted.requests == []


def test_no_such_image(lab: Lab, scripted: Scripted) -> None:
    said = refused(lab, scripted.url("none.raw"), name="none.raw", at=lab.mountpoint())
    assert "no such file on the server" in said


def test_nobody_listens(lab: Lab) -> None:
    url = f"http://127.0.0.1:{free_port()}/gone.raw"
    said = refused(lab, url, name="gone.raw", at=lab.mountpoint())
    assert "cannot connect" in said


def test_only_root_may(lab: Lab, scripted: Scripted, odd: str) -> None:
    """The user may read everything, and so run this very lazyfs, but is not root."""
    reading = ["--inh-caps", "+dac_read_search", "--ambient-caps", "+dac_read_search"]
    words = [*LAZYFS, "loop", scripted.url(odd), lab.mountpoint()]
    done = run(["setpriv", "--reuid", "65534", *reading, *words], env=environment(lab.home))
    assert (done.returncode, done.stdout) == (1, "")
    assert "only root" in done.stderr
    assert done.stderr.count("\n") == 1
    assert scripted.requests == []


@pytest.mark.parametrize("words", [[], ["MNT"], ["http://host/a", "http://host/b", "MNT"]])
def test_wrong_usage(lab: Lab, words: list[str]) -> None:
    done = lab.start("loop", *words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1


# Hand-over


def keep_listing(path: Path, expected: Listing, stop: threading.Event) -> int:
    """Compare all files until told to stop; returns how often."""
    for count in itertools.count(1):
        assert listing(path) == expected
        if stop.is_set():
            return count
    raise AssertionError


def keep_reading(device: Path, original: Path, stop: threading.Event) -> int:
    """Compare the whole device, past the kernel's caches, until told to stop."""
    with DirectReader(device, original) as reader:
        for count in itertools.count(1):
            assert reader.same_everywhere()
            if stop.is_set():
                return count
    raise AssertionError


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_a_complete_image_is_handed_over_under_its_readers(
    lab: Lab, images: Images, slow: Nginx, kind: str
) -> None:
    image: Path = getattr(images, kind)()
    expected = listing(images.tree())
    stop = threading.Event()
    with (
        looped(lab, "--fill", slow.url(image.name)) as mounted,
        ThreadPoolExecutor(2) as pool,
    ):
        readers = [
            pool.submit(keep_listing, mounted.path, expected, stop),
            pool.submit(keep_reading, mounted.device, image, stop),
        ]
        try:
            mounted.daemon.wait_until_ended(_FILL_LIMIT)
        finally:
            stop.set()
        slow.stop()
        assert [reader.result(COMMAND_LIMIT) > 0 for reader in readers] == [True, True]
        assert backing(mounted.device) == copy_of(lab)
        assert not os.path.lexists(mounted.file.parent)
        assert is_mounted(mounted.path)
        assert keep_reading(mounted.device, image, stop) == 1
        assert listing(mounted.path) == expected
        assert f"{mounted.device} now stands on" in mounted.daemon.messages()
        done = lab.start("umount", mounted.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert mounted.leaves_nothing()
        eventually(lambda: backing(mounted.device) != copy_of(lab), "the device is free", 20)


def test_a_filesystem_that_would_not_survive_it_keeps_its_daemon(
    lab: Lab, images: Images, slow: Nginx
) -> None:
    """The kernel tells ext4 that its device is gone when the file under it changes."""
    image = images.ext4()
    with looped(lab, "--fill", slow.url(image.name), troubled=True) as mounted:
        done = "is complete"
        eventually(lambda: done in mounted.daemon.messages(), "it is complete", _FILL_LIMIT)
        slow.stop()
        assert listing(mounted.path) == listing(images.tree())
        mounted.umount()
        assert mounted.leaves_nothing()


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_an_image_complete_from_before_is_handed_over_at_once(
    lab: Lab, scripted: Scripted, kind: str
) -> None:
    image = small_image(lab, kind)
    scripted.files["/small"] = Scripted(small=image.read_bytes()).files["/small"]
    at = lab.mountpoint()
    with lab.mounted(scripted.url("small")) as filled:
        assert same_content(filled.image, image)
    done = lab.start("loop", "--cache-dir", lab.cache, scripted.url("small"), at)
    assert (done.returncode, done.stderr) == (0, "")
    try:
        device = Path(mount_line(at).split(" ")[0])
        eventually(lambda: backing(device) == copy_of(lab), "it stands on the copy", 20)
        eventually(lambda: processes_for(at) == [], "the daemon ends", 20)
        assert (at / "hello").read_text() == "hello\n"
    finally:
        run(["umount", at], limit=20)
        eventually(lambda: processes_for(at) == [], "the daemon ends", 20)


def small_image(lab: Lab, kind: str) -> Path:
    """A filesystem with one file."""
    tree = lab.directory / "small"
    tree.mkdir()
    (tree / "hello").write_text("hello\n")
    image = lab.directory / f"small.{kind}"
    if kind == "squashfs":
        run_well([need_tool("mksquashfs", "squashfs-tools"), tree, image, "-quiet"])
    else:
        run_well([need_tool("mkfs.erofs", "erofs-utils"), image, tree])
    return image


def test_a_loop_device_of_others_is_handed_over_too(lab: Lab, images: Images, slow: Nginx) -> None:
    """There the daemon stays: it was mounted for its file, which others may read."""
    image = images.squashfs()
    with (
        lab.mounted("--fill", slow.url(image.name)) as mounted,
        loop_device(mounted.image) as device,
    ):
        stop = threading.Event()
        with ThreadPoolExecutor(1) as pool:
            reader = pool.submit(keep_reading, device, image, stop)
            try:
                wait_for_copy(lab, device)
            finally:
                stop.set()
            slow.stop()
            assert reader.result(COMMAND_LIMIT) > 0
        assert not mounted.has_ended()
        assert same_content(mounted.image, image)
        assert keep_reading(device, image, stop) == 1


def test_a_filesystem_that_others_mounted_is_handed_over_too(
    lab: Lab, images: Images, slow: Nginx
) -> None:
    """``mount -o loop,ro`` on the file of an ordinary mount."""
    image = images.erofs()
    at = lab.mountpoint()
    with lab.mounted("--fill", slow.url(image.name)) as mounted:
        run_well(["mount", "-o", "loop,ro", mounted.image, at])
        try:
            wait_for_copy(lab, Path(mount_line(at).split(" ")[0]))
            slow.stop()
            assert listing(at) == listing(images.tree())
            assert not mounted.has_ended()
            assert same_content(mounted.image, image)
        finally:
            run(["umount", at], limit=20)


def test_a_loop_device_on_a_part_is_handed_over_too(lab: Lab, images: Images, slow: Nginx) -> None:
    """One with an offset and a limit, as for a partition."""
    image = images.erofs()
    with (
        lab.mounted("--fill", slow.url(image.name)) as mounted,
        loop_device(mounted.image) as plain,
    ):
        words = ["--read-only", "--offset", MIB, "--sizelimit", 4 * MIB, "--find", "--show"]
        part = Path(run_well(["losetup", *map(str, words), mounted.image]).strip())
        try:
            wait_for_copy(lab, plain)
            wait_for_copy(lab, part)
            assert part.read_bytes() == image.read_bytes()[MIB : 5 * MIB]
        finally:
            run_well(["losetup", "--detach", part])


def wait_for_copy(lab: Lab, device: Path) -> None:
    eventually(lambda: backing(device) == copy_of(lab), "it stands on the copy", _FILL_LIMIT)


def test_a_loop_device_that_comes_after_completion_is_handed_over(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    image = images.squashfs()
    with lab.mounted("--fill", nginx.url(image.name)) as mounted:
        eventually(lambda: mounted.cached() == image.stat().st_size, "it is complete", _FILL_LIMIT)
        for _ in range(2):
            with loop_device(mounted.image) as device:
                wait_for_copy(lab, device)
                assert same_content(device, image)


async def test_a_writable_loop_device_stays_where_it_is(
    tmp_path: Path, expected_log: Callable[..., None]
) -> None:
    """None can be made on a file of lazyfs; this one is on a plain file."""
    file, copy = tmp_path / "file", tmp_path / "copy"
    for path in (file, copy):
        path.write_bytes(b"x" * MIB)
    device = Path(run_well(["losetup", "--find", "--show", file]).strip())
    expected_log(f"WARNING: {device} stays on {file}: Invalid argument")

    try:
        on = os.stat(file).st_dev
        filesystem = f"{os.major(on)}:{os.minor(on)}"
        image = FileDevice(copy)
        (other,) = await hand_over(
            ExportedFile(image, LocalCopy(copy), file, "0:0")
        )  # a file of the same name
        assert other == Outcome(str(device), "it stands on something else")
        (outcome,) = await hand_over(ExportedFile(image, LocalCopy(copy), file, filesystem))
        assert outcome == Outcome(str(device), "Invalid argument")
        assert backing(device) == file
        assert run_well(["head", "-c", "4", device]) == "xxxx"
    finally:
        run_well(["losetup", "--detach", device])


def test_a_loop_device_on_the_file_is_never_writable(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    with lab.mounted(nginx.url(images.erofs().name)) as mounted:
        device = Path(run_well(["losetup", "--find", "--show", mounted.image]).strip())
        try:
            assert Path(f"/sys/block/{device.name}/ro").read_text() == "1\n"
        finally:
            run_well(["losetup", "--detach", device])


# Repair


def kill(mounted: Looped) -> None:
    mounted.daemon.signal(signal.SIGKILL)
    mounted.daemon.wait_until_ended()


def let_attributes_expire(mounted: Looped) -> None:
    """Until the kernel no longer knows the dead file's size by heart."""

    def forgotten() -> bool:
        try:
            os.stat(mounted.file)
        except OSError:
            return True
        return False

    with contextlib.suppress(AssertionError):  # it may well remember for ever
        eventually(forgotten, "the attributes expire", 3)


@pytest.mark.parametrize("kind", ["squashfs", "erofs"])
def test_repair_after_the_daemon_was_killed(
    lab: Lab, images: Images, nginx: Nginx, kind: str
) -> None:
    image: Path = getattr(images, kind)()
    url = nginx.url(image.name)
    with looped(lab, url, troubled=True) as mounted:
        text = (mounted.path / "text").read_text()
        kill(mounted)
        with looped(lab, "--repair", url, at=mounted.path) as repaired:
            assert repaired.device == mounted.device
            assert repaired.file != mounted.file
            assert not os.path.lexists(mounted.file.parent)
            assert (repaired.path / "text").read_text() == text
            assert listing(repaired.path) == listing(images.tree())
            repaired.umount()
            assert repaired.leaves_nothing()
            assert mounted.leaves_nothing()


def test_repair_with_a_reader_in_between(lab: Lab, images: Images, nginx: Nginx) -> None:
    """What a filesystem tried in vain is read again, where it keeps no failures (erofs)."""
    url = nginx.url(images.erofs().name)
    with looped(lab, url, troubled=True) as mounted:
        assert len(os.listdir(mounted.path)) > 10
        kill(mounted)
        let_attributes_expire(mounted)
        with pytest.raises(OSError, match="Input/output error"):
            (mounted.path / "size-31457280").read_bytes()
        with looped(lab, "--repair", url, at=mounted.path):
            assert listing(mounted.path) == listing(images.tree())


def test_repair_of_a_device_with_failed_reads(lab: Lab, images: Images, nginx: Nginx) -> None:
    """The device itself is whole again, whatever the filesystem on it remembers (squashfs)."""
    image = images.squashfs()
    url = nginx.url(image.name)
    with looped(lab, url, troubled=True) as mounted, DirectReader(mounted.device, image) as reader:
        assert reader.same(0, 4096)
        kill(mounted)
        let_attributes_expire(mounted)
        with pytest.raises(OSError, match="Input/output error"):
            reader.same(4 * MIB, 4096)
        with looped(lab, "--repair", url, at=mounted.path):
            assert reader.same(4 * MIB, 4096)
            assert reader.same_everywhere()


def test_repair_is_refused_where_the_kernel_would_shut_the_filesystem_down(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    url = nginx.url(images.ext4().name)
    with looped(lab, url, troubled=True) as mounted:
        kill(mounted)
        done = repair(lab, url, mounted.path)
        assert done[0] == 1, done
        assert "ext4" in done[1]
        assert "umount" in done[1]


def test_a_healthy_mount_needs_no_repair(lab: Lab, images: Images, nginx: Nginx) -> None:
    url = nginx.url(images.erofs().name)
    with looped(lab, url) as mounted:
        code, said = repair(lab, url, mounted.path)
        assert code == 1
        assert "needs no repair" in said
        assert backing(mounted.device) == mounted.file
        assert listing(mounted.path) == listing(images.tree())


def test_repair_with_another_image(lab: Lab, images: Images, nginx: Nginx) -> None:
    right, wrong = images.erofs(), images.squashfs()
    with looped(lab, nginx.url(right.name), troubled=True) as mounted:
        kill(mounted)
        before = set(Path("/run/lazyfs").iterdir())
        code, said = repair(lab, nginx.url(wrong.name), mounted.path)
        assert code == 1
        assert f"holds no cache of {nginx.url(wrong.name)}" in said
        assert loops_on(wrong.name) == []
        left = [path for path in set(Path("/run/lazyfs").iterdir()) - before if path.is_dir()]
        assert [path for path in left if (path / wrong.name).exists()] == []
        assert backing(mounted.device) == mounted.file
        with looped(lab, "--repair", nginx.url(right.name), at=mounted.path):
            assert listing(mounted.path) == listing(images.tree())


def test_repair_of_what_is_not_mounted(lab: Lab, scripted: Scripted) -> None:
    code, said = repair(lab, scripted.url("image.raw"), lab.mountpoint())
    assert code == 1
    assert "no loop device is mounted on" in said
    assert scripted.requests == []


def test_umount_after_the_daemon_was_killed_leaves_nothing(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    with looped(lab, nginx.url(images.squashfs().name), troubled=True) as mounted:
        kill(mounted)
        done = lab.start("umount", mounted.path)
        assert (done.returncode, done.stderr) == (0, "")
        assert mounted.leaves_nothing()


def repair(lab: Lab, url: str, at: Path) -> tuple[int, str]:
    """``lazyfs loop --repair`` that should fail: its exit code and its one line."""
    done = lab.start("loop", "--repair", "--cache-dir", lab.cache, url, at)
    assert done.stdout == ""
    assert done.stderr.count("\n") == (done.returncode != 0), done.stderr
    return done.returncode, done.stderr


# What a loop device stands on


def test_a_cache_that_a_loop_device_stands_on_is_neither_removed_nor_punched(
    lab: Lab, images: Images, nginx: Nginx
) -> None:
    """The daemon has ended by then, and does not hold its lock any more."""
    image = images.squashfs()
    with looped(lab, "--fill", nginx.url(image.name)) as mounted:
        wait_for_copy(lab, mounted.device)
        mounted.daemon.wait_until_ended()
        done = lab.start("cache", "rm", "--all", "--cache-dir", lab.cache)
        assert (done.returncode, done.stdout) == (0, "")
        done = lab.start("cache", "rm", image.name, "--cache-dir", lab.cache)
        assert done.returncode == 1
        assert "is in use by a loop device" in done.stderr
        with lab.mounted("--cache-size", "16M", nginx.url(image.name), troubled=True) as second:
            second.image.read_bytes()
            assert "a loop device stands on it" in second.messages() + second.said
        assert same_content(mounted.device, image)

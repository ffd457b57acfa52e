"""The steps of the tour, in order."""

import hashlib
import os
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from lazyfs.cli.tour import content, mounts, server
from lazyfs.cli.tour.interrupts import interruptible_once
from lazyfs.core.errors import InternalError, MountError
from lazyfs.core.options import format_size
from lazyfs.formats.iso.catalog import Catalog
from lazyfs.system import programs

_FILES_TO_READ = 5


class Audience(Protocol):
    """The observer of a tour's steps."""

    def begins(self, what: str) -> None:
        """A step begins: ``making an image``."""
        ...

    def done(self, what: str) -> None:
        """The last step is done: ``made an image``."""
        ...


@dataclass(frozen=True)
class Outcome:
    """The cost of the tour. Sizes are in bytes; ``seconds``: from mount to the last file read."""

    image_size: int
    sent: int
    requests: int
    cached: int
    seconds: float


def check_requirements() -> None:
    """Raise ToolMissing or MountError if the tour cannot run on this machine."""
    programs.find("mksquashfs")
    programs.find("fusermount3")
    if not Path("/dev/fuse").exists():
        raise MountError("/dev/fuse does not exist", "load the kernel module fuse: modprobe fuse")
    if not os.access("/dev/fuse", os.R_OK | os.W_OK):
        raise MountError("/dev/fuse may not be opened", "ask for access to it, or run this as root")


def give(audience: Audience) -> Outcome:
    """Run the tour, and clean up. Raises LazyfsError, OSError, KeyboardInterrupt."""
    check_requirements()
    with interruptible_once() as ignore_interrupts, ExitStack() as cleanup:
        try:
            outcome = _walk(audience, cleanup)
        finally:
            ignore_interrupts()
        audience.begins("cleaning up")
    audience.done("cleaned up: nothing is left behind")
    return outcome


def _walk(audience: Audience, cleanup: ExitStack) -> Outcome:
    """Run all steps but the last, the clean-up, which is collected in ``cleanup``."""
    scratch = tempfile.TemporaryDirectory(prefix="lazyfs-demo-", ignore_cleanup_errors=True)
    directory = Path(cleanup.enter_context(scratch)).resolve()
    places = {name: directory / name for name in ("image", "img", "squashfs", "cache")}
    for place in places.values():
        place.mkdir()

    audience.begins("making an image")
    made = content.build(places["image"])
    size = made.iso.stat().st_size
    count = len(made.in_squashfs)
    audience.done(f"made an ISO of {format_size(size)}, with a squashfs of {count} files in it")

    url, traffic = cleanup.enter_context(server.serve(made.iso))
    audience.done(f"serving it at {url}")

    audience.begins("mounting that URL")
    started = time.monotonic()
    log_file = directory / "log"
    mount = mounts.lazyfs_mounted(url, places["img"], places["cache"], log_file)
    cleanup.enter_context(mount)
    audience.done(f"mounted that URL on {places['img']}")

    image = places["img"] / made.iso.name
    audience.begins("reading")
    if mounts.can_loop_mount():
        _read_squashfs(audience, cleanup, made, image, places["squashfs"])
    else:
        _read_extents(audience, made, image)
    seconds = time.monotonic() - started
    # Read before the traffic: read-ahead may continue. Not st_blocks, which may be a second old.
    cached = int(os.getxattr(image, "user.lazyfs.cached"))
    return Outcome(size, traffic.sent, traffic.requests, cached, seconds)


def _read_squashfs(
    audience: Audience, cleanup: ExitStack, made: content.Content, image: Path, where: Path
) -> None:
    with image.open("rb") as file:
        extent = Catalog(file).extent(content.SQUASHFS)
    length, offset = format_size(extent.length), format_size(extent.offset)
    audience.done(f"found {content.SQUASHFS} in the ISO: {length}, from {offset} on")
    audience.begins("loop-mounting it")
    cleanup.enter_context(mounts.squashfs_mounted(image, extent, where))
    audience.done("loop-mounted that squashfs")
    _read_some(audience, made.in_squashfs, lambda name: (where / name).read_bytes())


def _read_extents(audience: Audience, made: content.Content, image: Path) -> None:
    with image.open("rb") as file:
        catalog = Catalog(file)
        audience.done(f"found {len(list(catalog.files()))} files in the ISO")

        def read(name: str) -> bytes:
            extent = catalog.extent(name)
            return os.pread(file.fileno(), extent.length, extent.offset)

        _read_some(audience, made.in_iso, read)


def _read_some(
    audience: Audience, checksums: content.Checksums, read: Callable[[str], bytes]
) -> None:
    """Read files from all over the tree and compare their checksums."""
    audience.begins("reading files")
    names = list(checksums)[:: len(checksums) // _FILES_TO_READ][:_FILES_TO_READ]
    total = 0
    for name in names:
        data = read(name)
        total += len(data)
        if hashlib.sha256(data).hexdigest() != checksums[name]:
            raise InternalError(f"{name} does not read as it was written")
    audience.done(f"read {len(names)} files of it ({format_size(total)}): all checksums are right")

"""Make the pictures of the README: what a terminal shows while the real commands run.

::

    python docs/pictures/make.py [DIRECTORY]

As root, with nginx installed, and with pyte, which the tests need, too. All that is set up is on
loopback and in namespaces of its own, so nothing of it is left behind.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path += [str(ROOT), str(ROOT / "tests")]

from drawing import svg  # noqa: E402
from real.mounts import LAZYFS, environment, read, run, run_well  # noqa: E402
from real.servers import Nginx  # noqa: E402
from terminal import running  # noqa: E402

from bench.server import read_line, shaper  # noqa: E402
from bench.shaper import Link  # noqa: E402

_MIB = 1 << 20
_NAME = "debian.iso"
_SIZE = 160 * _MIB
_BEFORE = (0, 1, 2, 19, 20, 47, 66, 67, 110, 159)  # MiB: parts that were read in an earlier mount
_SLOWLY = (90, 98, 121, 130, 138, 150)  # MiB: places from where readers have to wait for a little
_LINK = Link(rtt=0.02, rate=80e6)
_READER = "import os, time\nwhile os.read(0, 1 << 18): time.sleep(0.05)"
_OURS = ("/mnt", "/run")  # so no daemon of this machine is taken for ours
_MOUNTPOINT = Path("/mnt/img")
_IMAGE = _MOUNTPOINT / _NAME

_ALONE = "LAZYFS_PICTURES_ALONE"
_LIMIT = 60.0  # seconds for each picture
_HISTORY = 30  # bars of throughput that ``top`` is to have


def main() -> None:
    """Make all pictures, in the directory that is named or in this one."""
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else HERE)
    _be_alone()
    for place in _OURS:
        run_well(["mount", "-t", "tmpfs", "tmpfs", place])
    _MOUNTPOINT.mkdir()
    for name, drawn in pictures():
        (directory / f"{name}.svg").write_text(drawn, encoding="utf-8")


def _be_alone() -> None:
    """Go on in namespaces of our own: what is mounted and started there ends with us."""
    if os.environ.pop(_ALONE, None) is None:
        os.environ[_ALONE] = "yes"
        apart = ["unshare", "--mount", "--pid", "--mount-proc", "--fork", "--kill-child"]
        os.execvp(apart[0], [*apart, sys.executable, *sys.argv])  # noqa: S606


def pictures() -> Iterator[tuple[str, str]]:
    """Their names, and what is in them."""
    with tempfile.TemporaryDirectory(prefix="lazyfs-pictures-") as place:
        home = Path(place)
        yield "demo", picture(home, "demo")
        with half_filled(home):
            where = str(_MOUNTPOINT)
            yield "top", picture(home, "top", "--every", "0.1", where, until=_has_history)
            yield "status", picture(home, "status", where)
            yield "map", picture(home, "map", where)


def picture(home: Path, *words: str, until: Callable[[str], bool] | None = None) -> str:
    """What ``lazyfs WORDS`` shows at its end, or when its text is like that."""
    with running([*LAZYFS, *words], environment(home)) as terminal:
        if until:
            terminal.run_until(until, _LIMIT)
        else:
            terminal.run_to_its_end(_LIMIT)
        return svg(shlex.join(["lazyfs", *words]), terminal.rows())


def _has_history(text: str) -> bool:
    """Whether the bars of ``top`` tell something."""
    _, _, after = text.partition("\nthroughput")
    return len("".join(after.splitlines()[1:2]).strip()) >= _HISTORY


@contextlib.contextmanager
def half_filled(home: Path) -> Iterator[None]:
    """A mount of an image that was in use before, and is read and filled at the moment."""
    served = home / "served"
    served.mkdir()
    with open(served / _NAME, "wb") as image:
        image.truncate(_SIZE)
    with Nginx(served) as server, shaper(server.port, _LINK, seed=1) as link:
        url = f"http://{read_line(link).strip()}/{_NAME}"
        with mounted(home, url):
            _read_at(_BEFORE, _MIB)
        with mounted(home, url, "--fill"), reading():
            _read_at(_SLOWLY, 4096)
            yield


def _read_at(places: Iterable[int], length: int) -> None:
    for place in places:
        read(_IMAGE, place * _MIB, length)


@contextlib.contextmanager
def mounted(home: Path, url: str, *options: str) -> Iterator[None]:
    """``lazyfs OPTIONS URL``, which must succeed."""
    words: list[str | Path] = ["--verbose", "--log-file", home / "log", *options, url, _MOUNTPOINT]
    done = run([*LAZYFS, *words], env=environment(home))
    if done.returncode:
        sys.exit(done.stderr)
    try:
        yield
    finally:
        run_well(["fusermount3", "-u", _MOUNTPOINT])


@contextlib.contextmanager
def reading() -> Iterator[None]:
    """Somebody who reads from the beginning on, and has something to do with what he reads."""
    with open(_IMAGE, "rb") as image:
        reader = subprocess.Popen([sys.executable, "-I", "-S", "-c", _READER], stdin=image)
    try:
        yield
    finally:
        reader.kill()
        reader.wait()


if __name__ == "__main__":
    main()

"""Artefacts that are slow to make, kept outside the tree between runs."""

import contextlib
import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path


@contextlib.contextmanager
def workroom(directory: Path, name: str = "") -> Iterator[None]:
    """Lock ``directory`` exclusively, by ``name``; it is made if necessary."""
    directory.mkdir(mode=0o755, parents=True, exist_ok=True)
    with open(directory / f"{f'.{name}' if name else ''}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def once(directory: Path, kind: str, key: str, make: Callable[[Path], None]) -> Path:
    """The directory of this kind with this key, made now if necessary; older ones are removed.

    ``make`` fills a directory, which is renamed once complete.
    """
    place = directory / f"{kind}-{key}"
    if not place.exists():
        for old in directory.glob(f"{kind}-*"):
            shutil.rmtree(old)
        partial = place.with_name(f"{place.name}.partial")
        partial.mkdir(mode=0o755)
        make(partial)
        os.replace(partial, place)
    return place


def digest(parts: Iterable[bytes]) -> str:
    """A key for an artefact made from these parts."""
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]

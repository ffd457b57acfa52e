"""Where what takes long to make for the packages is kept."""

from collections.abc import Callable, Iterable
from pathlib import Path

from real.images import cache_directory
from real.kept import digest, once, workroom


def kept(kind: str, key: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The directory of this kind with this key, made now if need be; an older one is removed."""
    home = cache_directory() / "packages"
    with workroom(home, kind):
        return once(home, kind, digest(map(str.encode, key)), make)

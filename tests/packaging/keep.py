"""What takes long to make is kept outside the tree between runs."""

import fcntl
import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from real.images import cache_directory


def kept(kind: str, key: Iterable[str], make: Callable[[Path], None]) -> Path:
    """The directory of this kind with this key, made now if need be; an older one is removed."""
    digest = hashlib.sha256("\0".join(key).encode()).hexdigest()[:12]
    home = cache_directory() / "packages"
    home.mkdir(mode=0o755, exist_ok=True)
    with open(home / f".{kind}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        place = home / f"{kind}-{digest}"
        if not place.exists():
            for old in home.glob(f"{kind}-*"):
                shutil.rmtree(old)
            partial = place.with_name(f"{place.name}.partial")
            partial.mkdir(mode=0o755)
            make(partial)
            os.replace(partial, place)
        return place

"""Small files that are there whole or not at all."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o600, *, synced: bool = False) -> None:
    """Put a new file in the place of ``path``; the old one stays until then. Raises OSError.

    ``mode``: the permissions of a new file, less the umask. ``synced``: it survives a power cut.
    """
    partial = path.with_name(f"{path.name}.new")
    fd = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, mode)
    try:
        with open(fd, "wb") as file:
            file.write(content)
            if synced:
                file.flush()
                os.fsync(fd)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise

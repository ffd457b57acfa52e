"""Writing small files atomically."""

import os
from pathlib import Path


def write_whole(path: Path, content: bytes, mode: int = 0o600, *, synced: bool = False) -> None:
    """Replace ``path`` atomically by a new file. Raises OSError.

    ``mode``: the permissions of the new file, less the umask.
    ``synced``: whether to fsync it, so that it survives a power cut.
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

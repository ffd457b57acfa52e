"""Loading profiles from files."""

from pathlib import Path

from lazyfs.core.errors import ProfileError
from lazyfs.prefetch.profile import LARGEST, Profile, parse


def load(file: Path) -> Profile:
    """Load the profile in a file. Raises ProfileError."""
    try:
        with file.open(encoding="utf-8") as opened:
            return parse(opened.read(LARGEST))
    except ProfileError as error:
        raise error.about(str(file)) from error
    except UnicodeDecodeError as error:
        raise ProfileError(f"{file} is no text") from error
    except OSError as error:
        raise ProfileError(
            f"{file} cannot be read: {error.strerror}", "see that it is there, and who may read it"
        ) from error

"""Configuration files, with general options and options for single hosts.

They are TOML. A key is an option's long name, without its dashes; a section ``[host.NAME]`` is for
servers of that name, or, if it begins with ``*.``, of all names with that ending::

    cache-size = "20G"

    [host."images.example.org"]
    connections = 8
    header = ["Authorization: Bearer 123"]

The user's file overrides the system's file, and the command line overrides both.
"""

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lazyfs.core.errors import UsageError
from lazyfs.system.ownfiles import complaint

SYSTEM = Path("/etc/lazyfs.conf")
INSTEAD = "LAZYFS_CONFIG"  # environment variable: a file to read instead; empty for none
_HOSTS = "host"
_LONGEST = 1 << 20  # characters


class Setting(NamedTuple):
    """The value of an option in a file: a boolean, a number, a text, or a list of texts."""

    value: Any
    file: Path


Settings = dict[str, Setting]  # by option name


@dataclass(frozen=True)
class Config:
    """The merged files. ``hosts``: by section name."""

    general: Settings = field(default_factory=dict)
    hosts: dict[str, Settings] = field(default_factory=dict)

    def of_host(self, name: str) -> Settings:
        """The settings for one host only; those of the most specific section win."""
        found: Settings = {}
        for section in sorted((s for s in self.hosts if _fits(name, s)), key=_closeness):
            found |= self.hosts[section]
        return found


def files() -> list[Path]:
    """The paths of configuration files, the highest priority last. Raises UsageError."""
    instead = os.environ.get(INSTEAD)
    if instead is not None:
        return [Path(instead)] if instead else []
    return [SYSTEM, *_of_user()]


def _of_user() -> list[Path]:
    """The user's own file; none without a home. Raises UsageError.

    A relative path is refused: it would mean whatever directory lazyfs happens to be started in.
    """
    variable = "XDG_CONFIG_HOME" if os.environ.get("XDG_CONFIG_HOME") else "HOME"
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    if home.startswith("~"):
        return []
    if not os.path.isabs(home):
        raise UsageError(f"{variable} is no absolute path", "set it to one that begins with /")
    return [Path(home, "lazyfs/config")]


def load(paths: Iterable[Path]) -> Config:
    """Read and merge these files, skipping missing ones. Raises UsageError."""
    found = Config()
    for path in paths:
        for name, value in _content(path).items():
            if name != _HOSTS:
                found.general[name] = _setting(name, value, path)
                continue
            for host, section in _sections(value, path):
                found.hosts.setdefault(host, {}).update(section)
    return found


def _content(path: Path) -> dict[str, Any]:
    try:
        text = _read(path)
        import tomllib  # imported here, because most users have no file

        return tomllib.loads(text)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise UsageError(
            f"{path} cannot be read: {error.strerror}",
            f"make it readable, or name another with {INSTEAD}",
        ) from error
    except ValueError as error:  # invalid TOML or UTF-8; its text may quote a secret
        where = str(error).rpartition(" (")[2].rstrip(")")
        place = f" ({where})" if where.startswith("at ") else ""
        raise UsageError(
            f"{path} is not TOML{place}", 'write lines like: cache-size = "10G"'
        ) from error


def _read(path: Path) -> str:
    """The text of a file that nobody else can have written. Raises OSError, ValueError, UsageError.

    It can name programs (``header-command``), which run as we do: as root, perhaps.
    """
    _check(path, path.stat())  # before it is opened, which may do something to a device
    fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    with open(fd, encoding="utf-8") as file:
        _check(path, os.fstat(fd))
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise UsageError(f"{path} is too long for a configuration", f"name another with {INSTEAD}")
    return text


def _check(path: Path, found: os.stat_result) -> None:
    """Raises UsageError if a file is not regular, or somebody else's; OSError for a directory."""
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise UsageError(
            f"the configuration {path} is no regular file", f"name another with {INSTEAD}"
        )
    if why := complaint(found, os.geteuid()):
        raise UsageError(
            f"the configuration {path} cannot be trusted: it {why}",
            f"make it your own (chown, chmod go-w), or name another with {INSTEAD}",
        )


def _sections(hosts: Any, path: Path) -> Iterator[tuple[str, Settings]]:
    if not isinstance(hosts, dict):
        raise UsageError(f'{path}: "host" is no option', 'write a section: [host."a.example"]')
    for host, section in hosts.items():
        if not isinstance(section, dict):
            raise UsageError(
                f'{path}: "host.{host}" is no section', f'write [host."{host}"], and options below'
            )
        yield host.lower(), {name: _setting(name, value, path) for name, value in section.items()}


def _setting(name: str, value: Any, path: Path) -> Setting:
    if isinstance(value, dict):
        raise UsageError(
            f"{path}: there is no section {name!r}", 'sections are for hosts: [host."a.example"]'
        )
    return Setting(value, path)


def _fits(name: str, section: str) -> bool:
    return name == section or (section.startswith("*.") and name.endswith(section[1:]))


def _closeness(section: str) -> tuple[bool, int]:
    return not section.startswith("*"), len(section)

"""Configuration files, with general options and options for single hosts.

They are TOML. A key is an option's long name, without its dashes; a section ``[host.NAME]`` is for
servers of that name, or, if it begins with ``*.``, of all names with that ending::

    cache-size = "20G"

    [host."images.example.org"]
    connections = 8
    header = ["Authorization: Bearer 123"]

The user's file overrides the system's file, and the command line overrides both.
"""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from lazyfs.core.errors import UsageError

SYSTEM = Path("/etc/lazyfs.conf")
INSTEAD = "LAZYFS_CONFIG"  # environment variable: a file to read instead; empty for none
_HOSTS = "host"


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
    """The paths of configuration files, the highest priority last."""
    instead = os.environ.get(INSTEAD)
    if instead is not None:
        return [Path(instead)] if instead else []
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    return [SYSTEM, Path(home, "lazyfs/config")]


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
        text = path.read_text()
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

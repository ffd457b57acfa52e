"""``lazyfs config``: show the merged configuration files."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from lazyfs.cli import configfile
from lazyfs.cli.configfile import Settings
from lazyfs.cli.configured import check
from lazyfs.cli.output import printing
from lazyfs.cli.parser import Parser
from lazyfs.cli.terminal import for_stdout
from lazyfs.core import address

_EXAMPLE = """\
example of /etc/lazyfs.conf, or ~/.config/lazyfs/config for one user:
  cache-size = "20G"

  [host."images.example.org"]
  header = ["Authorization: Bearer 123"]
"""


def main(arguments: Sequence[str]) -> int:
    _parser().parse_args(arguments)
    files = configfile.files()
    found = configfile.load(files)
    check(found)
    with printing():
        for file in files:
            if not file.exists():
                print(for_stdout(f"# {file} does not exist"))
        _print(found.general)
        for host, settings in sorted(found.hosts.items()):
            print(for_stdout(f"\n[host.{json.dumps(host)}]"))
            _print(settings)
    return 0


def _parser() -> Parser:
    return Parser("lazyfs config", "Show what the configuration files say, together.", _EXAMPLE)


def _print(settings: Settings) -> None:
    """Print settings as TOML, each below its file; secrets are left out."""
    for file in sorted({setting.file for setting in settings.values()}):
        print(for_stdout(f"# {file}"))
        for line in _lines(settings, file):
            print(for_stdout(line))


def _lines(settings: Settings, file: Path) -> Iterator[str]:
    for name, setting in sorted(settings.items()):
        if setting.file == file:
            yield f"{name} = {_shown(name, setting.value)}"


def _shown(name: str, value: Any) -> str:
    if name == "header":
        value = [_without_value(field) for field in value]
    if name == "proxy":
        value = address.shown(value)
    return json.dumps(value, ensure_ascii=False)  # valid TOML too, for the types of options


def _without_value(field: str) -> str:
    return field if field.startswith("@") else f"{field.partition(':')[0]}: ..."

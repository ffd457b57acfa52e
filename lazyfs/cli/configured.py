"""Merging the command line with the configuration, which provides the options not given.

Options are parsed without their defaults first, to distinguish given options from others. Lists
are concatenated; a given header field replaces a configured one of the same name.
"""

import argparse
import os
from collections.abc import Callable, Sequence
from typing import Any

from lazyfs.cli import configfile
from lazyfs.cli.configfile import Config, Setting, Settings
from lazyfs.cli.parser import Parser, listed, suggestion
from lazyfs.core.errors import UsageError

# Options for one run or one image, which no file may contain.
_ONCE = frozenset({"bitmap", "cache", "foreground", "profile", "profile-any", "record", "system"})
_NOT_BY_HOST = frozenset({"timeout", "nbd-fixed"})  # although they are server options
# Configured options apply only to the runs that they fit: one that requires another (argparse
# destinations), and those that require a cache directory.
_WITH = {"rate": "fill"}
_NOT_WITHOUT_CACHE = ("cache_size", "fill", "preload")

_UNSAID = object()


class Given(argparse.Namespace):
    """The options of a run. ``at``: the options for a host, by its name."""

    at: Callable[[str], argparse.Namespace]


def parse(parser: Parser, arguments: Sequence[str]) -> Given:
    """The options on the command line, completed from the configuration. Raises UsageError."""
    actions = [action for action in parser.named() if action.dest != argparse.SUPPRESS]
    start = {action.dest: None if _is_counted(action) else _UNSAID for action in actions}
    said = parser.parse_intermixed_args(arguments, Given(**start))
    found = configfile.load(configfile.files())
    check(found)

    def filled(settings: Settings) -> Given:
        given = Given(**vars(said))
        for action in actions:
            _fill_in(given, action, settings.get(action.option_strings[-1].removeprefix("--")))
        _leave_out(given, said)
        return given

    def at(host: str) -> argparse.Namespace:
        return filled(_together(found.general, found.of_host(host.lower())))

    given = filled(found.general)
    given.at = at
    return given


def cache_dir() -> str | None:
    """The configured cache directory. Raises UsageError."""
    found = configfile.load(configfile.files())
    check(found)
    setting = found.general.get("cache-dir")
    return None if setting is None else _value(settable()[0]["cache-dir"], setting)


def check(found: Config) -> None:
    """Check that every setting is valid for some command. Raises UsageError."""
    general, by_host = settable()
    for known, settings in (
        (general, found.general),
        *((by_host, s) for s in found.hosts.values()),
    ):
        for name, setting in settings.items():
            if name not in known:
                raise _unknown(name, setting, known, general)
            _value(known[name], setting)


def settable() -> tuple[dict[str, argparse.Action], dict[str, argparse.Action]]:
    """The options allowed in a file, by name; and those allowed for a single host."""
    from lazyfs.cli.declared import add_options
    from lazyfs.cli.servers import add_server_options

    general, by_host = Parser("", ""), Parser("", "")
    add_options(general)
    add_server_options(by_host)
    for name in ("allow-other", "allow-root"):
        general.add_argument(f"--{name}", action="store_true")
    return _by_name(general, _ONCE), _by_name(by_host, _NOT_BY_HOST)


def _by_name(parser: Parser, but: frozenset[str]) -> dict[str, argparse.Action]:
    names = {action.option_strings[-1].removeprefix("--"): action for action in parser.named()}
    return {name: names[name] for name in sorted(names) if name not in but}


def _fill_in(given: Given, action: argparse.Action, setting: Setting | None) -> None:
    """Set an option that was not given to its configured value, or else to its default."""
    said = getattr(given, action.dest)
    configured = None if setting is None else _value(action, setting)
    if _adds_up(action):
        said = said or []
        configured = _without(configured or [], said) if action.dest == "header" else configured
        setattr(given, action.dest, [*(configured or []), *said])
    elif said is _UNSAID or said is None:
        setattr(given, action.dest, action.default if configured is None else configured)


def _leave_out(given: Given, said: Given) -> None:
    """Drop configured options that do not fit the given ones."""
    unfit = [dest for dest, other in _WITH.items() if not getattr(given, other, True)]
    if getattr(given, "no_cache", False) or getattr(given, "cache", None):
        unfit += _NOT_WITHOUT_CACHE
    for dest in unfit:
        was = getattr(said, dest, None)
        if was is _UNSAID:
            setattr(given, dest, None if dest != "fill" else False)
        elif dest == "preload":
            setattr(given, dest, was or [])


def _together(general: Settings, own: Settings) -> Settings:
    """The settings for a host: its own override the general ones; header lists are concatenated."""
    found = {**general, **own}
    for name in general.keys() & own.keys():
        lists = general[name].value, own[name].value
        if name == "header" and all(isinstance(value, list) for value in lists):
            found[name] = Setting([*lists[0], *lists[1]], own[name].file)
    return found


def _without(configured: list[Any], said: list[Any]) -> list[Any]:
    """The configured header fields, without names that were given; of duplicates, the last."""
    named = {field[0].lower() for field in said if isinstance(field, tuple)}
    kept: list[Any] = []
    for field in reversed(configured):
        if isinstance(field, tuple):
            if field[0].lower() in named:
                continue
            named.add(field[0].lower())
        kept.insert(0, field)
    return kept


def _adds_up(action: argparse.Action) -> bool:
    return isinstance(action.default, list)


def _is_counted(action: argparse.Action) -> bool:
    """Whether argparse accumulates into the existing value."""
    return _adds_up(action) or isinstance(action, argparse._CountAction)


def _value(action: argparse.Action, setting: Setting) -> Any:
    """A setting, converted to the option's value. Raises UsageError."""
    name, value = action.option_strings[-1].removeprefix("--"), setting.value
    if action.nargs == 0:
        if isinstance(value, bool):
            return value
        raise UsageError(f"{setting.file}: {name} is not true or false", f"write {name} = true")
    if _adds_up(action):
        if isinstance(value, list):
            return [_converted(action, name, one, setting) for one in value]
        raise UsageError(f"{setting.file}: {name} is not a list", f'write {name} = ["..."]')
    return _converted(action, name, value, setting)


def _converted(action: argparse.Action, name: str, value: Any, setting: Setting) -> Any:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise UsageError(f"{setting.file}: {name} is not a text", f'write {name} = "..."')
    text = os.path.expanduser(str(value))
    if action.choices is not None and text not in action.choices:
        raise UsageError(
            f"{setting.file}: {name} has no such value", f"give {listed([*action.choices])}"
        )
    try:
        return action.type(text) if callable(action.type) else text
    except argparse.ArgumentTypeError as error:
        raise UsageError(f"{setting.file}: {name}: {error}") from error


def _unknown(
    name: str,
    setting: Setting,
    known: dict[str, argparse.Action],
    general: dict[str, argparse.Action],
) -> UsageError:
    if name in general:
        return UsageError(f"{setting.file}: {name} is not for a host alone", "write it above")
    if name in _ONCE:
        return UsageError(f"{setting.file}: {name} is for one run", "give it on the command line")
    meant = suggestion(name, known) or "see lazyfs --help-all for the names of options"
    return UsageError(f"{setting.file}: {name} is no option", meant)

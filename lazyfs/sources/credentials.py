"""Credentials for servers: header fields from the user, a login in a URL, ~/.netrc.

Fields may also come from files and from a program. Those, and ~/.netrc, are reloaded when the user
requests it or a server refuses the credentials: tokens expire while an image is mounted.

Credentials are sent only to the host that they were given for, never to a redirect's target.
"""

import netrc
import subprocess
from base64 import b64encode
from pathlib import Path

from lazyfs.core import address
from lazyfs.core.errors import UsageError
from lazyfs.core.options import ServerOptions
from lazyfs.sources.headers import Field, parse_headers

PATIENCE = 60.0  # seconds that the program may take
_LARGEST = 64 << 10  # bytes of a file of header fields; the limits of servers are lower


class Credentials:
    """The header fields of requests besides the range. The constructor calls ``read``."""

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._fields: tuple[Field, ...] = ()
        self._netrc: netrc.netrc | None = None
        self.read()

    @property
    def may_change(self) -> bool:
        """Whether a reload may change anything."""
        options = self._options
        return bool(options.header_files or options.header_command or options.netrc)

    def read(self) -> None:
        """Read the files and run the program. Blocks. Raises UsageError; nothing changes then."""
        options = self._options
        found = [*options.headers]
        for file in options.header_files:
            found += _of_file(file)
        if options.header_command:
            found += _of_program(options.header_command)
        login = _read_netrc() if options.netrc else None
        self._fields, self._netrc = tuple(found), login

    def fields(self, url: str, home: str) -> list[Field]:
        """Fields for a request to ``url`` on behalf of an image whose own URL is ``home``."""
        there = address.origin(url)
        at_home = address.origin(home).may_share(there)
        fields = [*self._fields] if at_home else []
        named = {name.lower() for name, _ in fields}
        if "user-agent" not in named:
            fields.insert(0, ("User-Agent", self._options.user_agent))
        if "authorization" in named:
            return fields
        login = (address.login(home) if at_home else None) or self._netrc_login(there, at_home)
        if login:
            token = b64encode(":".join(login).encode()).decode()
            fields.append(("Authorization", f"Basic {token}"))
        return fields

    def _netrc_login(self, there: address.Origin, at_home: bool) -> tuple[str, str] | None:
        """A login from ~/.netrc; for a redirect's target, only an entry that names that host."""
        if self._netrc is None:
            return None
        if at_home:
            entry = self._netrc.authenticators(there.host)
        else:
            entry = self._netrc.hosts.get(there.host)
        return (entry[0], entry[2] or "") if entry else None


def _of_file(file: Path) -> tuple[Field, ...]:
    try:
        with file.open("rb") as opened:
            content = opened.read(_LARGEST + 1)
    except OSError as error:
        raise UsageError(
            f"the headers in {file} cannot be read: {error.strerror}",
            "see that it is there, and who may read it",
        ) from error
    if len(content) > _LARGEST:
        raise UsageError(f"{file} is too long to hold headers", "is it the right file?")
    return parse_headers(content.decode(errors="replace"), f"a line of {file}")


def _of_program(command: str) -> tuple[Field, ...]:
    """The fields that a shell command prints. Its stderr goes to our own."""
    try:
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            check=False,
            timeout=PATIENCE,
        )
    except subprocess.TimeoutExpired as error:
        raise UsageError(
            f"the --header-command did not end within {PATIENCE:g} seconds", "try it by itself"
        ) from error
    if done.returncode:
        raise UsageError(
            f"the --header-command failed with exit code {done.returncode}", "try it by itself"
        )
    return parse_headers(done.stdout.decode(errors="replace"), "a line of the --header-command")


def _read_netrc() -> netrc.netrc | None:
    """Load the user's ~/.netrc. Raises UsageError."""
    try:
        return netrc.netrc()
    except FileNotFoundError as error:
        raise UsageError(
            "--netrc was given, but there is no ~/.netrc", "write one, or leave out --netrc"
        ) from error
    except (netrc.NetrcParseError, OSError) as error:
        raise UsageError(
            f"~/.netrc cannot be used: {error}", "mend it, or leave out --netrc"
        ) from error

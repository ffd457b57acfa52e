"""The listening sockets of an NBD server, and their URIs.

The URIs follow doc/uri.md of the NBD project.
"""

import contextlib
import ipaddress
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from lazyfs.core.errors import ServeError, UsageError

_FIRST_PASSED = 3  # file descriptor; sd_listen_fds(3)
_PASSED = "see ListenStream= of the .socket unit"
_BACKLOG = 128  # connections waiting to be accepted
_LONGEST_PATH = 107  # bytes; unix(7)


def passed_sockets() -> list[socket.socket]:
    """The listening sockets passed by socket activation (systemd or compatible).

    Raises ServeError if one cannot be used.
    """
    count = os.environ.pop("LISTEN_FDS", "")
    if os.environ.pop("LISTEN_PID", "") != str(os.getpid()) or not count.isdecimal():
        return []
    return [_passed(fd) for fd in range(_FIRST_PASSED, _FIRST_PASSED + int(count))]


def _passed(fd: int) -> socket.socket:
    try:
        passed = socket.socket(fileno=fd)
        passed.set_inheritable(False)
        listens = passed.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
    except OSError as error:
        raise ServeError(f"file descriptor {fd} is no socket: {error.strerror}", _PASSED) from error
    if not listens or passed.type != socket.SOCK_STREAM:
        raise ServeError(
            f"the socket that was passed as {fd} is not one that clients connect to", _PASSED
        )
    return passed


@contextlib.contextmanager
def unix_socket(path: Path) -> Iterator[socket.socket]:
    """A listening socket with mode 0600, unlinked at the end. Raises ServeError."""
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ServeError(f"{path} is too long for the name of a socket", "give a shorter --unix")
    _remove_stale(path)
    listener = socket.socket(socket.AF_UNIX)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(os.fspath(path))
        finally:
            os.umask(mask)
        listener.listen(_BACKLOG)
    except OSError as error:
        listener.close()
        raise ServeError(f"{path} cannot be made a socket: {error.strerror}") from error
    ours = path.lstat()
    try:
        yield listener
    finally:
        listener.close()
        with contextlib.suppress(OSError):  # it may have been removed, or replaced by another
            if os.path.samestat(path.lstat(), ours):
                path.unlink()


def _remove_stale(path: Path) -> None:
    """Remove the socket of a dead server, if there is one. Raises ServeError."""
    try:
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise ServeError(f"{path} exists, and is no socket", "give another --unix")
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(os.fspath(path))
    except FileNotFoundError:
        return
    except ConnectionRefusedError:
        path.unlink(missing_ok=True)
        return
    except OSError as error:
        raise ServeError(f"{path} cannot be used: {error.strerror}") from error
    raise ServeError(f"{path} is in use by another server", "give another --unix")


def tcp_sockets(address: str, port: int, *, plain_anywhere: bool) -> list[socket.socket]:
    """Listening sockets, one for each address that the name resolves to.

    ``plain_anywhere``: whether other addresses than loopback are allowed. Raises UsageError or
    ServeError.
    """
    try:
        found = socket.getaddrinfo(
            address or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
    except socket.gaierror as error:
        raise ServeError(f"{address} cannot be listened on: {error.strerror}") from error
    if not plain_anywhere:
        for *_, place in found:
            _refuse_others(str(place[0]))
    if port == 0:
        del found[1:]  # the port chosen for one address may not be free on the others
    listeners: list[socket.socket] = []
    try:
        listeners += (_tcp_socket(family, place) for family, *_, place in found)
    except OSError as error:
        for listener in listeners:
            listener.close()
        raise ServeError(f"{address}:{port} cannot be listened on: {error.strerror}") from error
    return listeners


def _refuse_others(host: str) -> None:
    """Raises UsageError if other machines can reach the address."""
    if not ipaddress.ip_address(host.split("%")[0]).is_loopback:
        raise UsageError(
            f"whoever reaches {host} could read the image, and so could the network between",
            "give --tls-certificates, or --allow-plain if that is meant",
        )


def _tcp_socket(family: int, place: tuple[object, ...]) -> socket.socket:
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        listener.bind(place)
        listener.listen(_BACKLOG)
    except BaseException:
        listener.close()
        raise
    return listener


def uri(listener: socket.socket, export: str = "", *, tls: bool = False) -> str:
    """The URI of an export that is served on this socket; "" is the default export."""
    scheme = "nbds" if tls else "nbd"
    name = quote(export, safe="")
    place = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"{scheme}+unix:///{name}?socket={quote(place)}"
    host, port = place[:2]
    if ipaddress.ip_address(host.split("%")[0]).is_unspecified:
        host = socket.gethostname()
    return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/{name}"

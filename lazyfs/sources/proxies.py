"""The proxy for a server, by the environment. Pure.

``http_proxy``, ``https_proxy`` and ``all_proxy`` are read as curl reads them: the name in lower
case goes first, a variable that is empty is none, and a value without a scheme is of an HTTP proxy.

``no_proxy`` is a list of entries, separated by commas or spaces. An entry without a port is for all
ports. curl and Go (golang.org/x/net/http/httpproxy) agree on most of it, and what only one of them
takes is taken:

==================  ============================================================================
``*``               every host
``example.org``     that host, and every host below it; so do ``.example.org``, ``*.example.org``
``192.0.2.1``       that address, as it is written in a URL; names are not looked up for this
``2001:db8::1``     the same, also in brackets
``192.0.2.0/24``    all addresses of that network, also of IPv6
``example.org:80``  that port only; IPv6 needs brackets
==================  ============================================================================

They differ in two things. ``.example.org`` is that host too, as in curl; for Go it is only those
below it. localhost has to be listed, as for curl; Go never uses a proxy for it.
"""

import re
from collections.abc import Mapping
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from lazyfs.core.address import Origin

_Address = IPv4Address | IPv6Address

_SEPARATOR = re.compile(r"[\s,]+")
_WITH_PORT = re.compile(r"(\[[^\[\]]*\]|[^:]*):(.*)")


def proxy_of(origin: Origin, environment: Mapping[str, str]) -> str | None:
    """The URL of the proxy for this origin; None for none."""
    if is_excepted(origin, _value(environment, "no_proxy", "NO_PROXY") or ""):
        return None
    own = f"{origin.scheme}_proxy"
    found = _value(environment, *_names(own, environment), "all_proxy", "ALL_PROXY")
    return found if found is None or "://" in found else f"http://{found}"


def is_excepted(origin: Origin, no_proxy: str) -> bool:
    """Whether an entry of ``no_proxy`` is for this origin."""
    return any(_matches(entry, origin) for entry in _SEPARATOR.split(no_proxy.lower()) if entry)


def _names(variable: str, environment: Mapping[str, str]) -> list[str]:
    """The names of a variable. In a CGI program, HTTP_PROXY may be a client's field ``Proxy``."""
    forged = variable == "http_proxy" and "REQUEST_METHOD" in environment
    return [variable] if forged else [variable, variable.upper()]


def _value(environment: Mapping[str, str], *names: str) -> str | None:
    """The first of these variables that is not empty."""
    return next((environment[name] for name in names if environment.get(name)), None)


def _matches(entry: str, origin: Origin) -> bool:
    if entry == "*":
        return True
    address = _address(origin.certified)
    if "/" in entry:
        return address is not None and _is_in(address, entry)
    host, port = _split(entry)
    if port and port != str(origin.port):
        return False
    own = _address(host)
    if address is not None or own is not None:
        return address == own
    return _is_below(_ascii(origin.host), _ascii(host.removeprefix("*")))


def _split(entry: str) -> tuple[str, str]:
    """Host and port of an entry; "" for none. More than one colon is an IPv6 address."""
    with_port = None if _address(entry) else _WITH_PORT.fullmatch(entry)
    return (with_port[1], with_port[2]) if with_port else (entry, "")


def _address(text: str) -> _Address | None:
    """An address; one of IPv4 that is written as IPv6 is one of IPv4."""
    try:
        found = ip_address(text[1:-1] if text[:1] + text[-1:] == "[]" else text)
    except ValueError:
        return None
    return found.ipv4_mapped or found if isinstance(found, IPv6Address) else found


def _is_in(address: _Address, network: str) -> bool:
    try:
        return address in ip_network(network, strict=False)
    except ValueError:
        return False


def _is_below(host: str, domain: str) -> bool:
    """Whether ``host`` is this domain, or one below it."""
    domain = domain.strip(".")
    return bool(domain) and f".{host.strip('.')}".endswith(f".{domain}")


def _ascii(host: str) -> str:
    try:
        return host.encode("idna").decode() if not host.isascii() else host
    except UnicodeError:
        return host

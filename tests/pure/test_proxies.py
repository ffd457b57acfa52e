"""Which proxy the environment names for a server, and for which servers it names none."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core import address
from lazyfs.sources.proxies import is_excepted, proxy_of

PROXY, OTHER = "http://proxy:3128", "http://other:3128"


@pytest.mark.parametrize(
    ("scheme", "environment", "proxy"),
    [
        ("http", {}, None),
        ("http", {"http_proxy": PROXY}, PROXY),
        ("http", {"HTTP_PROXY": PROXY}, PROXY),
        ("http", {"http_proxy": PROXY, "HTTP_PROXY": OTHER}, PROXY),
        ("http", {"http_proxy": "", "HTTP_PROXY": PROXY}, PROXY),
        ("http", {"https_proxy": PROXY}, None),
        ("https", {"http_proxy": PROXY}, None),
        ("https", {"https_proxy": PROXY}, PROXY),
        ("https", {"HTTPS_PROXY": PROXY}, PROXY),
        ("https", {"https_proxy": PROXY, "all_proxy": OTHER}, PROXY),
        ("https", {"all_proxy": PROXY, "ALL_PROXY": OTHER}, PROXY),
        ("https", {"ALL_PROXY": PROXY}, PROXY),
        ("https", {"https_proxy": "", "all_proxy": PROXY}, PROXY),
        ("http", {"Http_Proxy": PROXY}, None),
        ("http", {"http_proxy": "proxy:3128"}, "http://proxy:3128"),
        ("http", {"http_proxy": "socks5://proxy"}, "socks5://proxy"),
        # In a CGI program, HTTP_PROXY is what a client wants it to be.
        ("http", {"HTTP_PROXY": OTHER, "REQUEST_METHOD": "GET"}, None),
        ("http", {"HTTP_PROXY": OTHER, "REQUEST_METHOD": ""}, None),
        ("http", {"HTTP_PROXY": OTHER, "http_proxy": PROXY, "REQUEST_METHOD": "GET"}, PROXY),
        ("http", {"HTTP_PROXY": OTHER, "ALL_PROXY": PROXY, "REQUEST_METHOD": "GET"}, PROXY),
        ("https", {"HTTPS_PROXY": PROXY, "REQUEST_METHOD": "GET"}, PROXY),
        # Exceptions.
        ("http", {"http_proxy": PROXY, "no_proxy": "host"}, None),
        ("http", {"http_proxy": PROXY, "NO_PROXY": "host"}, None),
        ("http", {"http_proxy": PROXY, "no_proxy": "other", "NO_PROXY": "host"}, PROXY),
        ("http", {"http_proxy": PROXY, "no_proxy": "", "NO_PROXY": "host"}, None),
        ("https", {"all_proxy": PROXY, "no_proxy": "*"}, None),
    ],
)
def test_proxy_of_the_environment(
    scheme: str, environment: dict[str, str], proxy: str | None
) -> None:
    assert proxy_of(address.origin(f"{scheme}://host/a.iso"), environment) == proxy


def excepted(authority: str, no_proxy: str, scheme: str = "http") -> bool:
    return is_excepted(address.origin(f"{scheme}://{authority}/a.iso"), no_proxy)


# As golang.org/x/net/http/httpproxy and curl have it in their own tests.
MATCHES = [
    ("host", "*"),
    ("127.0.0.1", "*"),
    ("[::1]", "*"),
    ("host", "other,*"),
    ("host", "host"),
    ("HOST", "host"),
    ("host", "HOST"),
    ("host", " other , host "),
    ("host", "other host"),
    ("host", "other,,host,"),
    ("host:8080", "host"),
    ("host:8080", "host:8080"),
    ("host", "host:80"),
    ("host:80", "host:80"),
    ("www.example.org", "example.org"),
    ("www.example.org", ".example.org"),
    ("www.example.org", "*.example.org"),
    ("www.example.org:81", ".example.org:81"),
    ("a.b.example.org", "example.org"),
    ("example.org", ".example.org"),
    ("example.org.", "example.org"),
    ("example.org", "example.org."),
    ("b\u00fccher.test", "b\u00fccher.test"),
    ("xn--bcher-kva.test", "b\u00fccher.test"),
    ("b\u00fccher.test", "xn--bcher-kva.test"),
    ("localhost", "localhost"),
    ("127.0.0.1", "127.0.0.1"),
    ("127.0.0.1:81", "127.0.0.1"),
    ("127.0.0.1:81", "127.0.0.1:81"),
    ("127.0.0.1", "127.0.0.0/8"),
    ("127.255.1.2:81", "127.0.0.0/8"),
    ("127.0.0.1", "127.0.0.1/8"),  # with bits of a host
    ("10.1.2.3", "10.1.2.3/32"),
    ("10.1.2.3", "0.0.0.0/0"),
    ("192.168.1.7", "10.0.0.0/8,192.168.0.0/16"),
    ("[::1]", "::1"),
    ("[::1]", "[::1]"),
    ("[::1]", "0:0:0:0:0:0:0:1"),
    ("[::1]:81", "::1"),
    ("[::1]:81", "[::1]:81"),
    ("[2001:db8::7]", "2001:db8::/32"),
    ("[2001:DB8::7]", "2001:db8::7"),
    ("[fe80::1%25eth0]", "fe80::1"),
    ("[fe80::1%25eth0]", "fe80::/10"),
    ("[::ffff:10.0.0.1]", "10.0.0.0/8"),
    ("10.0.0.1", "::ffff:10.0.0.1"),
]

DIFFERS = [
    ("host", ""),
    ("host", " , "),
    ("host", "ost"),
    ("host", "hos"),
    ("host", "host2"),
    ("myhost", "host"),
    ("host", "my.host"),
    ("host:8080", "host:80"),
    ("host", "host:8080"),
    ("host", "host:x"),
    ("host", ":80"),
    ("host", "."),
    ("host", "*."),
    ("host", "h*"),
    ("wwwexample.org", "example.org"),
    ("wwwexample.org", "*.example.org"),
    ("www.example.org", ".example.org:81"),
    ("example.org.evil", "example.org"),
    ("127.0.0.1", "localhost"),
    ("localhost", "127.0.0.0/8"),  # names are not looked up
    ("localhost", "127.0.0.1"),
    ("128.0.0.1", "127.0.0.0/8"),
    ("10.0.0.1", "10.0.0.1/33"),
    ("10.0.0.1", "10.0.0.0/"),
    ("10.0.0.1", "/8"),
    ("10.0.0.1", "10.0.0"),
    ("10.0.0.1", "0.1"),
    ("10.0.0.1", ".0.0.1"),
    ("10.0.0.1", "10.0.0.1:81"),
    ("[::1]", "::2"),
    ("[::1]", "127.0.0.0/8"),
    ("127.0.0.1", "::/0"),
    ("[::1]", "0.0.0.0/0"),
    ("[::1]:81", "[::1]:80"),
    ("[::1]", "::1:80"),  # an address, and no port
    ("[::1]", "[::1"),
    ("host", "[host"),
]


@pytest.mark.parametrize(("authority", "no_proxy"), MATCHES)
def test_no_proxy_is_for_this_server(authority: str, no_proxy: str) -> None:
    assert excepted(authority, no_proxy)


@pytest.mark.parametrize(("authority", "no_proxy"), DIFFERS)
def test_no_proxy_is_for_another_server(authority: str, no_proxy: str) -> None:
    assert not excepted(authority, no_proxy)


@pytest.mark.parametrize(("scheme", "port"), [("http", 80), ("https", 443)])
def test_no_proxy_knows_default_ports(scheme: str, port: int) -> None:
    assert excepted("host", f"host:{port}", scheme)
    assert not excepted("host", f"host:{523 - port}", scheme)


@given(st.integers(0, (1 << 32) - 1), st.integers(0, (1 << 32) - 1), st.integers(0, 32))
def test_no_proxy_takes_networks_as_the_library_does(host: int, base: int, bits: int) -> None:
    own = ipaddress.ip_address(host)
    network = ipaddress.ip_network((base, bits), strict=False)
    assert excepted(str(own), str(network)) == (own in network)
    assert excepted(str(own), f"{ipaddress.ip_address(base)}/{bits}") == (own in network)


LABELS = st.lists(st.sampled_from(["a", "b", "ab", "a-b"]), min_size=1, max_size=4)


@given(LABELS, LABELS, st.sampled_from(["", ".", "*."]))
def test_no_proxy_takes_domains_by_whole_labels(
    host: list[str], domain: list[str], lead: str
) -> None:
    below = host[-len(domain) :] == domain
    assert excepted(".".join(host), lead + ".".join(domain)) == below


@given(st.text(max_size=20), st.sampled_from(["host", "127.0.0.1", "[::1]", "b\u00fccher.test"]))
def test_no_proxy_may_be_anything(no_proxy: str, authority: str) -> None:
    excepted(authority, no_proxy)

"""What of a URL may be seen, and what it is called."""

import string
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core import address
from lazyfs.core.errors import UsageError

SECRET = "Hunter2Hunter2"
WORD = st.text(string.ascii_letters + string.digits + "-._~%!$'()*+", min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://host/a.iso", "https://host/a.iso"),
        ("https://host:8443/d/a.iso", "https://host:8443/d/a.iso"),
        ("https://user@host/a.iso", "https://host/a.iso"),
        ("https://user:pw@host/a.iso", "https://host/a.iso"),
        ("https://user:p@w@host/a.iso", "https://host/a.iso"),
        ("https://user:pw@[::1]:80/a.iso", "https://[::1]:80/a.iso"),
        ("https://host/a.iso?sig=abc", "https://host/a.iso?sig=..."),
        ("https://host/a.iso?sig=abc&t=1;u=2", "https://host/a.iso?sig=...&t=...;u=..."),
        ("https://host/a.iso?sig=a=b==", "https://host/a.iso?sig=..."),
        ("https://host/a.iso?abcdef", "https://host/a.iso?..."),
        ("https://host/a.iso?", "https://host/a.iso"),
        ("https://host/a.iso#fragment", "https://host/a.iso"),
    ],
)
def test_shown(url: str, shown: str) -> None:
    assert address.shown(url) == shown


@pytest.mark.parametrize(
    "url",
    [
        f"https://{SECRET}@host/a.iso",
        f"https://user:{SECRET}@host/a.iso",
        f"https://host/a.iso?{SECRET}",
        f"https://host/a.iso?sig={SECRET}&x",
        f"https://host/a.iso?{SECRET}&x=1",
        f"https://host/a.iso?x=1&{SECRET}",
        f"https://host/a.iso#{SECRET}",
        f"https://user:{SECRET}@[bad/a.iso",
        f"https://user:{SECRET}@host:99999/a.iso",
        f"https://user:{SECRET}@host:x/a.iso",
        f"https://user:{SECRET}/more@host/a.iso",  # a slash that should have been written %2F
        f"https://user:{SECRET}#more@host/a.iso",
        f"https://user:{SECRET}?more@host/a.iso",
        f"https://user:more/{SECRET}@host/a.iso",
        f"https://user:{SECRET}@/a.iso",
        f"ftp://user:{SECRET}@host/a.iso",
        f"user:{SECRET}@host:3128",  # how people write proxies
        f"//user:{SECRET}@[bad/a.iso",
    ],
)
def test_secrets_are_neither_shown_nor_in_an_error(url: str) -> None:
    said = address.shown(url)
    try:
        address.parse(url)
    except UsageError as error:
        said += str(error)
    assert SECRET not in said


@given(
    user=WORD,
    password=WORD,
    value=WORD,
    host=st.sampled_from(["host", "127.0.0.1:8000", "[::1]", "xn--bcher-kva.example"]),
    path=st.sampled_from(["", "/", "/a.iso", "/d/a%20b.iso"]),
)
def test_login_and_query_values_are_never_shown(
    user: str, password: str, value: str, host: str, path: str
) -> None:
    url = f"https://S3{user}:S3{password}@{host}{path}?k=S3{value}&S3l=S3{value}#S3{value}"
    assert address.shown(url) == f"https://{host}{path}?k=...&S3l=..."
    assert address.login(url) is not None
    assert "S3" not in address.bare(url).partition("?")[0]


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host/a.iso",
        "ftp://host/a.iso",
        "file:///a.iso",
        "gopher://host",
        "https://",
        "https:///a.iso",
        "https://user@/a.iso",
        "https://host:x/a.iso",
        "https://host:99999/a.iso",
        "https://[::1/a.iso",
        "https://[::1].iso/a",
        "https://[::1]x:80/a.iso",
        "https://[v1.a]/a.iso",
        "https://a..b/a.iso",
        "https://.b/a.iso",
        "https://./",
        "https://../",
        f"https://{'a' * 64}/a.iso",
        "https://host/a b.iso",
        "https://host/a\tb.iso",
        "https://host/a\nb.iso",
        "https://host/\x00",
        "https://host/\x7f",
        "https://host/\udcff",
        " https://host/a.iso",
        "https://host/a.iso\n",
    ],
)
def test_what_is_no_url_is_refused_with_a_cure(url: str) -> None:
    with pytest.raises(UsageError) as caught:
        address.parse(url)
    assert caught.value.cure


@given(st.text(max_size=60) | st.text(max_size=60).map("https://".__add__))
def test_any_text_is_a_url_or_a_usage_error(text: str) -> None:
    address.shown(text)
    try:
        address.parse(text)
    except UsageError:
        return
    assert address.shown(text)
    assert address.origin(address.bare(text)) == address.origin(text)
    assert address.login(address.bare(text)) is None
    assert "#" not in address.bare(text)
    assert safe_name(address.file_name(text))
    assert safe_name(address.cache_key(text))


@pytest.mark.parametrize(
    ("url", "login"),
    [
        ("https://host/", None),
        ("https://user@host/", ("user", "")),
        ("https://user:@host/", ("user", "")),
        ("https://user:pw@host/", ("user", "pw")),
        ("https://us%40er:p%3A%2Fw@host/", ("us@er", "p:/w")),
        ("https://user:p:w@host/", ("user", "p:w")),
    ],
)
def test_login(url: str, login: tuple[str, str] | None) -> None:
    assert address.login(url) == login


@pytest.mark.parametrize(
    ("url", "bare"),
    [
        ("https://user:pw@host:81/a?x=1&y#f", "https://host:81/a?x=1&y"),
        ("https://host", "https://host/"),
        ("https://host?x", "https://host/?x"),
        ("https://host/a%20b", "https://host/a%20b"),
    ],
)
def test_bare(url: str, bare: str) -> None:
    assert address.bare(url) == bare


# Origins


@pytest.mark.parametrize(
    ("url", "origin"),
    [
        ("http://Host/a", ("http", "host", 80)),
        ("https://host/a", ("https", "host", 443)),
        ("HTTPS://host:8443/a", ("https", "host", 8443)),
        ("http://user:pw@host:443/a", ("http", "host", 443)),
        ("http://[::1]:81/", ("http", "::1", 81)),
        ("http://[FE80::1%25Eth0]/", ("http", "fe80::1%Eth0", 80)),
        ("http://[fe80::1%eth0]/", ("http", "fe80::1%eth0", 80)),
        ("http://[fe80::1%253]/", ("http", "fe80::1%3", 80)),
        ("http://[fe80::1%25]/", ("http", "fe80::1%25", 80)),
    ],
)
def test_origin(url: str, origin: tuple[str, str, int]) -> None:
    assert address.origin(url) == address.Origin(*origin)


@pytest.mark.parametrize(
    ("url", "field", "certified"),
    [
        ("http://Host/a", "host", "host"),
        ("http://host:80/a", "host", "host"),
        ("http://host:/a", "host", "host"),
        ("https://host:443/a", "host", "host"),
        ("https://u:p@host:443/a", "host", "host"),
        ("http://host:443/a", "host:443", "host"),
        ("https://host:80/a", "host:80", "host"),
        ("https://host.:8443/a", "host.:8443", "host."),
        ("http://127.0.0.1:080/a", "127.0.0.1", "127.0.0.1"),
        ("http://[::1]/a", "[::1]", "::1"),
        ("http://[::1]:80/a", "[::1]", "::1"),
        ("http://[::1]:81/a", "[::1]:81", "::1"),
        ("http://[fe80::1%25eth0]/a", "[fe80::1]", "fe80::1"),
        ("https://[fe80::1%eth0]:8443/a", "[fe80::1]:8443", "fe80::1"),
    ],
)
def test_host_as_others_know_it(url: str, field: str, certified: str) -> None:
    """Signatures are made of the Host field: it is what all clients send."""
    origin = address.origin(url)
    assert (origin.field, origin.certified) == (field, certified)


@pytest.mark.parametrize(
    "zone", ["%", "%25%00", "%25%2F", "%25a b", "%25\u00e9", "%25a/b", "%25]x"]
)
def test_zone_that_no_interface_has_is_refused(zone: str) -> None:
    with pytest.raises(UsageError):
        address.parse(f"http://[fe80::1{zone}]/")


# References


@pytest.mark.parametrize(
    ("sent", "escaped"),
    [
        ("https://other/b.iso?x=%2F#f", "https://other/b.iso?x=%2F#f"),
        ("https://other/a b.iso?c d", "https://other/a%20b.iso?c%20d"),
        ("//other/a b", "//other/a%20b"),
        ("a b", "a%20b"),
        ("?a b", "?a%20b"),
        ("/\u00e9", "/%C3%A9"),
        ("https://b\u00fccher.test/\u20ac", "https://b\u00fccher.test/%E2%82%AC"),
        ("https://b\u00fccher.test", "https://b\u00fccher.test"),
        ('/"<>\\^`{|}', "/%22%3C%3E%5C%5E%60%7B%7C%7D"),
        ("/a//b c", "/a//b%20c"),
        ("", ""),
    ],
)
def test_escaping_a_reference(sent: str, escaped: str) -> None:
    assert address.escaped(sent.encode()) == escaped
    assert address.escaped(escaped.encode()) == escaped


def test_escaping_keeps_bytes_that_are_no_utf8() -> None:
    assert address.escaped(b"/caf\xe9.iso") == "/caf%E9.iso"


@given(st.binary(max_size=30))
def test_escaping_leaves_nothing_behind_the_host_to_escape(reference: bytes) -> None:
    escaped = address.escaped(b"/" + reference.lstrip(b"/"))
    assert escaped.isascii()
    assert escaped.isprintable()
    assert " " not in escaped


@pytest.mark.parametrize(
    ("here", "there", "may"),
    [
        ("https://host/a", "https://host/b", True),
        ("https://host/a", "https://host:443/b", True),
        ("https://host/a", "https://HOST/b", True),
        ("http://host/a", "https://host/b", True),  # upgraded
        ("https://host/a", "http://host/b", False),
        ("http://host/a", "https://host:8443/b", False),
        ("http://host:8080/a", "https://host/b", False),
        ("https://host/a", "https://host:8443/b", False),
        ("https://host/a", "https://other/b", False),
        ("https://host/a", "https://host.evil/b", False),
        ("https://host/a", "https://host@evil/b", False),
        ("http://host/a", "https://other/b", False),
    ],
)
def test_where_credentials_may_go(here: str, there: str, may: bool) -> None:
    assert address.origin(here).may_share(address.origin(there)) is may


# Names


def safe_name(name: str) -> bool:
    return (
        name not in ("", ".", "..")
        and "/" not in name
        and all(c.isprintable() for c in name)
        and len(name.encode()) <= 255
    )


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("https://host/a.iso", "a.iso"),
        ("https://host/d/a.iso?x=1#f", "a.iso"),
        ("https://host/d/a.iso/", "a.iso"),
        ("https://host/a%20b.iso", "a b.iso"),
        ("https://host/%E2%82%AC.iso", "\u20ac.iso"),
        ("https://host/a%2Fb.iso", "a_b.iso"),
        ("https://host/a%00%0Ab.iso", "a__b.iso"),
        ("https://host/%FF.iso", "\ufffd.iso"),
        ("https://host/", "host"),
        ("https://host", "host"),
        ("https://host/..", "host"),
        ("https://host/%2e%2E", "host"),
        ("https://host/d/.", "host"),
        ("https://host/" + "a" * 300, "a" * 255),
        ("https://host/" + "\u20ac" * 100, "\u20ac" * 85),
    ],
)
def test_file_name(url: str, name: str) -> None:
    assert address.file_name(url) == name


@given(st.lists(st.text(max_size=100).map(quote) | st.sampled_from(["/", "..", "%2F"]), max_size=5))
def test_file_names_are_safe_whatever_the_path(parts: list[str]) -> None:
    assert safe_name(address.file_name("https://host/" + "".join(parts)))


@pytest.mark.parametrize(
    "url",
    ["https://" + ".".join(5 * ["a" * 60]) + "/", "https://" + ".".join(3 * ["\u20ac" * 30])],
    ids=["long", "long in bytes"],
)
def test_a_host_makes_a_safe_name_too(url: str) -> None:
    assert safe_name(address.file_name(url))


# Cache keys


@pytest.mark.parametrize("letter", ["a", "\u00e9", "\u20ac", "\U0001f600"])
def test_a_cache_key_is_a_file_name_however_long_the_url(letter: str) -> None:
    assert safe_name(address.cache_key("https://host/" + letter * 200))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("https://host/a", "https://user:pw@host/a", True),
        ("https://host/a", "https://host/a#f", True),
        ("https://host", "https://host/", True),
        ("https://host/a", "https://host/b", False),
        ("https://host/a", "http://host/a", False),
        ("https://host/a", "https://other/a", False),
        ("https://host/a", "https://host:81/a", False),
        ("https://host/a?x=1", "https://host/a?x=2", False),
        ("https://host/a", "https://host/d/a", False),
        ("https://host/a%2Fb", "https://host/a_b", False),
    ],
)
def test_cache_keys_tell_images_apart(one: str, other: str, same: bool) -> None:
    assert (address.cache_key(one) == address.cache_key(other)) is same


def test_a_cache_key_holds_no_secret() -> None:
    key = address.cache_key(f"https://{SECRET}:{SECRET}@host/a.iso?sig={SECRET}")
    assert key.startswith("a.iso-")
    assert SECRET not in key

"""Keys of an NBD server, as psktool(1) writes them."""

import ssl

import pytest

from lazyfs.frontends.nbdtls import CIPHERS, parse_keys


def test_keys_by_their_users() -> None:
    text = "# of the lab\nalice:00ff\n\na:b:CAFE\n"
    assert parse_keys(text) == {"alice": b"\x00\xff", "a:b": b"\xca\xfe"}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is none in it"),
        ("# nothing\n", "there is none in it"),
        ("alice:00\nbob\n", "line 2 is not NAME:KEY"),
        (":00\n", "line 1 is not NAME:KEY"),
        ("alice:\n", "line 1 is not NAME:KEY"),
        ("alice:geheim\n", "the key in line 1 is not hexadecimal"),
    ],
)
def test_what_is_no_key_is_said_without_repeating_it(text: str, says: str) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_keys(text)
    assert "geheim" not in str(caught.value)


def test_no_cipher_for_keys_leaves_the_text_as_it_is() -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_ciphers(CIPHERS)
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert any("PSK" in name for name in names)
    assert not any("NULL" in name for name in names)

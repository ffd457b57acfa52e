"""Header fields that users write."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import UsageError
from lazyfs.sources.headers import parse_header, parse_headers

SECRET = "hunter2 hunter2"


def test_a_field_is_a_name_and_a_value() -> None:
    assert parse_header("Authorization:  Bearer a:b\t") == ("Authorization", "Bearer a:b")
    assert parse_header("X-Empty:") == ("X-Empty", "")


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (SECRET, "is no header field"),
        (f"two words: {SECRET}", "is no header field"),
        (f": {SECRET}", "is no header field"),
        (f"Range: {SECRET}", "it belongs to lazyfs"),
        (f"X: {SECRET}\nY: z", "cannot be sent"),
        (f"X: {SECRET}é", "cannot be sent"),
    ],
)
def test_what_is_no_field_is_refused_without_being_repeated(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint) as caught:
        parse_header(text)
    assert SECRET not in str(caught.value)


def test_a_file_has_one_field_a_line_and_comments() -> None:
    text = "# a token\n\n  X-One: 1\r\nX-Two: 2\n"
    assert parse_headers(text, "a line") == (("X-One", "1"), ("X-Two", "2"))
    with pytest.raises(UsageError, match="a line of /f is no header field"):
        parse_headers("X-One: 1\nno field", "a line of /f")


@given(st.text())
def test_whatever_is_written_is_a_field_or_an_error(text: str) -> None:
    try:
        name, value = parse_header(text)
    except UsageError:
        return
    assert name.isascii()
    assert value.isascii()
    assert "\n" not in name + value
    assert "\r" not in name + value

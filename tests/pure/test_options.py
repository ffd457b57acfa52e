"""How sizes and durations are written."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import UsageError
from lazyfs.core.options import format_size, parse_block_size, parse_duration, parse_size

KIB, MIB, GIB, TIB = 1 << 10, 1 << 20, 1 << 30, 1 << 40


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        ("4096", 4096),
        ("512b", 512),
        ("64K", 64 * KIB),
        ("64k", 64 * KIB),
        ("64KB", 64 * KIB),
        ("64KiB", 64 * KIB),
        ("64Ki", None),
        ("1M", MIB),
        ("10GiB", 10 * GIB),
        ("2t", 2 * TIB),
        (" 1M ", MIB),
        ("", None),
        ("K", None),
        ("-1", None),
        ("+1", None),
        ("1.5M", None),
        ("1 M", None),
        ("1P", None),
        ("0x10", None),
        ("1_000", None),
        ("9" * 19, None),
        ("64K\n1", None),
        ("\u0664K", None),  # a digit, but no one writes sizes with ARABIC-INDIC DIGIT FOUR
    ],
)
def test_sizes(text: str, size: int | None) -> None:
    if size is None:
        with pytest.raises(UsageError) as caught:
            parse_size(text)
        assert caught.value.cure
    else:
        assert parse_size(text) == size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("60", 60.0),
        ("1.5", 1.5),
        ("1.5s", 1.5),
        ("200ms", 0.2),
        ("200MS", 0.2),
        ("2m", 120.0),
        ("1h", 3600.0),
        (" 4s ", 4.0),
        ("", None),
        ("s", None),
        ("-1", None),
        ("1e3", None),
        ("inf", None),
        ("nan", None),
        (".5", None),
        ("5.", None),
        ("1w", None),
        ("30d", 30 * 86400.0),
        ("1 s", None),
        ("9" * 10, None),
        ("\u0664s", None),
    ],
)
def test_durations(text: str, seconds: float | None) -> None:
    if seconds is None:
        with pytest.raises(UsageError) as caught:
            parse_duration(text)
        assert caught.value.cure
    else:
        assert parse_duration(text) == pytest.approx(seconds)


@given(exponent=st.integers(0, 40))
def test_block_sizes_are_powers_of_two_from_4k_to_1m(exponent: int) -> None:
    text = str(1 << exponent)
    if 12 <= exponent <= 20:
        assert parse_block_size(text) == 1 << exponent
    else:
        with pytest.raises(UsageError, match="4K to 1M"):
            parse_block_size(text)


@pytest.mark.parametrize("text", ["0", "4097", "12K", "1000000", "3M", "64000"])
def test_other_block_sizes_are_refused(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        parse_block_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (KIB, "1.0 KiB"),
        (1536 * KIB, "1.5 MiB"),
        (GIB, "1.0 GiB"),
        (TIB, "1.0 TiB"),
        (5000 * TIB, "5000.0 TiB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    assert format_size(size) == text

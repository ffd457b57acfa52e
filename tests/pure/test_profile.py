"""Profiles: recording against a set of bytes, and the file against itself."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.device import Identity
from lazyfs.core.errors import ProfileError
from lazyfs.core.ranges import Span
from lazyfs.prefetch.profile import Profile, Recording, Use, as_text, merge, parse

SIZE = 10_000
IDENTITY = Identity(SIZE, '"v1"', "Mon, 06 Jan 2025 10:00:00 GMT")
URL = "https://host/a.iso"
SPANS = st.tuples(st.integers(0, 300), st.integers(0, 60)).map(lambda t: Span(t[0], t[0] + t[1]))
READS = st.lists(SPANS, max_size=40)


def recorded(*spans: Span) -> Profile:
    recording = Recording()
    for now, span in enumerate(spans):
        recording.note(100.0 + now, span)
    return recording.profile(URL, IDENTITY)


def covered(*spans: Span) -> list[int]:
    return [byte for span in spans for byte in range(span.start, span.stop)]


@given(READS)
def test_every_byte_that_was_read_is_there_once_in_the_order_of_first_reads(
    spans: list[Span],
) -> None:
    expected = list(dict.fromkeys(covered(*spans)))
    profile = recorded(*spans)
    assert covered(*(use.span for use in profile.uses)) == expected
    assert profile.length == len(expected)
    assert [use.time for use in profile.uses] == sorted(use.time for use in profile.uses)


def test_times_count_from_the_first_read() -> None:
    assert recorded(Span(10, 20), Span(50, 60)).uses == (
        Use(0.0, Span(10, 20)),
        Use(1.0, Span(50, 60)),
    )


def test_reads_that_go_on_are_one_range() -> None:
    assert recorded(Span(10, 20), Span(20, 35)).uses == (Use(0.0, Span(10, 35)),)


@given(READS)
def test_the_file_says_it_all(spans: list[Span]) -> None:
    profile = recorded(*spans)
    assert parse(as_text(profile)) == profile


@pytest.mark.parametrize(
    "identity", [Identity(SIZE), Identity(SIZE, '"a"'), Identity(SIZE, None, "x y")]
)
def test_validators_that_were_not_sent_are_not_there(identity: Identity) -> None:
    assert parse(as_text(Profile(URL, identity, ()))).identity == identity


def test_comments_and_empty_lines_are_skipped() -> None:
    text = f"lazyfs profile 1\n# by me\nsize {SIZE}\n\n# the kernel\n\n0.5 1 2\n"
    assert parse(text).uses == (Use(0.5, Span(1, 3)),)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "does not begin with 'lazyfs profile 1'"),
        ("lazyfs profile 2\nsize 1\n", "does not begin with 'lazyfs profile 1'"),
        ("lazyfs profile 1\n\n0.0 1 2\n", "does not say the size"),
        ("lazyfs profile 1\nsize -1\n\n", "does not say the size"),
        ("lazyfs profile 1\nsize 100\n\n0.0 1 2\nx\n", "line 2 of its ranges is not"),
        ("lazyfs profile 1\nsize 100\n\n0.0 99 2\n", "line 1 of its ranges ends behind"),
        ("lazyfs profile 1\nsize 100\n\n0.0 -1 2\n", "line 1 of its ranges is not"),
    ],
)
def test_what_is_no_profile_is_refused(text: str, message: str) -> None:
    with pytest.raises(ProfileError, match=message):
        parse(text)


@given(st.text())
def test_any_text_is_a_profile_or_an_error(text: str) -> None:
    for whole in (text, f"lazyfs profile 1\nsize 100\n\n{text}"):
        with contextlib.suppress(ProfileError):
            parse(whole)


@given(READS, READS)
def test_merged_is_what_either_read(one: list[Span], other: list[Span]) -> None:
    merged = merge([recorded(*one), recorded(*other)])
    bytes_of_both = covered(*(use.span for use in merged.uses))
    assert sorted(bytes_of_both) == sorted(set(covered(*one)) | set(covered(*other)))


def test_merged_takes_the_earliest_time() -> None:
    late = Profile(URL, IDENTITY, (Use(0, Span(0, 5)), Use(9.0, Span(50, 60))))
    early = Profile(URL, IDENTITY, (Use(2.0, Span(50, 55)),))
    assert merge([late, early]).uses == (
        Use(0, Span(0, 5)),
        Use(2.0, Span(50, 55)),
        Use(9.0, Span(55, 60)),
    )


def test_profiles_of_two_images_do_not_mix() -> None:
    other = Profile(URL, Identity(SIZE, '"v2"'), ())
    with pytest.raises(ProfileError, match="different images"):
        merge([recorded(), other])


def test_how_the_profiles_of_two_versions_differ_is_said() -> None:
    other = Profile("https://host/b.iso", Identity(SIZE, '"v2"'), ())
    with pytest.raises(ProfileError) as caught:
        merge([recorded(), other])
    assert caught.value.message == (
        f"the profiles are of different images: {URL} and https://host/b.iso, or of two versions "
        "of one"
    )
    assert caught.value.cure == "merge profiles of one version only"


def test_a_profile_that_has_no_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lazyfs.prefetch.profile.MOST_USES", 10)
    text = "lazyfs profile 1\nsize 100\n\n" + "0.0 1 2\n" * 21
    with pytest.raises(ProfileError, match="it has more than 10 ranges") as caught:
        parse(text)
    assert caught.value.cure == "make one with: lazyfs --record FILE ..."

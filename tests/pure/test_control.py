"""The control protocol: lines of JSON, and nothing else."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lazyfs.core.errors import ControlError
from lazyfs.protocols import control

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(1 << 63), 1 << 63) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)
FIELDS = st.dictionaries(st.text().filter(lambda n: n not in ("lazyfs", "do")), VALUES, max_size=4)


@given(st.text(), FIELDS)
def test_what_is_asked_arrives(command: str, fields: dict[str, object]) -> None:
    line = control.asking(command, fields)
    assert line.endswith(b"\n")
    assert line.count(b"\n") == 1
    assert control.asked(line) == (command, fields)


@given(FIELDS)
def test_what_is_answered_arrives(result: dict[str, object]) -> None:
    assert control.answered(control.answering(result)) == result


@given(st.text(min_size=1), st.text())
def test_a_refusal_arrives_with_its_words(message: str, cure: str) -> None:
    with pytest.raises(ControlError) as caught:
        control.answered(control.refusing(message, cure))
    assert (caught.value.message, caught.value.cure) == (message, cure)


@pytest.mark.parametrize("read", [control.asked, control.answered])
@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b"", "no line of JSON"),
        (b"GET / HTTP/1.1\r\n", "no line of JSON"),
        (b"\xff\xfe\n", "no line of JSON"),
        (b"[" * 100_000, "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": NaN}}', "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": -Infinity}}', "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": 1e999}}', "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": 1e300}}', "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": 9223372036854775809}}', "no line of JSON"),
        (b'{"lazyfs": 1, "do": "status", "ok": {"size": %s}}' % (b"9" * 5000), "no line of JSON"),
        (b"[]\n", "does not speak version 1"),
        (b'{"do": "status"}\n', "does not speak version 1"),
        (b'{"lazyfs": 2, "do": "status", "ok": {}}\n', "does not speak version 1"),
    ],
)
def test_what_is_no_line_of_ours_is_refused(read: object, line: bytes, says: str) -> None:
    with pytest.raises(ControlError, match=says):
        read(line)  # type: ignore[operator]


@pytest.mark.parametrize("content", [{}, {"do": 5}, {"do": None}])
def test_a_request_says_what_to_do(content: dict[str, object]) -> None:
    with pytest.raises(ControlError, match="does not say what to do"):
        control.asked(json.dumps({"lazyfs": 1, **content}).encode())


@pytest.mark.parametrize("content", [{}, {"ok": 5}, {"ok": None}])
def test_an_answer_has_a_result_or_an_error(content: dict[str, object]) -> None:
    with pytest.raises(ControlError, match="makes no sense"):
        control.answered(json.dumps({"lazyfs": 1, **content}).encode())


@given(st.binary(max_size=200))
def test_no_bytes_do_any_harm(line: bytes) -> None:
    for read in (control.asked, control.answered):
        try:
            read(line)
        except ControlError:
            continue


def test_an_answer_that_is_neither_is_said_to_make_no_sense() -> None:
    with pytest.raises(ControlError, match="the daemon's answer makes no sense") as caught:
        control.answered(b'{"lazyfs": 1, "maybe": {}}\n')
    assert caught.value.cure

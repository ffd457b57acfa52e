"""Each message has a next step, stands in docs/reference/messages.rst, and is provoked by a test.

That it is provoked is told from the tests' source: some test has to say words of the message that
no other message has, three in a row where there are so many. What a test gives to an error that it
makes itself does not count. To record what is raised while tests run would prove more, but most
errors come from commands and daemons: it would take a run of all tests with each of their processes
recorded, and this file alone could say nothing.
"""

import ast
import importlib.util
import re
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

from docutils import nodes
from docutils.core import publish_doctree

TESTS = Path(__file__).resolve().parents[1]
DOCS = TESTS.parent / "docs"
TROUBLESHOOTING = DOCS / "troubleshooting.rst"  # test_troubleshooting.py provokes all that is there

# Files where an error takes its words from somebody else, and from whom.
PASSED_ON = {
    "cli/configured.py": "the type of an option, which has its own cure",
    "cli/parser.py": "argparse",
    "cli/tour/mounts.py": "the command that the tour runs, which has its own cure",
    "protocols/control.py": "the daemon that refuses, with its own cure",
    "protocols/nbdclient.py": "the class itself, of an option and what the server said",
    "sources/nbdconnection.py": "the codec of NBD",
}

_WORDS = re.compile(r"\.\.\.|\.\*|[\w'/~-]+")


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{path.stem}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look their own module up
    spec.loader.exec_module(module)
    return module


messages = load(DOCS / "messages.py")
SOURCE = messages.Source.read()
SEEN = SOURCE.messages
TEXTS = frozenset(message.text for message in SEEN)


def test_each_message_has_a_next_step_in_one_clause() -> None:
    assert {message for message in SEEN if not message.cure} == set()
    for message in SEEN:
        assert message.cure.endswith(messages.GAP) or message.cure[-1] not in ".; ", message
        assert message.cure not in message.text, message
        assert len(f"{message.text}; {message.cure}") < 200, message


def test_the_page_has_all_messages_and_no_others() -> None:
    """It is made by ``python docs/messages.py``."""
    assert messages.PAGE.read_text() == messages.page(SEEN)
    terms = publish_doctree(messages.PAGE.read_text()).findall(nodes.term)
    assert {term.astext() for term in terms} == TEXTS


def test_words_from_elsewhere_have_a_next_step_from_there() -> None:
    assert set(PASSED_ON) == SOURCE.passed_on


def test_notes_are_about_messages() -> None:
    assert set(messages.NOTES) <= TEXTS


def test_each_message_is_provoked_by_a_test() -> None:
    assert {
        text for text in TEXTS if not any(own in said_by_tests() for own in own_words(text))
    } == set()


def test_what_tests_say_is_found_in_the_right_places() -> None:
    code = (
        'def f():\n    """not a docstring"""\n    g(f"{x} in" " words.*", NotFound("not mine"))\n'
    )
    assert list(strings(ast.parse(code))) == ["... in words.*"]
    others = frozenset({"... cannot be read: ...", "the file ... cannot be read by it: ..."})
    assert own_words("the file ... cannot be read by it: ...", others) == [
        " be read by ",
        " read by it ",
    ]
    assert own_words("... cannot be read: ...", others) == [" cannot be read "]
    assert own_words("... fails", others) == [" fails "]


def own_words(text: str, texts: frozenset[str] = TEXTS) -> list[str]:
    """The words in a row that tell a message from all others; all of its own, if none do."""
    runs = [run.split() for run in _spaced(text).split(messages.GAP)]
    count = min(3, max(map(len, runs)))
    rows = [
        f" {' '.join(run[start : start + count])} "
        for run in runs
        for start in range(len(run) - count + 1)
    ]
    others = [*map(_spaced, texts - {text})]
    return [row for row in rows if not any(row in other for other in others)] or rows


@cache
def said_by_tests() -> str:
    explained = publish_doctree(TROUBLESHOOTING.read_text()).findall(nodes.literal_block)
    said = [block.astext() for block in explained]
    for file in TESTS.rglob("*.py"):
        if file != Path(__file__):
            said += strings(ast.parse(file.read_text()))
    return "\n".join(map(_spaced, said))


def strings(node: ast.AST) -> Iterator[str]:
    """All strings of some source but docstrings, and what errors are made of."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.Constant):
            yield from [child.value] if isinstance(child.value, str) else []
        elif isinstance(child, ast.JoinedStr):
            parts = (v.value if isinstance(v, ast.Constant) else messages.GAP for v in child.values)
            yield "".join(map(str, parts))
        elif not _is_docstring(child) and not _makes_an_error(child):
            yield from strings(child)


def _is_docstring(node: ast.AST) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _makes_an_error(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and messages.called(node) in messages.CLASSES


@cache
def _spaced(text: str) -> str:
    """Its words with spaces around each; backslashes and the like are a regular expression's."""
    return f" {' '.join(_WORDS.findall(text.replace(chr(92), '')))} "

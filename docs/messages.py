"""docs/reference/messages.rst, made from the source: ``python docs/messages.py``.

A message is a place where an error of lazyfs/core/errors.py is made, or of a class derived from one
there. Its words are looked up as far as they are written down: in conditional expressions, in names
that are bound to them, in functions that return or take them. ``...`` stands for all else.
"""

import ast
import re
import sys
import textwrap
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from pathlib import Path

from lazyfs.core import errors
from lazyfs.protocols.nbd import ProtocolError

DOCS = Path(__file__).resolve().parent
SOURCE = DOCS.parent / "lazyfs"
PAGE = DOCS / "reference/messages.rst"
GAP = "..."

# What each class means, by the tree in errors.py.
_KINDS: dict[str, str] = {"LazyfsError": "what fits no other kind"}
_KINDS |= dict(re.findall(r"\+-- (\w+) +(.+)", errors.__doc__ or ""))
_KINDS["ProtocolError"] = (
    "an NBD server, a client or the kernel does what NBD does not allow; that it is a server is "
    "shown as BadAnswer, whose next step is to check the URL, and its port"
)
# The class that an error is shown as.
CLASSES = {name: name for name in _KINDS}
CLASSES |= {"EndOfStream": "ProtocolError", "Refused": "ProtocolError", "NoNetlink": "DeviceError"}

# Files whose errors no user sees, and why.
CAUGHT = {
    "formats/savedtree.py": "a damaged catalog file is read from the image again",
    "testing/conformance.py": "only tests see it",
    "testing/evil.py": "what tests read from fails on purpose",
}

# What cannot be said in a line.
NOTES = {
    "... fell silent": (
        "That is, for 15 seconds or a third of ``--timeout``. It is asked again, and waited for "
        "twice as long."
    ),
    "... has changed on the server since it was opened": (
        "No more of it can be read: what is cached is of one version, and all else of another."
    ),
    "...: the server does not support range requests": (
        "It was asked for a part of the file, and answered with all of it."
    ),
    "...: no data within ... seconds...": "The program that wanted to read has got EIO.",
    "... is another version than the one that is cached in ...": (
        "This is said with ``--on-change fail``, and when a device is repaired."
    ),
    "it did not come within ... seconds": (
        "This is about ``--profile auto``: the profile that lies beside the image on its server."
    ),
    "the cache ... is in use by another lazyfs (process ...)": (
        "A cache has one daemon. What it has mounted can be shown elsewhere by bind mounts."
    ),
    "a loop device stands on ...": (
        "The image was complete, and the loop device went on without a daemon."
    ),
}

_WORD = re.compile(r"[a-z]{2}")
_Function = ast.FunctionDef | ast.AsyncFunctionDef
_INTRODUCTION = """\
========
Messages
========

.. This page is made from the source by docs/messages.py.

All that lazyfs can say went wrong, by kind. A message stands in one line behind ``lazyfs:``, or in
the log, and then, behind a semicolon, what to do next. ``...`` stands for what differs from case to
case: mostly the URL, file or device that it is about. Those that are seen most are explained in
`Troubleshooting <../troubleshooting.rst>`_.

.. contents::
   :local:
   :depth: 1
"""


@dataclass(frozen=True, order=True)
class Message:
    """``kind``: the name of a class. ``cure``: what to do next. ``file``: where it is made."""

    kind: str
    text: str
    cure: str
    file: str

    @property
    def has_words(self) -> bool:
        return _WORD.search(self.text) is not None


@dataclass(frozen=True, eq=False)
class Module:
    """A file of the source. ``file``: its path below lazyfs/."""

    file: str
    tree: ast.Module

    @cached_property
    def functions(self) -> list[_Function]:
        return [node for node in ast.walk(self.tree) if isinstance(node, _Function)]

    @cached_property
    def calls(self) -> list[ast.Call]:
        return [n for n in ast.walk(self.tree) if isinstance(n, ast.Call) and n.args]

    def around(self, node: ast.AST) -> ast.AST:
        """The innermost function that a node is in, or else the module."""
        return self._owners[node]

    @cached_property
    def _owners(self) -> dict[ast.AST, ast.AST]:
        owners: dict[ast.AST, ast.AST] = {}
        for function in [self.tree, *self.functions]:  # from the outside to the inside
            owners |= dict.fromkeys(ast.walk(function), function)
        return owners


@dataclass(frozen=True)
class Source:
    """All modules, and the errors that are made there."""

    modules: tuple[Module, ...]

    @classmethod
    def read(cls) -> "Source":
        paths = sorted(path for path in SOURCE.rglob("*.py") if path != SOURCE / "core/errors.py")
        found = ((p.relative_to(SOURCE).as_posix(), ast.parse(p.read_text())) for p in paths)
        return cls(tuple(Module(*module) for module in found))

    @cached_property
    def made(self) -> list[Message]:
        """Every error that is made; the text of those whose words come from elsewhere is bare."""
        found = set()
        for module in self.modules:
            for place, name, text, cure in _errors(module.tree):
                texts = _Texts(self.modules, module, module.around(place))
                for said, step in product(texts.of(text), texts.of(cure) if cure else [""]):
                    found.add(_message(name, said, step, module.file))
        return sorted(found)

    @property
    def messages(self) -> list[Message]:
        """What a user may see."""
        return [m for m in self.made if m.has_words and m.file not in CAUGHT]

    @property
    def passed_on(self) -> set[str]:
        """The files in which an error is made of words that come from elsewhere."""
        return {message.file for message in self.made if not message.has_words}


@dataclass(frozen=True)
class _Texts:
    """What expressions may be that stand in one function (or outside of all) of one module."""

    modules: tuple[Module, ...]
    module: Module
    around: ast.AST
    depth: int = 5  # of names and functions that are looked up; some lead back to themselves

    def of(self, node: ast.expr) -> list[str]:
        """All that is written down; a gap if nothing is."""
        return self._of(node) or [GAP]

    def _of(self, node: ast.expr) -> list[str]:
        match node:
            case ast.Constant(value=str(text)):
                return [text]
            case ast.JoinedStr(values=values):
                words = "".join(str(v.value) for v in values if isinstance(v, ast.Constant))
                parts = [self._part(v, wanted=not _WORD.search(words)) for v in values]
                return ["".join(chosen) for chosen in product(*parts)]
            case ast.IfExp(body=one, orelse=other):
                return [*self._of(one), *self._of(other)]
            case ast.BoolOp(values=values):
                return [text for value in values for text in self._of(value) if text]
            case ast.BinOp(left=left, op=ast.Add(), right=right):
                return [one + other for one, other in product(self.of(left), self.of(right))]
            case ast.Call(func=ast.Attribute(value=template, attr="format")):
                return [re.sub(r"\{\w+\}", GAP, text) for text in self._of(template)]
            case ast.Call(func=ast.Name(id="next"), args=[ast.GeneratorExp(generators=[one])]):
                return [t for _, value in self._bound(one.iter) for t in _constants(value)]
            case ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name)) if self.depth:
                return [t for texts, value in self._returned(name) for t in texts._of(value)]
            case ast.Name() if self.depth:
                return [t for texts, value in self._bound(node) for t in texts._of(value)]
        return []

    def _part(self, node: ast.expr, *, wanted: bool) -> list[str]:
        """A part of a formatted string; ``wanted``: that has no words of its own.

        What may be one of a few words that are written down is one of these.
        """
        if not isinstance(node, ast.FormattedValue):
            return self.of(node)
        bound = [value for _, value in self._bound(node.value)]
        words = [
            w for b in bound for w in ([b.body, b.orelse] if isinstance(b, ast.IfExp) else [b])
        ]
        known = (
            bound != []
            and node.conversion < 0
            and all(isinstance(word, ast.Constant) for word in words)
        )
        return self.of(node.value) if wanted or known else [GAP]

    def _bound(self, node: ast.expr) -> "Iterator[tuple[_Texts, ast.expr]]":
        """What a name is bound to: here, in the module, or by those who call this function."""
        name, deeper = node.id if isinstance(node, ast.Name) else "", self.depth - 1
        imported = name.isupper() and not name.startswith("_")
        constants = self.modules if imported else (self.module,)
        for assigned in [*ast.walk(self.around), *(n for m in constants for n in m.tree.body)]:
            if isinstance(assigned, ast.Assign | ast.AnnAssign) and name in _targets(assigned):
                yield replace(self, depth=deeper), assigned.value or ast.Constant(None)
        if isinstance(self.around, _Function):
            names = [argument.arg for argument in self.around.args.args if argument.arg != "self"]
            place = names.index(name) if name in names else sys.maxsize
            for call in self.module.calls:
                if called(call) == self.around.name and len(call.args) > place:
                    caller = self.module.around(call)
                    yield replace(self, around=caller, depth=deeper), call.args[place]

    def _returned(self, name: str) -> "Iterator[tuple[_Texts, ast.expr]]":
        """What functions of this name return: those of this module, or else the only one."""
        everywhere = [(m, f) for m in self.modules for f in m.functions if f.name == name]
        here = [(m, f) for m, f in everywhere if m is self.module]
        for module, function in here or (everywhere if len(everywhere) == 1 else []):
            for node in ast.walk(function):
                if isinstance(node, ast.Return) and node.value is not None:
                    yield _Texts(self.modules, module, function, self.depth - 1), node.value


def page(messages: Iterable[Message]) -> str:
    """The whole page: kinds in the order of their tree, messages by their words."""
    parts = [_INTRODUCTION]
    for kind, meaning in _KINDS.items():
        own: dict[str, list[str]] = {}
        for message in sorted(m for m in messages if m.kind == kind):
            own.setdefault(message.text, []).append(message.cure)
        if own:
            sentence = textwrap.fill(f"{meaning[0].upper()}{meaning[1:]}.", 100)
            parts.append(f"{kind}\n{'=' * len(kind)}\n\n{sentence}\n")
        for text, cures in own.items():
            steps = "; or: ".join(dict.fromkeys(filter(None, cures)))
            notes = [_indented(NOTES[text])] if text in NOTES else []
            parts.append("\n".join([f"``{text}``", _indented(_escaped(steps)), *notes]))
    return "\n".join(parts)


def _errors(tree: ast.AST) -> Iterator[tuple[ast.AST, str, ast.expr, ast.expr | None]]:
    """The errors that are made in a module: where, of which class, the message and the cure."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef):
            for call in (n for n in ast.walk(node) if isinstance(n, ast.Call) and n.args):
                if node.name in CLASSES and ast.unparse(call.func) == "super().__init__":
                    yield call, node.name, call.args[0], None
        elif isinstance(node, ast.Call) and node.args:
            first = node.args[0]
            if called(node) in CLASSES:
                yield node, called(node), first, node.args[1] if len(node.args) > 1 else None
            elif isinstance(first, ast.Name) and first.id in CLASSES and len(node.args) > 1:
                yield node, first.id, node.args[1], None  # a class and a message, for later


def _message(name: str, text: str, cure: str, file: str) -> Message:
    kind = CLASSES[name]
    usual = getattr(errors, kind, ProtocolError).usual_cure
    return Message(kind, _tidy(text), _tidy(cure) or usual, file)


def _tidy(text: str) -> str:
    """With one gap where several follow each other."""
    return re.sub(r"(\.\.\.)+", GAP, " ".join(text.split()))


def called(call: ast.Call) -> str:
    match call.func:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name
    return ""


def _targets(node: ast.Assign | ast.AnnAssign) -> list[str]:
    targets = node.targets if isinstance(node, ast.Assign) else [node.target]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _constants(node: ast.AST) -> Iterator[str]:
    for inner in ast.walk(node):
        if isinstance(inner, ast.Constant) and isinstance(inner.value, str):
            yield re.sub(r"\{\w+\}", GAP, inner.value)


def _indented(text: str) -> str:
    margin = " " * 3
    return textwrap.fill(text, 100, initial_indent=margin, subsequent_indent=margin) + "\n"


def _escaped(text: str) -> str:
    return re.sub(r"[\\*`|]|_(?!\w)", r"\\\g<0>", text)


if __name__ == "__main__":
    PAGE.write_text(page(Source.read().messages), encoding="utf-8")

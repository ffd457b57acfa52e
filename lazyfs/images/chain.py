"""The layers of an image: from a URL's fragment to a stack of Devices.

``#offset=1M,length=4G,part=2`` is a chain of two layers: a partition of a slice. Each layer sees
only the Device below it. The topmost Device is the *view*. Its id is made of the cache's key and
the chain, since two parts of one image have the same validators, and may have the same size.
"""

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lazyfs.core import address
from lazyfs.core.device import Device
from lazyfs.core.errors import ImageError, UsageError
from lazyfs.core.ranges import Span
from lazyfs.formats import registry
from lazyfs.formats.layer import Layer, Opening

_HOW = "see IMAGES in lazyfs(1); a # in a file name is written %23"

_PLAIN = re.compile(r"[a-z]{1,8}")


@dataclass(frozen=True)
class Step:
    """A requested layer. ``arguments``: from its format's ``parse``."""

    opening: Opening
    arguments: Any

    @property
    def text(self) -> str:
        """The step, written as in a fragment."""
        return self.opening.as_text(self.arguments)


def parse(fragment: str) -> list[Step]:
    """The layers that a fragment names, the lowest first. Raises UsageError."""
    steps: list[Step] = []
    opening: Opening | None = None
    values: dict[str, str] = {}
    for word, value in address.words_of(fragment):
        found = registry.opening_of(word)
        if found is None:
            # Anything but a plain word may be part of a secret, torn apart at a "#".
            shown = word if _PLAIN.fullmatch(word) else "..."
            known = ", ".join(_words())
            raise UsageError(f"#{shown} is no layer of an image", f"known are {known}; {_HOW}")
        if opening is not None and (found is not opening or word in values):
            steps.append(Step(opening, opening.parse(values)))
            values = {}
        opening = found
        values[word] = value
    if opening is not None:
        steps.append(Step(opening, opening.parse(values)))
    return steps


def named(name: str, steps: Sequence[Step]) -> str:
    """The file name of the view of an image called ``name``."""
    for step in steps:
        name = step.opening.named(name, step.arguments)
    return address.cut(name, address.LONGEST_NAME)


async def open_chain(below: Device, steps: Sequence[Step], name: str) -> list[Layer]:
    """Open layers on top of ``below``, the lowest first. Raises a LazyfsError.

    ``name``: the image's, for messages.
    """
    layers: list[Layer] = []
    for step in steps:
        try:
            layers.append(await step.opening.open(below, step.arguments))
        except ImageError as error:
            raise error.about(f"{name}: {step.text}") from error
        below = layers[-1].device
    return layers


def view_id(cache_key: str, texts: Sequence[str]) -> str:
    """The id of a view; without layers, of the image itself."""
    return f"{cache_key}#{','.join(texts)}" if texts else cache_key


def digest_of(view: str) -> str:
    """A digest of a view's chain, for file names; empty for the image itself."""
    _, hash_mark, chain = view.partition("#")
    return hashlib.sha256(chain.encode()).hexdigest()[:16] if hash_mark else ""


def window_of(layers: Sequence[Layer], size: int) -> Span | None:
    """The range of the image that makes up the view; None if it is not a single range.

    ``size``: the image's, in bytes.
    """
    window = Span(0, size)
    for layer in layers:
        if layer.window is None:
            return None
        start = window.start + layer.window.start
        window = Span(start, start + layer.window.length)
    return window


def _words() -> list[str]:
    return [
        f"#{word}"
        for known in registry.FORMATS
        if known.opening is not None
        for word in known.opening.words
    ]

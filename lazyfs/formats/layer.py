"""Layers (Devices on top of Devices), and how formats open them."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lazyfs.core.device import Device
from lazyfs.core.ranges import Span


class Layer(NamedTuple):
    """A Device on top of a Device.

    ``text``: the layer, written as in a URL's fragment.
    ``window``: the bytes of the image below that it shows; None if it shows something else.
    """

    text: str
    device: Device
    window: Span | None


@dataclass(frozen=True)
class Opening:
    """How to open a layer of a format.

    ``words``: its names in a fragment; consecutive ones make up one layer.
    """

    words: tuple[str, ...]

    parse: Callable[[Mapping[str, str]], Any]
    """Parse the words' values into the arguments of the other functions. Raises UsageError."""

    as_text: Callable[[Any], str]
    """The arguments, written as in a fragment."""

    named: Callable[[str, Any], str]
    """The name of the layer's file, given the name of the file below."""

    open: Callable[[Device, Any], Awaitable[Layer]]
    """Open the layer. Raises a LazyfsError."""

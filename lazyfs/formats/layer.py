"""What a layer is: a Device on a Device; and how a format says that it makes one."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from lazyfs.core.device import Device
from lazyfs.core.ranges import Span


class Layer(NamedTuple):
    """A Device on a Device. ``text``: the layer as it stands in a URL's fragment.

    ``window``: the bytes of the image below that it shows; None if it shows something else.
    """

    text: str
    device: Device
    window: Span | None


@dataclass(frozen=True)
class Opening:
    """How an image is opened through a format.

    ``words``: the names in a fragment that stand for it; those that follow each other make up one
    layer.
    """

    words: tuple[str, ...]

    parse: Callable[[Mapping[str, str]], Any]
    """From the words' values to what the others take as ``arguments``. Raises UsageError."""

    as_text: Callable[[Any], str]
    """The arguments as they stand in a fragment."""

    named: Callable[[str, Any], str]
    """What the file is called that shows the layer of a file with this name."""

    open: Callable[[Device, Any], Awaitable[Layer]]
    """Makes the layer. Raises a LazyfsError."""

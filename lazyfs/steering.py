"""What a running daemon says of itself, and what it can be told over its control socket.

docs/control.rst describes each, with the fields of what it answers.
"""

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import trio

from lazyfs import __version__, logs
from lazyfs.control import own_socket
from lazyfs.device import Priority
from lazyfs.errors import ControlError
from lazyfs.frontends.controlsocket import ControlServer, Handler, listening_at
from lazyfs.options import parse_rate
from lazyfs.stack import Image

log = logging.getLogger(__name__)

_MAP_CELLS = 4096  # of a map, at most


@dataclass(frozen=True)
class Place:
    """Where the images of a daemon are. ``front_end``: "fuse", "loop", "nbd" or "serve";
    ``places``: the mount point, the device, or all URIs."""

    front_end: str
    places: tuple[str, ...]


End = Callable[[], Awaitable[object]]


def let_steer(
    place: Place,
    images: Sequence[Image],
    end: End,
    nursery: trio.Nursery,
    closing: contextlib.AsyncExitStack,
) -> None:
    """Answer over a control socket, until ``nursery`` is cancelled; ``closing`` takes it away.

    ``end``: have the daemon end, unless it is in use; raises a LazyfsError then. Without a socket
    the daemon works as well; so what stands against one is only said.
    """
    try:
        listener = closing.enter_context(listening_at(own_socket()))
    except ControlError as error:
        log.warning("lazyfs status will not show this: %s", error)
        return
    recent = closing.enter_context(logs.remembering())
    handlers = Steering(place, images, recent, end).handlers()
    nursery.start_soon(ControlServer(handlers).listen, listener)


class Steering:
    """The commands of one daemon."""

    def __init__(
        self, place: Place, images: Sequence[Image], recent: Iterable[str], end: End
    ) -> None:
        """``recent``: the last lines of the log, at any time. ``end``: see ``let_steer``."""
        self._place = place
        self._images = images
        self._recent = recent
        self._end = end

    def handlers(self) -> Mapping[str, Handler]:
        """What to call for which command."""
        return {
            "status": self._status,
            "map": self._map,
            "log": self._log,
            "fill": self._fill,
            "pause": self._pause,
            "resume": self._resume,
            "rate": self._rate,
            "stop": self._stop,
        }

    async def _status(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "front_end": self._place.front_end,
            "where": next(iter(self._place.places), ""),
            "places": self._place.places,
            "images": [_described(image) for image in self._picked(fields)],
        }

    async def _map(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """What is here and what is coming, in at most ``cells`` parts of equal length."""
        cells = fields.get("cells", 1024)
        if not isinstance(cells, int) or not 1 <= cells <= _MAP_CELLS:
            raise ControlError(f"a map has 1 to {_MAP_CELLS} cells")
        return {"images": [_mapped(image, cells) for image in self._picked(fields)]}

    async def _log(self, fields: dict[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """The last lines."""
        return {"lines": list(self._recent)}

    async def _fill(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Fetch all the rest, too."""
        for image in self._picked(fields):
            image.cache.resume()
            await image.cache.ensure(0, image.cache.identity.size, Priority.FILL)
        return {}

    async def _pause(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Fetch nothing that nobody waits for."""
        for image in self._picked(fields):
            image.cache.pause()
        return {}

    async def _resume(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        for image in self._picked(fields):
            image.cache.resume()
        return {}

    async def _rate(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """The most that the fill may fetch in a second: "10M/s", or null for no limit."""
        text = fields.get("rate")
        rate = None if text is None else parse_rate(str(text))
        for image in self._picked(fields):
            image.cache.limit_rate(rate)
        return {"rate": rate}

    async def _stop(self, fields: dict[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """End, unless somebody needs it."""
        await self._end()
        return {}

    def _picked(self, fields: dict[str, Any]) -> Sequence[Image]:
        """The image that is named, or all. Raises ControlError."""
        name = fields.get("image")
        if name is None:
            return self._images
        picked = [image for image in self._images if image.name == name]
        if not picked:
            names = ", ".join(image.name for image in self._images)
            raise ControlError(f"there is no image {name!r} here", f"there are {names}")
        return picked


def _described(image: Image) -> dict[str, Any]:
    state, statistics, now = image.cache.state(), image.device.statistics(), trio.current_time()
    left = statistics.size - statistics.cached
    flow = min(state.flow, state.fill_rate or state.flow)
    lasting = left / flow if state.filling and not state.paused and flow > 1 else None
    return {
        "name": image.name,
        "url": image.url,
        **asdict(statistics),
        **asdict(state),
        "slowest": [
            {"ago": now - at, "offset": offset, "length": length, "seconds": seconds}
            for at, offset, length, seconds in state.slowest
        ],
        "seconds_left": lasting,
    }


def _mapped(image: Image, count: int) -> dict[str, Any]:
    """Each part as [local, ahead, coming]."""
    cells = image.cache.cells(count)
    return {"name": image.name, "size": image.device.identity.size, "cells": cells}

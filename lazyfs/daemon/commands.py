"""The commands that a daemon accepts on its control socket.

docs/control.rst describes each command and the fields of its answer.
"""

import contextlib
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import trio

from lazyfs import __version__
from lazyfs.core.errors import ControlError, ImageError, ProfileError
from lazyfs.core.options import parse_rate
from lazyfs.daemon import logs
from lazyfs.daemon.client import own_socket
from lazyfs.daemon.controlsocket import ControlServer, Handler, listening_at
from lazyfs.daemon.handover import Outcome
from lazyfs.images.image import Image
from lazyfs.images.open import Stack
from lazyfs.images.preloading import Preloader
from lazyfs.protocols.control import MOST_CELLS

log = logging.getLogger(__name__)


async def _nothing_to_hand_over(image: Image) -> list[Outcome]:
    raise ControlError(
        f"no loop device stands on {image.name} here", "mount it, and loop-mount that"
    )


@dataclass(frozen=True)
class FrontEnd:
    """The front end of a daemon.

    ``kind``: "fuse", "loop", "nbd" or "serve".
    ``places``: the mount point, the device, or all URIs.
    ``end``: ends the daemon; raises a LazyfsError if it is in use.
    ``hand_over``: moves the loop devices on a complete image to its copy; raises a LazyfsError if
    that is impossible.
    """

    kind: str
    places: tuple[str, ...]
    end: Callable[[], Awaitable[object]]
    hand_over: Callable[[Image], Awaitable[Sequence[Outcome]]] = _nothing_to_hand_over


def serve_control(
    front: FrontEnd,
    stack: Stack,
    nursery: trio.Nursery,
    closing: contextlib.AsyncExitStack,
) -> None:
    """Serve a control socket until ``nursery`` is cancelled; ``closing`` removes it.

    The daemon works without a control socket too, so a failure to make one is only a warning.
    """
    try:
        listener = closing.enter_context(listening_at(own_socket()))
    except ControlError as error:
        log.warning("lazyfs status will not show this: %s", error)
        return
    recent = closing.enter_context(logs.remembering())
    handlers = Commands(front, stack, recent).handlers()
    nursery.start_soon(ControlServer(handlers).listen, listener)


class Commands:
    """The commands of one daemon."""

    def __init__(self, front: FrontEnd, stack: Stack, recent: Iterable[str]) -> None:
        """``recent``: a live view of the last lines of the log."""
        self._front = front
        self._stack = stack
        self._recent = recent

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers, by command."""
        return {
            "status": self._status,
            "map": self._map,
            "log": self._log,
            "fill": self._fill,
            "pause": self._pause,
            "resume": self._resume,
            "rate": self._rate,
            "preload": self._preload,
            "profile": self._record,
            "reload": self._reload,
            "handover": self._hand_over,
            "stop": self._stop,
        }

    async def _status(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        return {
            "version": __version__,
            "pid": os.getpid(),
            "front_end": self._front.kind,
            "where": next(iter(self._front.places), ""),
            "places": self._front.places,
            "images": [_described(image) for image in self._picked(fields)],
        }

    async def _map(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Local and incoming data, in at most ``cells`` parts of equal length."""
        cells = fields.get("cells", 1024)
        if not isinstance(cells, int) or not 1 <= cells <= MOST_CELLS:
            raise ControlError(
                f"a map has 1 to {MOST_CELLS} cells", "ask for a number of cells in between"
            )
        return {"images": [_mapped(image, cells) for image in self._picked(fields)]}

    async def _log(self, fields: dict[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """The last lines of the log."""
        return {"lines": list(self._recent)}

    async def _fill(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Start filling the cache."""
        for image in self._picked(fields):
            image.cache.resume()
            await image.fill()
        return {}

    async def _pause(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Stop background fetches."""
        for image in self._picked(fields):
            image.cache.pause()
        return {}

    async def _resume(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        for image in self._picked(fields):
            image.cache.resume()
        return {}

    async def _rate(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Limit the rate of the fill: "10M/s", or null for no limit."""
        text = fields.get("rate")
        rate = None if text is None else parse_rate(str(text))
        for image in self._picked(fields):
            image.cache.limit_rate(rate)
        return {"rate": rate}

    async def _preload(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Preload the files of an ISO that match ``patterns``, or the ranges in a ``profile``."""
        patterns, profile = fields.get("patterns", []), fields.get("profile")
        if not isinstance(patterns, list) or not isinstance(profile, str | None):
            raise ControlError(
                "what to preload is a list of patterns, or a profile's file",
                'send "patterns" or "profile"',
            )
        asked_for = 0
        for image in self._picked(fields):
            image.cache.resume()
            preloader = Preloader(image)
            try:
                if profile is not None:
                    await preloader.replay(Path(profile), bool(fields.get("any_version")))
                for pattern in patterns:
                    await preloader.preload(str(pattern))
            except (ImageError, ProfileError) as error:
                raise error.about(image.name) from error
            asked_for += preloader.asked_for
        return {"bytes": asked_for}

    async def _record(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Record what is read from now on into a profile, the file ``file``; null stops that."""
        file = fields.get("file")
        if not isinstance(file, str | None):
            raise ControlError("a profile is written to a file", 'send "file": its path, or null')
        images = self._picked(fields)
        if file is not None and len(images) > 1:
            raise ControlError("a profile is of one image", "name the image")
        for image in images:
            await image.recorder.record_to(Path(file) if file is not None else None)
        return {}

    async def _reload(self, fields: dict[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """Reload credentials, and open the log file anew."""
        logs.reopen()
        await self._stack.reload_credentials()
        log.info("logins are read anew")
        return {}

    async def _hand_over(self, fields: dict[str, Any]) -> Mapping[str, Any]:
        """Move the loop devices on complete images to their copies."""
        found = [
            outcome
            for image in self._picked(fields)
            for outcome in await self._front.hand_over(image)
        ]
        return {"devices": [asdict(outcome) for outcome in found]}

    async def _stop(self, fields: dict[str, Any]) -> Mapping[str, Any]:  # noqa: ARG002
        """End, unless in use."""
        await self._front.end()
        return {}

    def _picked(self, fields: dict[str, Any]) -> Sequence[Image]:
        """The named image, or all. Raises ControlError."""
        name = fields.get("image")
        if name is None:
            return self._stack.images
        picked = [image for image in self._stack.images if image.name == name]
        if not picked:
            names = ", ".join(image.name for image in self._stack.images)
            raise ControlError(f"there is no image {name!r} here", f"there are {names}")
        return picked


def _described(image: Image) -> dict[str, Any]:
    """An image's status. Statistics count bytes of its source; ``view`` is what readers see."""
    state, statistics, now = image.cache.state(), image.cache.statistics(), trio.current_time()
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
        "view": _viewed(image) if image.layers else None,
    }


def _viewed(image: Image) -> dict[str, Any]:
    """The view of an image with layers: its chain, and sizes in bytes."""
    statistics = image.device.statistics()
    return {"chain": image.chain, "size": statistics.size, "cached": statistics.cached}


def _mapped(image: Image, count: int) -> dict[str, Any]:
    """The parts of an image's source, each as [local, ahead, coming]."""
    cells = image.cache.cells(count)
    return {"name": image.name, "size": image.cache.identity.size, "cells": cells}

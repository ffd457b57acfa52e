"""Profiles: the ranges that a run read of an image, in order; recording, merging, (de)coding. Pure.

The file is text, one range a line, so that it can be read, edited and compared with diff::

    lazyfs profile 1
    url https://host/debian.iso
    size 661651456
    etag "5e8c-61f0c2"
    last-modified Mon, 06 Jan 2025 10:00:00 GMT

    0.000 32768 98304
    0.052 581632 4096

A line is the time of first use (seconds since the first read), the offset and the length, in bytes.
Lines that begin with ``#`` are comments. ``etag`` and ``last-modified`` are present if the server
sent them.

Rejected: JSON (a diff of it says little); block numbers (they depend on one cache's block size).
"""

import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from lazyfs.core.device import Identity
from lazyfs.core.errors import ProfileError
from lazyfs.core.ranges import Span
from lazyfs.prefetch.covered import Covered

_TITLE = "lazyfs profile 1"
_LINE = re.compile(r"(\d{1,9}\.\d{1,6}) (\d{1,19}) (\d{1,19})", re.ASCII)
PAUSE = 1.0  # seconds: a longer pause between two reads makes them two uses
LARGEST = 16 << 20  # bytes of a profile's file
MOST_USES = 200_000  # ranges of a profile; later ones say nothing about a start


class Use(NamedTuple):
    """A range (in bytes) and the time of its first read, in seconds since the run's first read."""

    time: float
    span: Span


@dataclass(frozen=True)
class Profile:
    """The reads of one version of an image. ``uses``: sorted by time, without overlaps."""

    url: str  # without secrets
    identity: Identity
    uses: tuple[Use, ...]

    @property
    def length(self) -> int:
        """Bytes in all."""
        return sum(use.span.length for use in self.uses)


class Recording:
    """A profile in the making."""

    def __init__(self) -> None:
        self._covered = Covered()
        self._uses: list[Use] = []
        self._began: float | None = None
        self._last = 0.0  # when the last new bytes were read

    def note(self, now: float, span: Span) -> bool:
        """Note a read; returns whether it had new bytes. ``now``: seconds of a monotonic clock."""
        if self._began is None:
            self._began = now
        if len(self._uses) >= MOST_USES:
            return False
        new = self._covered.add(span)
        for part in new:
            self._append(Use(now - self._began, part))
        return bool(new)

    def _append(self, use: Use) -> None:
        """Add a use; one that continues the last without a pause extends that one."""
        at_once = use.time - self._last <= PAUSE
        self._last = use.time
        if at_once and self._uses and self._uses[-1].span.stop == use.span.start:
            last = self._uses[-1]
            self._uses[-1] = Use(last.time, Span(last.span.start, use.span.stop))
        else:
            self._uses.append(use)

    def profile(self, url: str, identity: Identity) -> Profile:
        return Profile(url, identity, tuple(self._uses))


def merge(profiles: Sequence[Profile]) -> Profile:
    """Merge the reads of several runs; each range gets its earliest time.

    Raises ProfileError if they are of different images.
    """
    first = profiles[0]
    for other in profiles[1:]:
        if other.identity != first.identity:
            raise ProfileError(
                f"the profiles are of different images: {first.url} and {other.url}, or of two "
                "versions of one",
                "merge profiles of one version only",
            )
    recording = Recording()
    for use in sorted(use for profile in profiles for use in profile.uses):
        recording.note(use.time, use.span)
    return recording.profile(first.url, first.identity)


def as_text(profile: Profile) -> str:
    """The content of a profile's file."""
    identity = profile.identity
    head = [_TITLE, f"url {profile.url}", f"size {identity.size}"]
    if identity.etag is not None:
        head.append(f"etag {identity.etag}")
    if identity.last_modified is not None:
        head.append(f"last-modified {identity.last_modified}")
    lines = (f"{use.time:.3f} {use.span.start} {use.span.length}" for use in profile.uses)
    return "\n".join([*head, "", *lines, ""])


def parse(text: str) -> Profile:
    """Parse the content of a profile's file. Raises ProfileError."""
    title, _, rest = text.partition("\n")
    if title.strip() != _TITLE:
        raise ProfileError(
            f"it does not begin with {_TITLE!r}", "make one with: lazyfs --record FILE ..."
        )
    head, _, body = rest.partition("\n\n")
    fields = dict(_field(line) for line in head.splitlines() if not line.startswith("#"))
    size = fields.get("size", "")
    if not re.fullmatch(r"\d{1,19}", size, re.ASCII):
        raise ProfileError("it does not say the size of its image")
    identity = Identity(int(size), fields.get("etag"), fields.get("last-modified"))
    return Profile(fields.get("url", ""), identity, tuple(_uses(io.StringIO(body), int(size))))


def _field(line: str) -> tuple[str, str]:
    name, _, value = line.partition(" ")
    return name, value.strip()


def _uses(lines: Iterable[str], size: int) -> Iterable[Use]:
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise ProfileError(f"line {number} of its ranges is not a time, an offset and a length")
        if number > 2 * MOST_USES:
            raise ProfileError(f"it has more than {MOST_USES} ranges")
        offset, length = int(match[2]), int(match[3])
        if offset + length > size:
            raise ProfileError(f"line {number} of its ranges ends behind the end of the image")
        yield Use(float(match[1]), Span(offset, offset + length))

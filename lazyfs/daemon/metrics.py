"""The status of daemons as metrics in Prometheus's text format.

Made from ``lazyfs status``, outside the daemon, so that daemons do not load Prometheus's library.
"""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from lazyfs.core.texts import printable
from lazyfs.daemon.client import Daemon

_LABELS = ("where", "image", "url")


class _Meaning(NamedTuple):
    """A metric: its name (without prefix, with the unit), the status field, and its help text."""

    name: str
    field: str
    text: str


_GAUGES = (
    _Meaning("image_size_bytes", "size", "Size of the image."),
    _Meaning("cached_bytes", "cached", "How much of the image is here."),
    _Meaning("complete", "complete", "Whether all of it is here, and right."),
    _Meaning("filling", "filling", "Whether all of it is wanted, and not here yet."),
    _Meaning("paused", "paused", "Whether nothing is fetched that nobody waits for."),
    _Meaning("flow_bytes_per_second", "flow", "What has come from the server lately."),
    _Meaning("requests_in_flight", "under_way", "Requests that have not ended yet."),
    _Meaning("prefetched_unused_bytes", "unused", "Fetched ahead, and not asked for by anybody."),
    _Meaning("trouble_seconds", "trouble_for", "How long nothing has come; 0 while all is well."),
    _Meaning("round_trip_seconds", "round_trip", "Of a request; 0 until known."),
)
_COUNTERS = (
    _Meaning("read_bytes", "wanted", "Asked for by readers."),
    _Meaning("read_hits", "hits", "Reads that did not wait."),
    _Meaning("read_misses", "misses", "Reads that had to wait for the server."),
    _Meaning("fetched_bytes", "fetched", "Sent by the server."),
    _Meaning("prefetched_bytes", "prefetched", "Of these, before anybody asked for them."),
    _Meaning("requests", "requests", "Ranges asked of the server."),
    _Meaning("failed_requests", "failures", "Requests that did not end well."),
    _Meaning("damaged_blocks", "damaged", "Cached blocks that failed their checksum."),
    _Meaning("evicted_blocks", "evicted", "Blocks that went to keep to the cache's limit."),
)


def as_text(daemons: Iterable[Daemon]) -> str:
    """All metrics of these daemons, in Prometheus's text format (version 0.0.4)."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Images(daemons))
    text: str = generate_latest(registry).decode()
    return text


class _Images(Collector):
    """The images of all daemons."""

    def __init__(self, daemons: Iterable[Daemon]) -> None:
        self._images = [
            (daemon.where, image) for daemon in daemons for image in daemon.status["images"]
        ]

    def collect(self) -> Iterator[Metric]:
        for gauge in _GAUGES:
            yield self._filled(GaugeMetricFamily(*_head(gauge), labels=_LABELS), gauge)
        for counter in _COUNTERS:
            yield self._filled(CounterMetricFamily(*_head(counter), labels=_LABELS), counter)

    def _filled(self, family: Any, meaning: _Meaning) -> Metric:
        for where, image in self._images:
            labels = tuple(map(printable, (where, image["name"], image["url"])))
            family.add_metric(labels, float(image[meaning.field]))
        metric: Metric = family
        return metric


def _head(meaning: _Meaning) -> tuple[str, str]:
    return f"lazyfs_{meaning.name}", meaning.text

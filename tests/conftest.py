"""What holds for every test: a log record of level WARNING or above fails it, unless announced.

And what many of them read: the images, and the server that has them.
"""

import gc
import logging
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import settings
from no_skips import pytest_runtest_makereport  # noqa: F401  # a hook: pytest finds it here
from real.images import Images, cache_directory
from real.servers import Nginx

# How long an example takes says more about the machine than about the code.
settings.register_profile("lazyfs", deadline=None)
settings.register_profile("quick", deadline=None, max_examples=15)
settings.load_profile(os.environ.get("LAZYFS_HYPOTHESIS", "lazyfs"))


def pytest_collection_finish() -> None:
    """Keep the tests themselves out of later garbage collections, which some tests ask for."""
    gc.collect()
    gc.freeze()


@dataclass
class _LogWatch:
    """Messages that were logged, and patterns of those that a test announced."""

    messages: list[str] = field(default_factory=list)
    required: list[str] = field(default_factory=list)
    allowed: list[str] = field(default_factory=list)

    def unexpected(self) -> list[str]:
        patterns = self.required + self.allowed
        return [m for m in self.messages if not any(re.search(p, m) for p in patterns)]

    def absent(self) -> list[str]:
        return [p for p in self.required if not any(re.search(p, m) for m in self.messages)]


@pytest.fixture(autouse=True)
def _log_watch() -> Iterator[_LogWatch]:
    """Fail a test that logged a warning or worse which it did not announce.

    Records are caught where they are made: no handler, level of a handler or broken propagation
    hides one.
    """
    watch = _LogWatch()
    make_record = logging.getLogRecordFactory()

    def watched(*args: Any, **kwargs: Any) -> logging.LogRecord:
        record = make_record(*args, **kwargs)
        if record.levelno >= logging.WARNING:
            watch.messages.append(f"{record.name}: {record.levelname}: {record.getMessage()}")
        return record

    logging.setLogRecordFactory(watched)
    try:
        yield watch
    finally:
        logging.setLogRecordFactory(make_record)
    if watch.unexpected():
        pytest.fail("unexpected log records:\n" + "\n".join(watch.unexpected()))
    if watch.absent():
        pytest.fail("expected log records did not come:\n" + "\n".join(watch.absent()))


@pytest.fixture
def expected_log(_log_watch: _LogWatch) -> Callable[..., None]:
    """``expected_log(pattern)`` announces records that match a regular expression.

    The pattern is searched for in ``logger: LEVEL: message``. At least one record must match it,
    unless ``required=False``.
    """

    def announce(pattern: str, *, required: bool = True) -> None:
        (_log_watch.required if required else _log_watch.allowed).append(pattern)

    return announce


@pytest.fixture(scope="session")
def images() -> Images:
    return Images(cache_directory())


@pytest.fixture(scope="session")
def nginx(images: Images) -> Iterator[Nginx]:
    """nginx with all images; nobody stops it."""
    with Nginx(images.root) as server:
        yield server

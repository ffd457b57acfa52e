"""Fixtures of the seams; and pytest puts this directory on the path: ``from fakes import ...``."""

import pytest
from trio.testing import MockClock


@pytest.fixture(autouse=True)
def _no_proxy_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


@pytest.fixture
def patient_clock() -> MockClock:
    """Jumps to the next deadline when for a fifth of a second nothing has come in.

    On loopback, sent bytes have arrived at once, so nothing that is in flight is jumped over.
    """
    return MockClock(autojump_threshold=0.2)

"""Fixtures of the campaigns: their length, and their figures, printed at the end of a run."""

import os
from pathlib import Path

import pytest
from real.mounts import Lab

from .figures import Figures

_REPORT = pytest.StashKey[dict[str, Figures]]()


@pytest.fixture(scope="module")
def figures(request: pytest.FixtureRequest) -> Figures:
    """The figures of a module's campaign; pytest prints them at the end."""
    report = request.config.stash.setdefault(_REPORT, {})
    name = request.path.stem.removeprefix("test_")
    return report.setdefault(name, Figures())


@pytest.hookimpl
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    report = config.stash.get(_REPORT, {})
    if report:
        terminalreporter.section("fault campaigns")
    for name, figures in report.items():
        terminalreporter.write_line(f"{name}: {figures}")


@pytest.fixture(scope="session")
def long() -> bool:
    """Whether to run the long form of a campaign."""
    return os.environ.get("LAZYFS_CAMPAIGN") == "long"


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    return Lab(tmp_path)

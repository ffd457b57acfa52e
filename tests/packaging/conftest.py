"""Fixtures for packages. The long form has machines of its own, and tells how they fared."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from machines import RELEASES, Machine, Release
from packages import Package, build_here
from real.mounts import IS_ROOT

IS_LONG = os.environ.get("LAZYFS_CAMPAIGN") == "long"  # whether there is time for the long form

# They make machines, and load them with hundreds of megabytes.
LONG = ["test_fresh.py"]

collect_ignore = [] if IS_LONG else LONG

_REPORT = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def packages(tmp_path_factory: pytest.TempPathFactory) -> tuple[Package, Package]:
    """lazyfs and lazyfs-initramfs, built here."""
    return build_here(tmp_path_factory.mktemp("packages"))


@pytest.fixture(scope="session", params=RELEASES, ids=str)
def release(request: pytest.FixtureRequest) -> Release:
    if not IS_ROOT:
        pytest.skip("a machine of its own needs root")
    return request.param


@pytest.fixture(scope="session")
def workshop(release: Release, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machine]:
    """A machine that has built the packages; they are in its directory /work."""
    with release.machine(tmp_path_factory.mktemp("workshop")) as machine:
        machine.build()
        yield machine


@pytest.fixture
def machine(release: Release, tmp_path: Path) -> Iterator[Machine]:
    """A machine on which nothing was done yet."""
    with release.machine(tmp_path) as machine:
        yield machine


@pytest.fixture
def report(request: pytest.FixtureRequest) -> list[str]:
    """Lines for the end of the run."""
    return request.config.stash.setdefault(_REPORT, [])


@pytest.hookimpl
def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    lines = config.stash.get(_REPORT, [])
    if lines:
        terminalreporter.section("fresh machines")
    for line in lines:
        terminalreporter.write_line(line)

"""The rule that CI runs every test."""

import os
from collections.abc import Generator
from pathlib import Path

import pytest


def _must_run_all() -> bool:
    """Whether a skipped test is a failed one: in CI, where everything that is needed is there."""
    return os.environ.get("CI") == "true" and os.geteuid() == 0 and Path("/dev/fuse").exists()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and _must_run_all():
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"{report.nodeid} was skipped where it must run: {reason}"
    return report

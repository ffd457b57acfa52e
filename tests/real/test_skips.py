"""The rule that in CI a test that was skipped has failed."""

import sys
from pathlib import Path

import pytest

from .mounts import IS_ROOT, environment, run

_TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize(("ci", "code"), [("true", 1), ("", 0)])
def test_a_skip(tmp_path: Path, ci: str, code: int) -> None:
    if not IS_ROOT:
        pytest.skip("the rule holds for root only")
    (tmp_path / "conftest.py").write_text("from no_skips import pytest_runtest_makereport\n")
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_it():\n    pytest.skip('nothing to see here')\n"
    )
    env = environment(tmp_path, CI=ci, PYTHONPATH=str(_TESTS), PYTHONDONTWRITEBYTECODE="1")
    command = [sys.executable, "-m", "pytest", "-rs", "-p", "no:cacheprovider"]
    done = run(command, env=env, cwd=tmp_path)
    assert done.returncode == code, done.stdout
    assert "nothing to see here" in done.stdout
    assert ("was skipped where it must run" in done.stdout) == (code == 1)

"""The units for systemd are what systemd understands, and keep what they promise of security."""

import re
from pathlib import Path

import pytest

from .mounts import need_tool, run

UNITS = sorted((Path(__file__).parents[2] / "contrib/systemd").glob("*.*"))
MOST_EXPOSED = {"lazyfs@.service": 4.1, "lazyfs-attach@.service": 3.0}  # of 10


def made_for(unit: Path, directory: Path) -> Path:
    """A unit as it would be started here: an instance, with a program that is there."""
    copy = directory / unit.name.replace("@.", "@x.")
    copy.write_text(re.sub(r"^(Exec\w+)=lazyfs ", r"\1=/bin/true ", unit.read_text(), flags=re.M))
    return copy


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_sound(unit: Path, tmp_path: Path) -> None:
    for other in UNITS:
        made_for(other, tmp_path)
    made = made_for(unit, tmp_path)
    done = run([need_tool("systemd-analyze", "systemd"), "verify", "--man=no", made])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.parametrize("name", MOST_EXPOSED)
def test_a_service_is_no_more_exposed_than_documented(name: str, tmp_path: Path) -> None:
    (unit,) = (unit for unit in UNITS if unit.name == name)
    made = made_for(unit, tmp_path)
    most = f"--threshold={10 * MOST_EXPOSED[name]:.0f}"
    tool = need_tool("systemd-analyze", "systemd")
    done = run([tool, "security", "--offline=yes", most, "--no-pager", made])
    assert done.returncode == 0, done.stdout

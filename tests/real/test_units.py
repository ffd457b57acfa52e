"""The units for systemd are what systemd understands."""

from pathlib import Path

import pytest

from .mounts import need_tool, run

UNITS = sorted((Path(__file__).parents[2] / "contrib/systemd").glob("*"))


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_a_unit_is_sound(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    assert "/usr/local/bin/lazyfs " in text
    copy = tmp_path / unit.name.replace("@.", "@nbd0.")
    copy.write_text(text.replace("/usr/local/bin/lazyfs", "/bin/true"))
    done = run([need_tool("systemd-analyze", "systemd"), "verify", "--man=no", copy])
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

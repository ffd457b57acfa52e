"""``lazyfs cache``, on caches that mounts have left."""

import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from .mounts import Lab
from .servers import Nginx

MIB = 1 << 20
SIZES = {"a.raw": 3 * MIB + 5, "b.raw": 2 * MIB, "c.raw": MIB}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Any:
    root = tmp_path_factory.mktemp("served")
    for name, size in SIZES.items():
        (root / name).write_bytes(os.urandom(size))
    with Nginx(root) as nginx:
        yield nginx


def cached(lab: Lab, server: Nginx, *names: str) -> None:
    """Mount these and read them to their ends, one after the other."""
    for age, name in enumerate(names):
        with lab.mounted(server.url(name)) as mounted:
            assert len(mounted.image.read_bytes()) == SIZES[name]
            mounted.umount()
        used = 1_700_000_000 + 1000 * age
        os.utime(directory_of(lab, name) / "lock", (used, used))


def directory_of(lab: Lab, name: str) -> Path:
    (found,) = lab.cache.glob(f"{name}-*")
    return found


def names(lab: Lab) -> list[str]:
    return [entry["name"].rpartition("-")[0] for entry in told(lab, "list")]


def command(lab: Lab, *arguments: str) -> subprocess.CompletedProcess[str]:
    return lab.start("cache", *arguments, "--cache-dir", str(lab.cache))


def told(lab: Lab, *arguments: str, code: int = 0) -> Sequence[dict[str, Any]]:
    done = command(lab, *arguments, "--json")
    assert (done.returncode, done.stderr) == (code, "")
    answer = json.loads(done.stdout)
    assert isinstance(answer, list)
    return answer


def test_list_says_what_is_there_and_who_uses_it(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw")
    with lab.mounted(server.url("c.raw")) as mounted:
        lines = command(lab, "list").stdout.splitlines()
        a, b, c = told(lab, "list")
        assert c["used_by"] == f"process {mounted.pid}"
    assert lines[0].split() == ["CACHED", "OF", "LAST", "USED", "CACHE"]
    assert lines[1].split()[:5] == ["3.0", "MiB", "3.0", "MiB", "100%"]
    assert lines[2].strip() == server.url("a.raw")
    assert f"now, by process {mounted.pid}" in lines[5]
    assert (a["url"], a["size"], a["cached"]) == (
        server.url("a.raw"),
        SIZES["a.raw"],
        SIZES["a.raw"],
    )
    assert a["etag"].startswith('"')
    assert a["usable"]
    assert a["used_by"] is None
    assert a["used_at"] == "2023-11-14T22:13:20+00:00"
    assert a["allocated"] >= a["size"]
    assert a["directory"] == str(directory_of(lab, "a.raw"))
    assert b["used_at"] > a["used_at"]


def test_nothing_is_cached(lab: Lab) -> None:
    assert command(lab).stdout == "nothing is cached\n"
    assert told(lab, "list") == []


def test_verify_finds_damage_and_heals_it(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw")
    with (directory_of(lab, "a.raw") / "data").open("r+b") as data:
        data.seek(5 * 32768 + 7)
        data.write(b"rotten")
    done = command(lab, "verify")
    assert done.returncode == 1
    first, second = done.stdout.splitlines()
    assert "1 of 97 cached blocks were damaged, the first at byte 163840" in first
    assert second.endswith("all 64 cached blocks are right")
    assert told(lab, "verify", server.url("a.raw"))[0]["blocks"] == 96
    with lab.mounted(server.url("a.raw")) as mounted:
        assert mounted.image.read_bytes() == (server.root / "a.raw").read_bytes()


def test_verify_tells_which_blocks(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "b.raw")
    with (directory_of(lab, "b.raw") / "sums").open("r+b") as sums:
        sums.write(bytes(16))
    (verdict,) = told(lab, "verify", "b.raw", code=1)
    assert (verdict["blocks"], verdict["damaged"]) == (64, [0, 1])


def test_rm_removes_what_is_named_by_url_or_name(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw", "c.raw")
    assert command(lab, "rm", server.url("a.raw")).stdout.startswith("removed a.raw-")
    assert [gone["url"] for gone in told(lab, "rm", "c.r")] == [server.url("c.raw")]
    assert names(lab) == ["b.raw"]
    assert command(lab, "rm", "--all").returncode == 0
    assert list(lab.cache.glob("*.raw-*")) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["rm"], "which caches?; name them, or give --all"),
        (["rm", "--all", "a.raw"], "which caches?; name them, or give --all"),
        (["rm", "nothing"], "'nothing' names no cache; see: lazyfs cache list"),
        (["verify", ""], "'' could mean 2 caches; see: lazyfs cache list"),
        (["prune", "--to", "much"], "'much' is not a size"),
        (["verfy"], "knows no 'verfy'; did you mean verify?"),
    ],
)
def test_wrong_usage(lab: Lab, server: Nginx, arguments: list[str], message: str) -> None:
    cached(lab, server, "b.raw", "c.raw")
    done = command(lab, *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert names(lab) == ["b.raw", "c.raw"]


def test_what_a_mount_uses_is_left_alone(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw")
    with lab.mounted(server.url("b.raw")) as mounted:
        for arguments in (["rm", "b.raw"], ["verify", "b.raw"]):
            done = command(lab, *arguments)
            assert done.returncode == 1
            assert "in use" in done.stderr
            assert str(mounted.pid) in done.stderr
        assert command(lab, "rm", "--all").returncode == 0
        assert command(lab, "prune", "--to", "0").returncode == 0
        assert names(lab) == ["b.raw"]
        assert mounted.image.read_bytes() == (server.root / "b.raw").read_bytes()


def test_prune_removes_what_no_mount_can_use(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw")
    (directory_of(lab, "a.raw") / "meta.json").write_text('{"format": 0}')
    assert "?" in command(lab, "list").stdout
    assert [gone["name"].split("-")[0] for gone in told(lab, "prune")] == ["a.raw"]
    assert names(lab) == ["b.raw"]


def test_prune_removes_what_was_not_used_for_long(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw")
    os.utime(directory_of(lab, "b.raw") / "lock")
    told(lab, "prune", "--unused", "30d")
    assert names(lab) == ["b.raw"]


def test_prune_makes_the_rest_fit(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw", "b.raw", "c.raw")
    told(lab, "prune", "--to", "2M")
    assert names(lab) == ["c.raw"]


def test_a_directory_that_is_no_cache_is_not_touched(lab: Lab, server: Nginx) -> None:
    cached(lab, server, "a.raw")
    other = lab.cache / "photos"
    other.mkdir()
    (other / "meta.json").write_text("{}")
    told(lab, "rm", "--all")
    assert (other / "meta.json").exists()

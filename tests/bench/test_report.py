"""What the tables of the benchmark say of its runs."""

import json
import statistics
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.measure import WORKS, Run
from bench.report import Row, is_peer, number, tables, text, write_json
from bench.server import LINKS


def run(tool: str, work: str = "seq", value: float = 1.0, number: int = 1, **more: object) -> Run:
    values = {WORKS[work].metric: value}
    return Run(tool, "wan", work, number, values, **more)  # type: ignore[arg-type]


def failure(tool: str, error: str, work: str = "seq") -> Run:
    return Run(tool, "wan", work, 1, error=error)


def rows_of(*runs: Run) -> dict[str, Row]:
    (table,) = tables(runs)
    return {row.tool: row for row in table.rows}


@given(st.lists(st.floats(0.001, 1000), min_size=1, max_size=9))
def test_a_row_shows_the_median_and_the_range_of_its_runs(values: list[float]) -> None:
    row = rows_of(*(run("lazyfs", value=value) for value in values))["lazyfs"]
    assert row.median == statistics.median(values)
    assert (row.lowest, row.highest, row.runs) == (min(values), max(values), len(values))


def test_ratios_are_to_the_best_peer_and_to_the_limit() -> None:
    values = {"lazyfs": 20, "nbdkit": 5, "qemu": 10, "curl": 25}
    rows = rows_of(*(run(tool, value=value) for tool, value in values.items()))
    assert (rows["lazyfs"].to_best_peer, rows["lazyfs"].to_limit) == (2, 0.8)
    assert (rows["nbdkit"].to_best_peer, rows["nbdkit"].to_limit) == (0.5, 0.2)


def test_where_less_is_better_the_best_peer_is_the_quickest() -> None:
    rows = rows_of(run("lazyfs", "job", 6), run("nbdkit", "job", 4), run("qemu", "job", 8))
    assert (rows["lazyfs"].to_best_peer, rows["lazyfs"].to_limit) == (1.5, None)


def test_neither_lazyfs_nor_a_limit_nor_a_variant_is_a_peer() -> None:
    names = ("nbdkit", "download", "lazyfs", "lazyfs-fill", "curl", "local", "a variant")
    assert [is_peer(name) for name in names] == [True, True, *[False] * 5]
    rows = rows_of(run("lazyfs"), run("lazyfs-fill", value=9), run("curl", value=9))
    assert rows["lazyfs"].to_best_peer is None


def test_a_limit_with_transfer_grows_with_what_was_fetched() -> None:
    """One megabyte at 200 Mbit/s takes 40 ms."""
    rows = rows_of(
        run("lazyfs", "job-profile", 3.0, traffic={"bytes": 50_000_000, "requests": 9}),
        run("local", "job-profile", 1.0, traffic={"bytes": 0, "requests": 0}),
    )
    assert rows["lazyfs"].to_limit == pytest.approx(3.0 / (1.0 + 2.0))
    assert rows["local"].to_limit == 1


def test_a_failed_run_is_counted_and_explained_and_its_values_are_not_used() -> None:
    runs = [
        run("lazyfs", value=4, traffic={"bytes": 1_000_000, "requests": 10}, peak_memory=5_000_000),
        Run("lazyfs", "wan", "seq", 2, {"MB/s": 99.0}, {"bytes": 9, "requests": 9}, 9, "it broke"),
        failure("nbdkit", "no data"),
    ]
    (table,) = tables(runs)
    ours, peer = table.rows
    assert (ours.median, ours.runs, ours.errors) == (4, 2, ["it broke"])
    assert (ours.megabytes, ours.requests, ours.memory) == (1, 10, 5)
    assert (peer.median, peer.to_best_peer, peer.errors) == (None, None, ["no data"])
    said = text(table)
    assert "lazyfs: it broke" in said
    assert "nbdkit: no data" in said
    assert said.splitlines()[3].split() == ["nbdkit", *["-"] * 8, "1", "1"]


def test_tables_come_in_the_order_of_links_and_works() -> None:
    runs = [
        Run("lazyfs", link, work, 1, {WORKS[work].metric: 1.0})
        for link in reversed(LINKS)
        for work in reversed(WORKS)
    ]
    shown = [(table.link, table.work.name) for table in tables(runs)]
    assert shown == [(link, work) for link in LINKS for work in WORKS]


def test_a_table_says_which_direction_is_better() -> None:
    speed, time = tables([run("lazyfs", "seq"), run("lazyfs", "r1")])
    assert "MB/s, higher is better" in text(speed)
    assert "ms, lower is better" in text(time)


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "-"), (0.0, "0"), (0.01234, "0.0123"), (1.0, "1"), (99.96, "100"), (1234.5, "1234")],
)
def test_numbers_have_three_digits_that_count(value: float | None, shown: str) -> None:
    assert number(value) == shown


def test_json_has_every_run_and_where_it_was_measured(tmp_path: Path) -> None:
    runs = [run("lazyfs"), failure("nbdkit", "no data")]
    write_json(tmp_path / "runs.json", runs, {"lazyfs": "lazyfs 1"}, quick=True)
    content = json.loads((tmp_path / "runs.json").read_text())
    assert [(r["tool"], r["error"]) for r in content["runs"]] == [
        ("lazyfs", ""),
        ("nbdkit", "no data"),
    ]
    assert content["versions"] == {"lazyfs": "lazyfs 1"}
    assert content["quick"] is True
    assert content["links"]["wan"]["rtt"] == 0.02

"""Which tools do which work, and in which order."""

import argparse

import pytest

from bench import __main__ as program
from bench import system
from bench.image import ISO, KINDS, MAIN, ROOT
from bench.measure import AGAIN, JOB, JOBS, WORKS, Amount, Bench, Work, fits
from bench.server import LINKS
from bench.tools import TOOLS, Task, variant

MOUNTING = {
    "lazyfs", "lazyfs-fill", "nbdkit", "nbdkit-cow", "nbdkit-cache", "qemu", "rclone", "httpdirfs",
    "httpfs2",
}  # fmt: skip
LOOPING = {"lazyfs-loop", "lazyfs-loop-fill"}
SERVING = {"lazyfs-serve", "nbdkit-curl"}

WHO = {
    "seq": MOUNTING | {"curl"},
    "r1": MOUNTING | {"curl"},
    "r16": MOUNTING | {"curl"},
    "beside": MOUNTING | {"curl"},
    "start": MOUNTING,
    "hello": MOUNTING | {"download", "local"},
    "job": MOUNTING | LOOPING | {"local"},
    "again": MOUNTING | LOOPING | {"local"},
    "complete": {"lazyfs-loop-fill", "local"},
    "job-profile": {"lazyfs", "local"},
    "job-preload": {"lazyfs", "local"},
    "ls": {"lazyfs", "nbdkit", "httpfs2", "ratarmount", "download", "local"},
    "cat": {"lazyfs", "nbdkit", "httpfs2", "ratarmount", "download", "local"},
    **{name: SERVING | {"nbdkit-file"} for name in ("nbdcopy", "nbdcopy-again", "nbd-r1")},
    **{work.name: MOUNTING | LOOPING | {"local"} for work in JOBS},
}


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
def test_a_work_is_done_by_the_tools_that_can(work: Work) -> None:
    assert {name for name, tool in TOOLS.items() if fits(tool, work)} == WHO[work.name]


@pytest.mark.parametrize("work", WORKS.values(), ids=WORKS.keys())
def test_a_variant_does_what_lazyfs_does(work: Work) -> None:
    assert fits(variant("other=-v"), work) == fits(TOOLS["lazyfs"], work)


def test_every_task_is_asked_for_and_can_be_done() -> None:
    assert {work.task for work in WORKS.values()} == set(Task)
    assert set().union(*(tool.tasks for tool in TOOLS.values())) == set(Task)


def test_the_limit_of_a_work_is_a_tool_that_is_one() -> None:
    assert all(TOOLS[work.limit].limit for work in WORKS.values() if work.limit)


def test_works_are_done_on_images_that_can_be_made_and_on_links_that_there_are() -> None:
    assert {work.kind for work in WORKS.values()} == {*KINDS, ISO, ROOT}
    assert all(set(work.links) <= set(LINKS) for work in WORKS.values())
    assert JOB.kind == MAIN


def test_speeds_are_better_when_higher_and_times_when_lower() -> None:
    higher = {name for name, work in WORKS.items() if work.higher_is_better}
    assert higher == {"seq", "r16", "nbdcopy", "nbdcopy-again"}


# The plan


def options(**given: object) -> argparse.Namespace:
    defaults = {"only": None, "tools": None, "link": None, "runs": None, "quick": False}
    return argparse.Namespace(**defaults | {"variant": []} | given)


def planned(**given: object) -> list[tuple[str, str, str, int]]:
    asked = options(**given)
    tools = program.wanted_tools(asked)
    return [(t.name, link, w.name, number) for t, link, w, number in program.plan(asked, tools)]


def test_tools_take_turns_at_each_work() -> None:
    assert planned(only=["r1"], tools=["lazyfs", "curl", "local"], link=["wan"], runs=2) == [
        ("lazyfs", "wan", "r1", 1),
        ("curl", "wan", "r1", 1),
        ("lazyfs", "wan", "r1", 2),
        ("curl", "wan", "r1", 2),
    ]


def test_the_second_job_comes_with_the_first_and_is_not_planned_twice() -> None:
    assert planned(only=["job", "again"], tools=["lazyfs"], link=["lan"], runs=1) == [
        ("lazyfs", "lan", "job", 1)
    ]
    assert planned(only=["again"], tools=["lazyfs"], link=["lan"], runs=1) == [
        ("lazyfs", "lan", "job", 1)
    ]


def test_what_follows_a_copy_comes_with_it() -> None:
    only = ["nbd-r1", "nbdcopy-again"]
    assert planned(only=only, tools=["nbdkit-curl"], link=["lan"], runs=1) == [
        ("nbdkit-curl", "lan", "nbdcopy", 1)
    ]


def test_by_default_a_work_is_measured_where_it_tells_something() -> None:
    cells = planned(tools=["lazyfs", "lazyfs-loop-fill"])
    where = {name: {link for _, link, work, _ in cells if work == name} for name in WORKS}
    assert where["complete"] == {"lan"}
    assert where["ls"] == where["cat"] == {"lan", "wan"}
    assert where["job-xz"] == where["job-profile"] == where["job-preload"] == {"wan"}
    assert where["seq"] == where["job"] == set(LINKS)


def test_any_work_is_measured_anywhere_if_asked_for() -> None:
    assert planned(only=["ls"], tools=["lazyfs"], link=["far"], runs=1) == [
        ("lazyfs", "far", "ls", 1)
    ]


def test_quick_measures_the_important_cells_once() -> None:
    cells = planned(quick=True)
    assert {number for *_, number in cells} == {1}
    assert {link for _, link, _, _ in cells} == {"wan"}
    assert {work for _, _, work, _ in cells} == set(program.QUICK_WORKS)


def test_variants_come_first() -> None:
    cells = planned(only=["r1"], tools=["lazyfs"], link=["wan"], runs=1, variant=[variant("v=-v")])
    assert [tool for tool, *_ in cells] == ["v", "lazyfs"]


def test_unknown_names_are_refused() -> None:
    split = program.names(WORKS)
    assert split("seq,again") == ["seq", AGAIN.name]
    with pytest.raises(argparse.ArgumentTypeError, match="'sequential' is none of seq, r1"):
        split("seq,sequential")


def test_an_image_that_cannot_be_made_is_a_failed_run() -> None:
    class NoImages:
        def get(self, kind: str) -> None:
            raise system.Failed(f"no {kind}")

    bench = Bench(None, NoImages(), None, None)  # type: ignore[arg-type]
    (run,) = bench.measure(TOOLS["lazyfs"], "wan", WORKS["ls"], 3)
    assert (run.work, run.number, run.error) == ("ls", 3, "no iso")


@pytest.mark.parametrize("link", LINKS)
def test_how_much_is_done_is_known_for_every_link(link: str) -> None:
    bench = Bench(None, None, None, None)  # type: ignore[arg-type]
    assert isinstance(bench.amount(link), Amount)
    assert {1, 16} <= set(bench.amount(link).reads)

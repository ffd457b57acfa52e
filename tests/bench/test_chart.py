"""The picture for the README."""

from xml.etree import ElementTree as ET

from bench.chart import svg
from bench.measure import WORKS, Run
from bench.report import tables

SVG = "{http://www.w3.org/2000/svg}"


def run(tool: str, work: str, value: float, error: str = "") -> Run:
    return Run(tool, "wan", work, 1, {WORKS[work].metric: value}, error=error)


def picture(*runs: Run, link: str = "wan") -> ET.Element:
    return ET.fromstring(svg(tables(runs), link))


def bars(image: ET.Element) -> list[float]:
    return [float(bar.attrib["width"]) for bar in image.iter(f"{SVG}rect")]


def words(image: ET.Element) -> list[str]:
    return [element.text or "" for element in image.iter(f"{SVG}text")]


def test_it_is_svg_with_a_panel_for_each_work_that_was_measured() -> None:
    image = picture(run("lazyfs", "seq", 20), run("lazyfs", "job", 5), run("lazyfs", "start", 1))
    assert image.tag == f"{SVG}svg"
    assert len(image.findall(f"{SVG}g")) == 2  # start has none
    assert {"MB/s, more is better", "s, less is better"} <= set(words(image))


def test_bars_are_as_long_as_their_values() -> None:
    image = picture(run("lazyfs", "seq", 20), run("nbdkit", "seq", 5), run("curl", "seq", 40))
    lazyfs, nbdkit, curl = bars(image)
    assert abs(lazyfs - curl / 2) < 0.2
    assert abs(nbdkit - curl / 8) < 0.2
    assert [bar.attrib["class"] for bar in image.iter(f"{SVG}rect")] == ["ours", "peer", "limit"]


def test_everything_lies_within_the_picture() -> None:
    runs = [
        run(tool, work, 3) for work in ("seq", "r1", "r16", "job") for tool in ("lazyfs", "qemu")
    ]
    image = picture(*runs)
    _, _, width, height = map(float, image.attrib["viewBox"].split())
    for panel in image.findall(f"{SVG}g"):
        x, y = map(float, panel.attrib["transform"][len("translate(") : -1].split())
        for bar in panel.iter(f"{SVG}rect"):
            assert x + float(bar.attrib["x"]) + float(bar.attrib["width"]) <= width
            assert y + float(bar.attrib["y"]) + float(bar.attrib["height"]) <= height


def test_what_failed_is_shown_as_failed() -> None:
    image = picture(
        run("lazyfs", "seq", 20), run("lazyfs", "seq", 0, "it broke"), run("qemu", "seq", 0, "died")
    )
    assert "20 (1 of 2 failed)" in words(image)
    assert "failed" in words(image)
    assert len(bars(image)) == 1


def test_any_name_of_a_variant_makes_valid_svg() -> None:
    assert "<&>" in words(picture(run("<&>", "seq", 1)))


def test_without_measurements_on_the_link_there_are_no_panels() -> None:
    assert picture(run("lazyfs", "seq", 20), link="lan").findall(f"{SVG}g") == []
    assert picture().findall(f"{SVG}g") == []


def test_values_of_zero_do_not_divide_by_zero() -> None:
    assert bars(picture(run("lazyfs", "seq", 0.0))) == [1.0]

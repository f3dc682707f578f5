"""Reports and comparisons in a real browser: they fit, walk along paths, and say nothing on the console."""

from dataclasses import replace

import pytest

from jepa_fast.probing.results import DistanceBin, Evaluation, Example, ProbeSetResult, Scores
from jepa_fast.report import __main__ as report
from tests.one_step_runs import configuration, run

SETS = ("probe_normal/val", "probe_wall/val", "probe_wall_other/val", "probe_expert/val")
FIT = "[...document.querySelectorAll('.scroll')].every(box => box.scrollWidth <= box.clientWidth)"


def evaluation():
    """Paths of 24 steps, made up."""
    true = [(10.0 + step, 20.0) for step in range(24)]
    located = [(x + 0.5, y + 1) for x, y in true]
    scores = Scores(1.25, 0.5, [1.0] * 24, [0.5] * 24)
    examples = [
        Example(kind, index, 0.5, true, located, [(4, 0, 1, 65), (31, 0, 3, 20)])
        for kind in ("best", "median", "worst")
        for index in (0, 1)
    ]
    bins = [DistanceBin(0.0, 10, 1.0, 0.5), DistanceBin(2.0, 10, 1.0, 0.4)]
    sets = [ProbeSetResult(name, 100, 100, scores, scores, 200.0, bins, (65, 65), examples) for name in SETS]
    return Evaluation("data", 0, 1000, 8, 4.0, sets)


@pytest.fixture(scope="module")
def pages(tmp_path_factory, two_rooms):
    """The report of a run, and the comparison of three with long names."""
    folder = tmp_path_factory.mktemp("runs")
    names = [f"a-run-with-a-rather-long-name-{number}" for number in range(3)]
    runs = [
        run(folder / name, configuration("gated_features", two_rooms, seed=number)) for number, name in enumerate(names)
    ]
    for number, one in enumerate(runs):
        replace(evaluation(), probe_seed=number).save(one / "evaluation.json")
    report.main(report.Arguments((runs[0],)))
    report.main(report.Arguments(tuple(runs), out=folder / "comparison.html"))
    return runs[0] / "report.html", folder / "comparison.html"


@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_a_report_is_walked_along(visit, pages, width, scheme):
    page = visit(pages[0], width, scheme)
    figure = page.locator("figure:has(.rooms)").first
    points = "figure => figure.querySelector('polyline').getAttribute('points').split(' ').length"
    marks = "figure => [...figure.querySelectorAll('.mark')].filter(mark => mark.style.display !== 'none').length"
    assert figure.evaluate(points) == 24
    shown = figure.evaluate(marks)
    assert shown == 6 * 2 * 4
    figure.get_by_label("step").fill("7")
    assert figure.evaluate(points) == 8
    assert figure.evaluate(marks) == 6 * 2
    assert figure.locator("output").text_content() == "step 7 of 23"
    figure.get_by_role("button").click()
    figure.get_by_text("step 23 of 23").wait_for()
    assert figure.evaluate(points) == 24
    assert "wall" in figure.locator(".key").text_content()
    pictures = page.locator(".frames img")
    assert pictures.count() == 4 * 2 * 5
    assert pictures.first.evaluate("image => [image.naturalWidth, image.naturalHeight]") == [65, 65]


@pytest.mark.parametrize(("width", "scheme"), [(1280, "dark"), (390, "light")])
def test_tables_of_a_comparison_fit_a_screen(visit, pages, width, scheme):
    page = visit(pages[1], width, scheme)
    assert page.locator("table").count() == 3
    if width == 1280:
        assert page.evaluate(FIT)

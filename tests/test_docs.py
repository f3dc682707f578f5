"""The docs point at files that exist, and their diagrams are what the script draws."""

import re
from pathlib import Path

import pytest

from jepa_fast.racing.records import problems
from jepa_fast.studies import STUDIES
from jepa_fast.studying.record import RunRecord
from jepa_fast.studying.runner import load_records
from jepa_fast.studying.tables import tables
from scripts import draw_docs, preset_records, speedrun_page

ROOT = Path(__file__).resolve().parent.parent
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "kernels" / "README.md"])


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_to_a_file_leads_somewhere(page):
    targets = re.findall(r"\]\(([^)#\s]+)", page.read_text())
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


# The trajectories are left out: NumPy may improve its distributions between versions.
@pytest.mark.parametrize("draw", [draw_docs.architecture, draw_docs.rollout])
def test_diagrams_are_drawn_by_the_script(draw):
    assert (draw_docs.IMAGES / f"{draw.__name__}.svg").read_text() == draw()


@pytest.mark.parametrize("preset", preset_records.PRESETS)
def test_results_of_a_preset_are_those_of_its_records(preset):
    assert len(preset_records.records(preset)) >= 3
    assert preset_records.results(preset) in preset_records.page_of(preset).read_text()


@pytest.mark.parametrize("name", ["ideas", "pareto"])
def test_tables_of_a_study_are_those_of_its_records(name):
    records = load_records(STUDIES[name], ROOT / "records" / "study" / name)
    assert {record.preset for record in records} <= set(STUDIES[name].presets)
    assert tables(STUDIES[name], records) in (ROOT / "docs" / "study.md").read_text()


def test_records_of_races_hold_and_the_tables_are_made_from_them():
    shown = speedrun_page.records()
    assert {record.rung for record in shown.values()} == {"r1", "r2", "r3", "r4"}
    assert [problem for record in shown.values() for problem in problems(record)] == []
    assert speedrun_page.table(shown) in speedrun_page.PAGE.read_text()
    assert speedrun_page.short_table(shown) in speedrun_page.README.read_text()


def test_trajectories_show_what_their_captions_say():
    for split, _, behaviour in draw_docs.SHOWN:
        drawn = draw_docs.simulate(split, 0, 256, seed=1)
        row = draw_docs.find(drawn, behaviour)
        sides = drawn.locations[row, [0, -1], 0] < drawn.wall_x[row]
        assert (sides[0] != sides[1]) == (behaviour == "crosses")


@pytest.mark.parametrize("preset", ["short_rollouts", "wall_apart"])
def test_scores_on_a_preset_s_page_are_those_of_its_records(preset):
    text = (ROOT / "docs" / f"{preset}.md").read_text()
    records = ROOT / "records"
    paths = [*(records / preset).glob("*.json"), *(records / "study" / "pareto").glob(f"{preset}-seed-*.json")]
    assert paths
    for path in paths:
        found = RunRecord.load(path).probe_sets.values()
        assert " | ".join(f"{one.trained.official:.2f} / {one.trained.converged:.2f}" for one in found) in text, path

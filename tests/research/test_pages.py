"""What stands between marks in the docs is what its command makes of the stored records, which are in order."""

import re
from pathlib import Path

import pytest

from research import draw_docs, jsonl, preset_records, speedrun_page
from research.run_record import RunRecord
from research.runner import load_records
from research.studies import STUDIES
from research.study_page import tables
from research.targets import problems

ROOT = Path(draw_docs.__file__).resolve().parent.parent
RECORDS = ROOT / "research" / "records"


# The trajectories are left out: NumPy may improve its distributions between versions.
@pytest.mark.parametrize("draw", [draw_docs.architecture, draw_docs.rollout])
def test_diagrams_are_drawn_by_the_command(draw):
    assert (draw_docs.IMAGES / f"{draw.__name__}.svg").read_text() == draw()


def test_trajectories_show_what_their_captions_say():
    for split, _, behaviour in draw_docs.SHOWN:
        drawn = draw_docs.simulate(split, 0, 256, seed=1)
        row = draw_docs.find(drawn, behaviour)
        sides = drawn.locations[row, [0, -1], 0] < drawn.wall_x[row]
        assert (sides[0] != sides[1]) == (behaviour == "crosses")


@pytest.mark.parametrize("preset", preset_records.PRESETS)
def test_tables_of_a_preset_are_those_of_its_records(preset):
    assert len(preset_records.records(preset)) >= 3
    assert preset_records.results(preset) in preset_records.page_of(preset).read_text()


@pytest.mark.parametrize("name", ["ideas", "pareto"])
def test_tables_of_a_study_are_those_of_its_records(name):
    records = load_records(STUDIES[name], RECORDS / "study" / f"{name}.jsonl")
    assert len(records) == len(jsonl.read(RECORDS / "study" / f"{name}.jsonl"))
    assert tables(STUDIES[name], records) in (ROOT / "docs" / "study.md").read_text()


def test_time_to_target_records_hold_and_the_tables_are_made_from_them():
    shown = speedrun_page.records()
    assert {record.target for record in shown.values()} == {"r1", "r2", "r3", "r4"}
    assert [problem for record in shown.values() for problem in problems(record)] == []
    assert speedrun_page.table(shown) in speedrun_page.PAGE.read_text()
    assert speedrun_page.short_table(shown) in speedrun_page.README.read_text()


@pytest.mark.parametrize("name", ["short_rollouts", "wall_apart"])
def test_records_of_single_runs_read_back(name):
    """Runs before a recipe was settled: each has a name of its own, and the page that tells of them."""
    for fields in jsonl.read(RECORDS / f"{name}.jsonl"):
        run = fields.pop("run")
        record = RunRecord.parse(fields, run)
        assert re.fullmatch(rf".*seed-{record.seed}", run)
        assert record.preset == name

"""What stands between marks in the docs is what its command makes of the stored records, which are in order."""

import re
from pathlib import Path

import pytest

from research import draw_docs, draw_sparse_encoding, jsonl, model_tables, preset_records, speedrun_page
from research.run_record import RunRecord
from research.runner import load_records
from research.studies import STUDIES
from research.study_page import tables
from research.targets import problems

ROOT = Path(draw_docs.__file__).resolve().parent.parent
RECORDS, PAGE = ROOT / "research" / "records", ROOT / "docs" / "results.md"


# The trajectories are left out: NumPy may improve its distributions between versions.
@pytest.mark.parametrize(
    "draw",
    [
        draw_docs.architecture,
        draw_docs.rollout,
        draw_sparse_encoding.sparse_encoding,
        draw_sparse_encoding.shared_bases,
    ],
)
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
    begin, end = preset_records.marks(preset)
    assert f"{begin}{preset_records.results(preset)}{end}" in PAGE.read_text()


@pytest.mark.parametrize("name", ["ideas", "pareto"])
def test_tables_of_a_study_are_those_of_its_records(name):
    records = load_records(STUDIES[name], RECORDS / "study" / f"{name}.jsonl")
    assert len(records) == len(jsonl.read(RECORDS / "study" / f"{name}.jsonl"))
    assert tables(STUDIES[name], records) in PAGE.read_text()


def test_time_to_target_records_hold_and_the_tables_are_made_from_them():
    shown = speedrun_page.records()
    assert {record.target for record in shown.values()} == {"r1", "r2", "r3", "r4"}
    assert [problem for record in shown.values() for problem in problems(record)] == []
    assert speedrun_page.drawn(PAGE.read_text(), shown) == PAGE.read_text()


def test_tables_of_the_models_are_those_of_their_records():
    readme, results = model_tables.README.read_text(), model_tables.RESULTS.read_text()
    assert model_tables.with_tables(readme, {"models": model_tables.models(model_tables.full_runs())}) == readme
    assert model_tables.with_tables(results, model_tables.run_tables()) == results


@pytest.mark.parametrize("name", ["short_rollouts", "gated_convnext"])
def test_records_of_single_runs_read_back(name):
    """Runs before a recipe was settled: each has a name of its own, and the page that tells of them."""
    for fields in jsonl.read(RECORDS / f"{name}.jsonl"):
        run = fields.pop("run")
        record = RunRecord.parse(fields, run)
        assert re.fullmatch(rf".*seed-{record.seed}", run)
        assert record.preset == name

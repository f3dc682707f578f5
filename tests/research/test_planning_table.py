"""The tables of what planning came to: seeds side by side and together, floors once, runs kept by preset and seed."""

import json
from dataclasses import replace

import pytest

from jepa_fast.planning.planner_config import PlannerConfig
from jepa_fast.planning.results import PLANNING, Outcome, Planning, load, save
from research import planning_table

FLOOR = Outcome("random", 200, 0, 1, 0, 200, 33.5, 70.0, 0.0, 0, (33.5,) * 200)


def planning(final, held_out=False):
    model = replace(FLOOR, name="model", final=final, ever=200, median_arrival=25.0, seconds=0.5, predictor_steps=1e5)
    return Planning("strict", held_out, 0, PlannerConfig(), (model, FLOOR))


def test_seeds_stand_beside_each_other_and_together_and_floors_once(tmp_path):
    for seed, final in enumerate((200, 190)):
        save([planning(final)], tmp_path / f"tiny-seed-{seed}.json")
    save([planning(180, held_out=True)], tmp_path / "tiny-seed-0-held-out.json")
    rows = planning_table.table(sorted(tmp_path.glob("*.json"))).splitlines()[2:]
    assert [row.split(" | ")[0][2:] for row in rows] == [
        "`tiny`, 0", "`tiny`, 1", "**`tiny`**, all", "random", "`tiny`, 0", "random",
    ]  # fmt: skip
    assert rows[2] == (
        "| **`tiny`**, all | strict | as in training | 97.5% | 95.5% to 98.6% | 100.0% | 25 | 0.50 | 100,000 |"
    )
    assert "| held out | 90.0% |" in rows[4]
    assert "| 0.0% | 0.0% to 1.9% | 0.5% | 70 | 0.00 | 0 |" in rows[3]


def test_a_run_is_kept_by_its_preset_and_seed(tmp_path, monkeypatch):
    monkeypatch.setattr(planning_table, "PLANS", tmp_path / "kept")
    (tmp_path / "kept").mkdir()
    run = tmp_path / "run"
    (run / planning_table.HELD_OUT).mkdir(parents=True)
    save([planning(200)], run / PLANNING)
    save([planning(180, held_out=True)], run / planning_table.HELD_OUT / PLANNING)
    monkeypatch.setattr(
        planning_table.RunConfig, "load", lambda _: type("Config", (), {"preset": "wall_apart", "seed": 3})
    )
    planning_table.add(run)
    names = ["gated_convnext-seed-3-held-out.json", "gated_convnext-seed-3.json"]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == names
    assert load(tmp_path / "kept" / names[0]) == [planning(180, held_out=True)]


def test_the_page_shows_the_records():
    text = planning_table.PAGE.read_text()
    assert planning_table.table(sorted(planning_table.PLANS.glob("*.json"))) in text


@pytest.mark.parametrize("path", sorted(planning_table.PLANS.glob("*.json")), ids=lambda path: path.stem)
def test_no_start_is_solved_and_no_path_cuts_a_wall(path):
    for one in json.loads(path.read_text()):
        for outcome in one["outcomes"]:
            assert (outcome["solved_starts"], outcome["legal"]) == (0, outcome["episodes"])

"""A study through its command: stopped, gone on with, failed runs and all, to tables that are those of its records."""

import json
import os
import re
import shutil
import signal
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import jepa_fast
from jepa_fast import study
from jepa_fast.data.writing import locked
from jepa_fast.engine.checkpoint import newest_step
from jepa_fast.errors import InputError, RunError
from jepa_fast.studies import STUDIES, Study
from jepa_fast.studying.process import Command
from jepa_fast.studying.runner import Runner, load_records
from jepa_fast.studying.tables import insert, spread, tables

ROOT = Path(jepa_fast.__file__).parents[1]
SETS = ["probe_normal/val", "probe_wall/val", "probe_wall_other/val", "probe_expert/val"]
TINY = Study("Does it work?", ("features20k",), seeds=(0,), steps=12, batch_size=8)


@pytest.fixture(scope="module")
def whole(two_rooms, tmp_path_factory):
    """The study "quick", one seed, as a user starts it on two cores; nobody disturbs it."""
    place = tmp_path_factory.mktemp("whole")
    # The jobs of the run it is compared with, and so its threads: with other numbers sums round otherwise.
    flags = ["--data", two_rooms, "--seeds", 0, "--jobs", 1]
    flags += ["--out", place / "runs", "--records", place / "records", "--page", place / "page.md"]
    words = [sys.executable, "-m", "jepa_fast.study", "quick", *map(str, flags)]
    done = subprocess.run(
        words, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert re.search(r"features20k seed 0: .* px², trained in .*; \d of 2 runs, [\d:]+ left", done.stderr)
    return place


def interrupt_when(condition):
    """Ctrl-C to this process as soon as it holds."""

    def watch():
        deadline = time.monotonic() + 120
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_a_study_that_was_interrupted_ends_with_the_numbers_of_one_left_alone(whole, two_rooms, tmp_path):
    alone = replace(STUDIES["quick"], presets=("baseline",), seeds=(0,))
    run = tmp_path / "runs" / "baseline" / "seed-0"
    interrupt_when((run / "metrics.jsonl").exists)
    with pytest.raises(SystemExit) as stopped:
        Runner(replace(alone, seeds=(0, 1)), two_rooms, tmp_path / "runs", tmp_path / "records", 1).run()
    assert stopped.value.code == 128 + signal.SIGINT
    assert not list(run.parent.glob("seed-1*"))  # what had not begun has cost nothing
    assert 1 <= newest_step(run) < 40
    assert not (tmp_path / "records").exists()
    Runner(alone, two_rooms, tmp_path / "runs", tmp_path / "records", 1).run()
    ours, theirs = (load_records(alone, folder)[0] for folder in (tmp_path / "records", whole / "records" / "quick"))
    assert ours.probe_sets == theirs.probe_sets
    assert ours.collapse == theirs.collapse
    # Seconds are those of both training processes.
    costs = json.loads(run.with_suffix(".costs.json").read_text())["costs"]
    assert len(costs) == 2
    assert ours.train_wall_s == pytest.approx(sum(wall_s for _, wall_s, _ in costs), rel=1e-3)

    before = (tmp_path / "records" / "baseline-seed-0.json").stat().st_mtime_ns
    Runner(alone, two_rooms, tmp_path / "runs", tmp_path / "records", 1).run()
    assert (tmp_path / "records" / "baseline-seed-0.json").stat().st_mtime_ns == before


def test_a_run_left_behind_keeps_a_second_study_away(tmp_path):
    """A study killed alone leaves its runs at work: they hold its lock until they end."""
    runs = tmp_path / "runs"
    runs.mkdir()
    with locked(runs) as descriptor:
        left_behind = Command("http.server", "--bind", "127.0.0.1", "0", log=tmp_path / "log", keep_open=(descriptor,))
    again = Runner(TINY, tmp_path / "data", runs, tmp_path / "records", 1)
    with pytest.raises(InputError, match="another study, or a run that one left behind, is at work here"):
        again.run()
    left_behind.stop()
    left_behind.wait()
    with locked(runs):
        pass


def test_tables_hold_the_means_and_spreads_of_the_records_and_plots_are_drawn(whole, tmp_path):
    records = tmp_path / "quick"
    shutil.copytree(whole / "records" / "quick", records)
    first = json.loads((records / "baseline-seed-0.json").read_text())
    assert not re.search(r"/(tmp|root|home|work)/", json.dumps(first))
    # A second seed whose errors are half as large again.
    second = json.loads(json.dumps(first)) | {"seed": 1, "train_wall_s": first["train_wall_s"] * 3}
    for found in second["probe_sets"].values():
        found["trained"]["converged"] *= 1.5
        found["trained"]["official"] *= 1.5
    (records / "baseline-seed-1.json").write_text(json.dumps(second))
    study.main(study.Arguments("quick", draw=True, records=tmp_path, page=tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| baseline |" in line]
    for row, probe in zip(rows, ("converged", "official"), strict=False):
        assert row[1] == "2"
        for cell, name in zip(row[2:6], SETS, strict=True):
            values = [one["probe_sets"][name]["trained"][probe] for one in (first, second)]
            mean, std = map(float, cell.replace(",", "").split(" ± "))
            assert mean == pytest.approx(statistics.fmean(values), rel=5e-3)
            assert std == pytest.approx(statistics.stdev(values), rel=5e-2)
    wall_s = first["train_wall_s"]
    assert rows[2][3] == f"{2 * wall_s:.0f} ± {statistics.stdev([wall_s, 3 * wall_s]):.2g}"
    assert rows[2][1:3] == ["293,344", "320"]
    assert "1 of 4 runs have not been measured yet." in page
    for name in ("study-quick.png", "study-quick-pareto.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_a_spread_has_two_digits_and_no_exponent():
    assert spread([1.0, 1.1]) == "1.05 ± 0.071"
    assert spread([10.0, 150.0]) == "80 ± 99"
    assert spread([10.0, 1510.0]) == "760 ± 1061"
    assert spread([5.0]) == "5"
    assert spread([]) == "-"


def test_a_run_that_fails_is_a_row_that_says_so(two_rooms, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(two_rooms, data)
    path = data / "train" / "actions-00000.npy"
    np.save(path, np.load(path) * np.float32(1e30))
    runner = Runner(replace(TINY, presets=("baseline",)), data, tmp_path / "runs", tmp_path / "records", 1)
    runner.run()
    records = load_records(replace(TINY, presets=("baseline",)), tmp_path / "records")
    assert re.fullmatch(r"step \d+: \w+ is (nan|inf)", records[0].failure)
    shown = tables(replace(TINY, presets=("baseline",)), records)
    assert f"seed 0 failed: {records[0].failure}" in shown
    assert "| baseline | 0 of 1 | - | - | - | - | - |" in shown


def test_a_run_that_says_nothing_about_its_preset_is_left_for_the_next_start(two_rooms, tmp_path):
    runner = Runner(TINY, tmp_path / "absent", tmp_path / "runs", tmp_path / "records", 1)
    with pytest.raises(RunError, match="not finished, and tried again at the next start: features20k seed 0"):
        runner.run()
    assert not (tmp_path / "records").exists()


def test_records_of_another_budget_are_refused(whole):
    folder = whole / "records" / "quick"
    assert len(load_records(replace(STUDIES["quick"], seeds=(0,)), folder)) == 2
    with pytest.raises(InputError, match=r"seed-0\.json: steps: got 40, expected the study's 30"):
        load_records(replace(STUDIES["quick"], steps=30), folder)


@pytest.mark.parametrize("changed", [{"covariance": 2.0}, {"epochs": -1.0}, {"sharpness": 1.5}])
def test_records_of_a_recipe_that_has_changed_since_are_refused(whole, tmp_path, changed):
    path = whole / "records" / "quick" / "baseline-seed-0.json"
    fields = json.loads(path.read_text())
    fields["config"]["recipe"]["stages"][0] |= changed
    (tmp_path / path.name).write_text(json.dumps(fields))
    with pytest.raises(InputError, match=r"seed-0\.json: its recipe is not what baseline is now; remove it"):
        load_records(STUDIES["quick"], tmp_path)


def test_unknown_names_are_refused_and_told_which_there_are(tmp_path):
    with pytest.raises(InputError, match="NAME: got 'idea', expected one of ideas, pareto, quick"):
        study.main(study.Arguments("idea"))
    with pytest.raises(InputError, match=r"study\.presets: got 'lager', expected one of baseline, .*larger"):
        replace(TINY, presets=("lager",))
    with pytest.raises(InputError, match="--presets: got 'larger', expected some of baseline, features20k"):
        study.main(study.Arguments("quick", presets=("larger",)))
    with pytest.raises(InputError, match="--seeds"):
        study.main(study.Arguments("quick", seeds=(1, 1)))
    with pytest.raises(InputError, match="expected a folder with records of this study"):
        study.main(study.Arguments("quick", draw=True, records=tmp_path, page=tmp_path / "page.md"))


def test_the_page_keeps_what_is_written_around_a_table(tmp_path):
    page = tmp_path / "page.md"
    insert(page, "a", "one\n")
    page.write_text(page.read_text().replace("## a\n", "## a\n\nWords before.\n") + "\nWords after.\n")
    before = page.read_text()
    insert(page, "b", "two\n")
    insert(page, "a", "three\n")
    assert page.read_text().startswith(before.replace("one\n", "three\n"))
    assert "two\n" in page.read_text()
    page.write_text(page.read_text().replace("<!-- end of study a -->\n", ""))
    with pytest.raises(InputError, match="marks of a"):
        insert(page, "a", "four\n")

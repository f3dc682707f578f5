"""A study through its command: stopped, gone on with, failed runs and all, to tables that are those of its records."""

import json
import logging
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

from jepa_fast.engine.checkpoint import newest_step
from jepa_fast.errors import InputError, RunError
from jepa_fast.locking import Lock
from research import jsonl, studies, study
from research.runner import Runner, load_records, missing_jobs
from research.studies import Study
from research.study_page import insert, spread, tables
from tests.forked import finished

# Studies run where processes have signals and costs.
pytestmark = pytest.mark.posix
ROOT = Path(study.__file__).parents[1]
SETS = ["probe_normal/val", "probe_wall/val", "probe_wall_other/val", "probe_expert/val"]
# Models that train and are probed in seconds, on steps enough for an interruption to come in between.
SMALL = Study("Does it work?", ("gated_features", "gated_pixels"), seeds=(0, 1), steps=120, batch_size=4)
TINY = Study("Does it work?", ("gated_features",), seeds=(0,), steps=12, batch_size=8)
AS_A_USER = f"""
from jepa_fast import cli
from research import studies, study
from research.studies import Study
studies.STUDIES["small"] = {SMALL!r}
cli.run(study.main, study.Arguments, "The study of these tests.")
"""


@pytest.fixture(scope="module")
def whole(least_two_rooms, tmp_path_factory):
    """The study SMALL, one seed, as a user starts it; nobody disturbs it."""
    place = tmp_path_factory.mktemp("whole")
    flags = ["--data", least_two_rooms, "--seeds", 0, "--jobs", 1]
    flags += ["--out", place / "runs", "--records", place / "records", "--page", place / "page.md"]
    # On one thread, as the run it is compared with: with another number of them sums round otherwise.
    done = finished("-c", AS_A_USER, "small", *flags, PYTHONPATH=str(ROOT))
    assert done.returncode == 0, done.stderr
    assert re.search(r"gated_features seed 0: .* px², trained in .*; \d of 2 runs, [\d:]+ left", done.stderr)
    return place


def interrupt_when(condition):
    """Ctrl-C to this process as soon as it holds."""

    def watch():
        deadline = time.monotonic() + 300
        while not condition() and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=watch, daemon=True).start()


def test_a_study_that_was_interrupted_ends_with_the_numbers_of_one_left_alone(
    whole, least_two_rooms, tmp_path, monkeypatch
):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    alone, records = replace(SMALL, presets=("gated_features",), seeds=(0,)), tmp_path / "records.jsonl"
    run = tmp_path / "runs" / "gated_features" / "seed-0"
    # Its file is there before training is ready for signals, a line not.
    interrupt_when(lambda: (run / "metrics.jsonl").exists() and (run / "metrics.jsonl").read_bytes())
    with pytest.raises(SystemExit) as stopped:
        Runner(replace(alone, seeds=(0, 1)), least_two_rooms, tmp_path / "runs", records, 1).run()
    assert stopped.value.code == 128 + signal.SIGINT
    assert not list(run.parent.glob("seed-1*"))  # what had not begun has cost nothing
    assert 1 <= newest_step(run) < SMALL.steps
    assert not records.exists()
    Runner(alone, least_two_rooms, tmp_path / "runs", records, 1).run()
    ours, theirs = (load_records(alone, path)[0] for path in (records, whole / "records" / "small.jsonl"))
    assert ours.probe_sets == theirs.probe_sets
    assert ours.collapse == theirs.collapse
    # Seconds are those of both training processes.
    costs = json.loads(run.with_suffix(".costs.json").read_text())["costs"]
    assert len(costs) == 2
    assert ours.train_wall_s == pytest.approx(sum(wall_s for _, wall_s, _ in costs), rel=1e-3)

    before = records.read_bytes(), records.stat().st_mtime_ns
    Runner(alone, least_two_rooms, tmp_path / "runs", records, 1).run()
    assert (records.read_bytes(), records.stat().st_mtime_ns) == before


LEAVE_BEHIND = """
import os, sys
from pathlib import Path
from jepa_fast.locking import Lock
from research.process import Command

lock = Lock(Path(sys.argv[1])).__enter__()
left = Command("http.server", "--bind", "127.0.0.1", "0", log=Path(sys.argv[2]), keep_open=(lock.descriptor,))
print(left._process.pid, flush=True)
os.kill(os.getpid(), 9)
"""


def test_a_run_left_behind_keeps_a_second_study_away(tmp_path):
    """A study killed alone leaves its runs at work: they hold its lock until they end."""
    runs = tmp_path / "runs"
    runs.mkdir()
    killed = subprocess.run(
        [sys.executable, "-c", LEAVE_BEHIND, runs, tmp_path / "log"], cwd=ROOT, stdout=subprocess.PIPE, check=False
    )
    again = Runner(TINY, tmp_path / "data", runs, tmp_path / "records.jsonl", 1)
    with pytest.raises(InputError, match=r"in use by process .* or by one that it started"):
        again.run()
    os.kill(int(killed.stdout), signal.SIGTERM)
    deadline = time.monotonic() + 300
    while True:
        try:
            with Lock(runs):
                break
        except InputError:
            assert time.monotonic() < deadline
            time.sleep(0.01)


def test_tables_hold_the_means_and_spreads_of_the_records_and_plots_are_drawn(whole, tmp_path, monkeypatch):
    monkeypatch.setitem(studies.STUDIES, "small", SMALL)
    path = tmp_path / "small.jsonl"
    shutil.copy(whole / "records" / "small.jsonl", path)
    first = jsonl.read(path)[0]
    assert (first["preset"], first["seed"]) == ("gated_features", 0)
    assert not re.search(r"/(tmp|root|home|work)/", path.read_text())
    # A second seed whose errors are half as large again.
    second = json.loads(json.dumps(first)) | {"seed": 1, "train_wall_s": first["train_wall_s"] * 3}
    for found in second["probe_sets"].values():
        found["trained"]["converged"] *= 1.5
        found["trained"]["official"] *= 1.5
    jsonl.append(path, second)
    study.main(study.Arguments("small", draw=True, records=tmp_path, page=tmp_path / "page.md"))
    page = (tmp_path / "page.md").read_text()
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if "| gated_features |" in line
    ]
    for row, probe in zip(rows, ("converged", "official"), strict=False):
        assert row[1] == "2"
        for cell, name in zip(row[2:6], SETS, strict=True):
            values = [one["probe_sets"][name]["trained"][probe] for one in (first, second)]
            mean, std = map(float, cell.replace(",", "").split(" ± "))
            assert mean == pytest.approx(statistics.fmean(values), rel=5e-3)
            assert std == pytest.approx(statistics.stdev(values), rel=5e-2)
    wall_s = first["train_wall_s"]
    assert rows[2][3] == f"{2 * wall_s:.0f} ± {statistics.stdev([wall_s, 3 * wall_s]):.2g}"
    assert rows[2][1:3] == ["5,056", "480"]
    assert "1 of 4 runs have not been measured yet." in page
    for name in ("study-small.png", "study-small-pareto.png"):
        assert (tmp_path / "images" / name).read_bytes().startswith(b"\x89PNG")


def test_a_study_says_what_it_will_do_and_does_nothing_where_nothing_is_missing(
    whole, tmp_path, monkeypatch, capsys, caplog
):
    """Neither a data set nor a run folder is made for records that are only printed."""
    monkeypatch.setitem(studies.STUDIES, "small", replace(SMALL, data=str(tmp_path / "generated")))
    caplog.set_level(logging.INFO)
    path = whole / "records" / "small.jsonl"
    arguments = study.Arguments(
        "small", seeds=(0,), out=tmp_path / "runs", records=path.parent, page=tmp_path / "page.md"
    )
    study.main(arguments)
    assert "small: 2 presets x 1 seeds, 120 steps of 4 trajectories each\n2 of 2 runs are in " in caplog.text
    assert "nothing to run" in caplog.text
    assert "| gated_features | 1 |" in capsys.readouterr().out
    assert sorted(one.name for one in tmp_path.iterdir()) == ["images", "page.md"]

    done = []
    monkeypatch.setattr(study, "generate", lambda *_, **__: done.append("generated"))
    monkeypatch.setattr(Runner, "run", lambda self: done.append("run"))
    caplog.clear()
    study.main(replace(arguments, seeds=(0, 1), presets=("gated_pixels",)))
    assert "1 of 2 runs are in " in caplog.text
    assert "to run, 1 at a time: gated_pixels (seed 1)" in caplog.text
    assert "generated, which is generated where it is not there yet; run folders: " in caplog.text
    assert done == ["generated", "run"]


def test_a_record_that_was_cut_short_is_measured_again(whole, tmp_path):
    path, alone = tmp_path / "small.jsonl", replace(SMALL, seeds=(0,))
    path.write_bytes((whole / "records" / "small.jsonl").read_bytes()[:-100])
    assert [record.preset for record in load_records(alone, path)] == ["gated_features"]
    assert [str(job) for job in missing_jobs(alone, path)] == ["gated_pixels seed 0"]


def test_a_spread_has_two_digits_and_no_exponent():
    assert spread([1.0, 1.1]) == "1.05 ± 0.071"
    assert spread([10.0, 150.0]) == "80 ± 99"
    assert spread([10.0, 1510.0]) == "760 ± 1061"
    assert spread([5.0]) == "5"
    assert spread([]) == "-"


def test_a_run_that_fails_is_a_row_that_says_so(least_two_rooms, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    spoilt, records = tmp_path / "data", tmp_path / "records.jsonl"
    shutil.copytree(least_two_rooms, spoilt)
    path = spoilt / "train" / "actions-00000.npy"
    np.save(path, np.load(path) * np.float32(1e30))
    Runner(TINY, spoilt, tmp_path / "runs", records, 1).run()
    found = load_records(TINY, records)
    assert re.fullmatch(r"step \d+: \w+ is (nan|inf)", found[0].failure)
    shown = tables(TINY, found)
    assert f"seed 0 failed: {found[0].failure}" in shown
    assert "| gated_features | 0 of 1 | - | - | - | - | - |" in shown


def test_a_run_that_says_nothing_about_its_preset_is_left_for_the_next_start(tmp_path):
    runner = Runner(TINY, tmp_path / "absent", tmp_path / "runs", tmp_path / "records.jsonl", 1)
    with pytest.raises(RunError, match="not finished, and tried again at the next start: gated_features seed 0"):
        runner.run()
    assert not (tmp_path / "records.jsonl").exists()


def test_records_of_another_budget_are_refused(whole):
    path = whole / "records" / "small.jsonl"
    assert len(load_records(replace(SMALL, seeds=(0,)), path)) == 2
    with pytest.raises(InputError, match=r"small\.jsonl, line 1: steps: got 120, expected the study's 30"):
        load_records(replace(SMALL, steps=30), path)


@pytest.mark.parametrize("changed", [{"covariance": 2.0}, {"epochs": -1.0}, {"sharpness": 1.5}])
def test_records_of_a_recipe_that_has_changed_since_are_refused(whole, tmp_path, changed):
    fields = jsonl.read(whole / "records" / "small.jsonl")[1]
    fields["config"]["recipe"]["stages"][0] |= changed
    jsonl.append(tmp_path / "small.jsonl", fields)
    with pytest.raises(InputError, match=r"line 1: its recipe is not what gated_pixels is now; remove the line"):
        load_records(SMALL, tmp_path / "small.jsonl")


def test_a_preset_s_old_name_in_a_record_is_its_present_one(whole, tmp_path):
    fields = jsonl.read(whole / "records" / "small.jsonl")[0]
    jsonl.append(tmp_path / "small.jsonl", fields | {"preset": "features20k"})
    assert [record.preset for record in load_records(SMALL, tmp_path / "small.jsonl")] == ["gated_features"]


def test_a_run_that_is_recorded_twice_is_refused_and_those_of_others_are_left_alone(whole, tmp_path):
    path = tmp_path / "small.jsonl"
    first = jsonl.read(whole / "records" / "small.jsonl")[0]
    for fields in (first, {"preset": "baseline", "seed": 0}, {"preset": ["gated_features"]}):
        jsonl.append(path, fields)
    assert [record.preset for record in load_records(SMALL, path)] == ["gated_features"]
    jsonl.append(path, first)
    with pytest.raises(InputError, match=r"line 4: got 'gated_features seed 0', expected one record of each run"):
        load_records(SMALL, path)


def test_unknown_names_are_refused_and_told_which_there_are(tmp_path):
    with pytest.raises(InputError, match="NAME: got 'idea', expected one of ideas, pareto, quick"):
        study.main(study.Arguments("idea"))
    with pytest.raises(InputError, match=r"study\.presets: got 'lager', expected one of baseline, .*larger"):
        replace(TINY, presets=("lager",))
    with pytest.raises(InputError, match="--presets: got 'larger', expected some of baseline, gated_features"):
        study.main(study.Arguments("quick", presets=("larger",)))
    with pytest.raises(InputError, match="--seeds"):
        study.main(study.Arguments("quick", seeds=(1, 1)))
    with pytest.raises(InputError, match="expected a file with records of this study"):
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

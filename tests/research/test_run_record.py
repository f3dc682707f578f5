"""A run's record: what its folder says, small, and without a path of the machine."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from jepa_fast.config import JEPAConfig, Recipe, RunConfig
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import read_metrics, read_spectra, write_environment
from jepa_fast.errors import InputError
from jepa_fast.evaluate import Arguments, main
from jepa_fast.probing.results import Evaluation
from jepa_fast.runs import create_run
from research import jsonl
from research.process import Cost
from research.run_record import RunRecord, record_of


@pytest.fixture(scope="module")
def run(two_rooms, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    recipe = Recipe(model=JEPAConfig(channels=2, blocks=1, dim=8))
    config = RunConfig(
        preset="test", recipe=recipe, seed=3, steps=25, batch_size=6, amp="off", compile=False, device="cpu",
        data=str(two_rooms), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(folder, config)
    write_environment(folder, torch.device("cpu"))
    train(config, folder)
    main(Arguments(run=folder, floor="off", seed=7))
    return folder


def test_a_record_holds_what_the_run_folder_says_and_no_path(tmp_path, run, two_rooms):
    record = record_of(run, Cost(0, 12.5, 11.25), probe_seed=7)
    evaluation = Evaluation.load(run / "evaluation.json")
    assert (record.steps, record.trajectories, record.epochs) == (25, 25 * 6, 25 / (48 // 6))
    assert (record.train_wall_s, record.train_cpu_s) == (12.5, 11.25)
    assert record.parameters == evaluation.parameters
    assert {name: found.trained for name, found in record.probe_sets.items()} == {
        result.name: result.trained for result in evaluation.probe_sets
    }
    assert record.wall_to_agent == evaluation.wall_to_agent
    last = read_spectra(run)[-1]
    assert (record.collapse.rank, record.collapse.rankme, record.collapse.step) == (last["rank"], last["rankme"], 25)
    assert record.metrics == read_metrics(run)
    path = tmp_path / "new" / "records.jsonl"
    record.append(path)
    text = path.read_text()
    assert text.count("\n") == 1
    assert str(two_rooms) not in text
    assert str(run) not in text
    assert len(text) < 10_000
    loaded = RunRecord.parse(jsonl.read(path)[0], "here")
    assert loaded.probe_sets["probe_wall/val"].trained.official == pytest.approx(
        record.probe_sets["probe_wall/val"].trained.official, rel=1e-4
    )
    loaded.append(path)
    assert path.read_text() == 2 * text


def test_many_log_steps_are_thinned_and_the_last_is_kept(tmp_path, run):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    line = read_metrics(run)[-1]
    lines = [line | {"step": step} for step in range(1, 1001)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    kept = [one["step"] for one in record_of(folder, None, 0).metrics]
    assert kept == list(range(50, 1001, 50))


def test_a_failed_run_is_recorded_without_scores(tmp_path, run):
    record = record_of(run, Cost(1, 1.0, 1.0), 0, failure="step 7: invariance is nan")
    assert record.probe_sets == {}
    record.append(tmp_path / "records.jsonl")
    loaded = RunRecord.parse(jsonl.read(tmp_path / "records.jsonl")[0], "here")
    assert loaded.failure == "step 7: invariance is nan"


def test_latents_that_do_not_spread_are_called_collapsed(tmp_path, run):
    folder = tmp_path / "run"
    shutil.copytree(run, folder)
    line = read_spectra(run)[-1]
    for std, rankme, collapsed in ((0.5, 6.0, False), (0.04, 6.0, True), (0.5, 1.9, True)):
        seen = line | {"size": 1.0, "std": [std] * 8, "rankme": rankme}
        (folder / "spectra.jsonl").write_text(json.dumps(seen) + "\n")
        assert record_of(folder, None, 0).collapse.collapsed is collapsed


def test_what_is_no_record_is_refused_by_name(tmp_path, run):
    for damaged in ({}, {"probe_sets": {}}, {"probe_sets": []}, {"probe_sets": {"a": 1}}):
        with pytest.raises(InputError, match=r"file, line 3: not a record of a run .* measure again"):
            RunRecord.parse(damaged, "file, line 3")
    replace(record_of(run, None, 0), collapse=None).append(tmp_path / "records.jsonl")
    assert RunRecord.parse(jsonl.read(tmp_path / "records.jsonl")[0], "here").collapse is None

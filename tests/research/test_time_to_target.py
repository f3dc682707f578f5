"""The clock counts training alone, and neither warm-up nor probing changes what is trained."""

import os
import signal
from dataclasses import replace

import pytest
import torch

from jepa_fast.config import LoopOptions, RunConfig
from jepa_fast.engine.loop import training
from jepa_fast.errors import InputError, RunError
from jepa_fast.presets import preset
from jepa_fast.probing.results import Scores
from jepa_fast.runs import create_run
from jepa_fast.weights import load_weights
from research import targets, time_to_target
from research.speedrun import Arguments, DataArguments, main
from research.targets import read_records
from research.time_to_target import Clock, run_to_target, stopped_at_once, warm_up


@pytest.fixture
def config(two_rooms):
    return RunConfig(
        preset="gated_features", recipe=preset("gated_features"), seed=3, steps=12, batch_size=8, amp="off",
        compile=False, device="cpu", data=str(two_rooms), loader="auto", kernels="reference", sparse=True,
    )  # fmt: skip


def within_reach(monkeypatch, error_px2):
    """A first target that tiny probe sets can reach, or cannot."""
    monkeypatch.setitem(targets.TARGETS, "r1", (error_px2,) * 3)


def arguments(two_rooms, out, **changes):
    made = Arguments(
        target="r1", seeds=(3,), steps=12, checks=3, out=out, kernels="reference", data=DataArguments(two_rooms, 8)
    )
    return replace(made, **changes)


def test_warm_up_and_probing_leave_the_bits_of_the_training_alone(tmp_path, config):
    """The same weights as the plain loop's after as many steps."""
    create_run(tmp_path / "plain", config)
    *_, plain = training(config, tmp_path / "plain", LoopOptions())
    warm_up(config)
    out_of_reach = dict.fromkeys(targets.SETS, 1e-9)
    watched = run_to_target(config, tmp_path / "watched", [4, 8, 12], out_of_reach)
    assert [event["step"] for event in watched.log if event["event"] == "check"] == [4, 8, 12]
    theirs = plain.model.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in watched.model.state_dict().items())


def test_a_run_stops_at_the_first_check_that_is_met_and_its_record_holds(tmp_path, two_rooms, monkeypatch, capsys):
    within_reach(monkeypatch, 1000.0)
    out = tmp_path / "records"
    main(arguments(two_rooms, out))
    path = out / "r1.jsonl"
    (record,) = read_records(path)
    assert record.name == "r1-gated_features"
    assert [event["event"] for event in record.log] == ["check", "confirmation"]
    assert record.results[0]["step"] == 4
    assert record.config["steps"] == 12
    assert str(two_rooms) not in path.read_text()
    assert sorted(one.name for one in out.iterdir()) == ["r1.jsonl", "weights"]

    main(Arguments(check=path, rescore=True, data=DataArguments(two_rooms)))
    assert capsys.readouterr().out.count("r1 with gated_features: 1 of 1 seeds") == 2
    # Weights that never met it are found out, with a log that is in order.
    within_reach(monkeypatch, 1.0)
    for event in record.log:
        event["scores"] = {name: {"official": 0.5, "converged": 0.5} for name in targets.SETS}
    path.unlink()
    replace(record, thresholds=targets.thresholds_of("r1")).append(path)
    main(Arguments(check=path))
    world = load_weights(out / "weights" / "r1-gated_features" / "seed-3")
    assert sum(parameter.numel() for parameter in world.parameters()) == record.parameters
    with pytest.raises(RunError, match="seed 3: its weights score"):
        main(Arguments(check=path, rescore=True, data=DataArguments(two_rooms)))


def test_a_second_record_is_a_second_line_and_names_are_given_once(tmp_path, two_rooms, monkeypatch):
    within_reach(monkeypatch, 1000.0)
    # What a killed process left of weights without a record is in nobody's way.
    (tmp_path / "weights" / "r1-gated_features" / "seed-9").mkdir(parents=True)
    main(arguments(two_rooms, tmp_path))
    main(arguments(two_rooms, tmp_path, name="again"))
    assert [record.name for record in read_records(tmp_path / "r1.jsonl")] == ["r1-gated_features", "again"]
    weights = {str(path.relative_to(tmp_path / "weights")) for path in (tmp_path / "weights").glob("*/*")}
    assert weights == {"r1-gated_features/seed-3", "again/seed-3"}
    before = (tmp_path / "r1.jsonl").read_bytes()
    for target in ("r1", "r2"):
        with pytest.raises(InputError, match=r"--name: got 'again', expected one that no record in .* has"):
            main(arguments(two_rooms, tmp_path, name="again", target=target))
    for name in ("..", "a/b", "/a", ".a"):
        with pytest.raises(InputError, match=r"--name: got .* expected letters, digits"):
            main(arguments(two_rooms, tmp_path, name=name))
    assert (tmp_path / "r1.jsonl").read_bytes() == before


def test_seeds_that_never_meet_the_target_are_in_the_record(tmp_path, two_rooms, monkeypatch):
    within_reach(monkeypatch, 1e-9)
    main(arguments(two_rooms, tmp_path, seeds=(3, 4)))
    (record,) = read_records(tmp_path / "r1.jsonl")
    assert record.summary == {"seeds": 2, "met": 0, "mean_clock_s": None, "mean_cpu_s": None}
    assert [event["step"] for event in record.log if event["event"] == "check"] == [4, 8, 12] * 2
    main(Arguments(check=tmp_path / "r1.jsonl"))


@pytest.mark.posix
def test_a_run_that_is_interrupted_leaves_nothing(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(time_to_target, "score", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        main(arguments(two_rooms, tmp_path / "records"))
    assert stopped.value.code == 128 + signal.SIGINT
    assert list((tmp_path / "records").iterdir()) == []


@pytest.mark.posix
def test_signals_while_probing_end_it_and_afterwards_are_the_loops_again():
    noted = []
    before = signal.signal(signal.SIGTERM, lambda number, _: noted.append(number))
    try:
        with pytest.raises(SystemExit), stopped_at_once():
            os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGTERM)
        assert noted == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_the_clock_stands_still_while_the_model_is_probed(tmp_path, config, monkeypatch):
    """By a clock that moves a second with every reading and an hour with every probing."""
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    def slow(world, data, names, seed):
        now[0] += 3600
        return dict.fromkeys(names, Scores(1.0, 1.0, [1.0], [1.0]))

    monkeypatch.setattr(time_to_target.time, "perf_counter", tick)
    monkeypatch.setattr(time_to_target.time, "process_time", tick)
    monkeypatch.setattr(time_to_target, "score", slow)
    log = run_to_target(config, tmp_path / "run", [4, 8, 12], dict.fromkeys(targets.SETS, 0.5)).log
    clocks = [event["clock_s"] for event in log if event["event"] == "check"]
    assert len(clocks) == 3
    assert 0 < clocks[0] < clocks[1] < clocks[2] < 60
    clock = Clock("cpu")
    with clock.running():
        now[0] += 10
    assert (clock.wall_s, clock.cpu_s) == (12, 12)


def test_bad_input_is_named(tmp_path, two_rooms):
    with pytest.raises(InputError, match="--target, --check: got neither"):
        main(Arguments())
    with pytest.raises(InputError, match=r"--seeds: got \(1, 1\)"):
        main(arguments(two_rooms, tmp_path / "out", seeds=(1, 1)))
    with pytest.raises(InputError, match="--steps: not given, and none is known for r1 with baseline"):
        main(arguments(two_rooms, tmp_path / "out", preset="demo", steps=None))

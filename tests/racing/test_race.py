"""The clock counts training alone, and neither warm-up nor probing changes what is trained."""

import json
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
from jepa_fast.racing import race as race_module
from jepa_fast.racing import rungs
from jepa_fast.racing.race import Clock, race, stopped_at_once, warm_up
from jepa_fast.racing.records import Record
from jepa_fast.runs import create_run
from jepa_fast.speedrun import Arguments, DataArguments, main
from jepa_fast.weights import load_weights


@pytest.fixture
def config(two_rooms):
    return RunConfig(
        preset="features20k", recipe=preset("features20k"), seed=3, steps=12, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(two_rooms), loader="auto", kernels="reference", exact_shortcuts=True,
    )  # fmt: skip


def within_reach(monkeypatch, error_px2):
    """A first rung that tiny probe sets can reach, or cannot."""
    monkeypatch.setitem(rungs.RUNGS, "r1", (error_px2,) * 3)


def arguments(two_rooms, out, **changes):
    made = Arguments(
        rung="r1", seeds=(3,), steps=12, checks=3, out=out, kernels="reference", data=DataArguments(two_rooms, 8)
    )
    return replace(made, **changes)


def test_warm_up_and_probing_leave_the_bits_of_the_training_alone(tmp_path, config):
    """The same weights as the plain loop's after as many steps."""
    create_run(tmp_path / "plain", config)
    *_, plain = training(config, tmp_path / "plain", LoopOptions())
    warm_up(config)
    out_of_reach = dict.fromkeys(rungs.SETS, 1e-9)
    raced = race(config, tmp_path / "raced", [4, 8, 12], out_of_reach)
    assert [event["step"] for event in raced.log if event["event"] == "check"] == [4, 8, 12]
    theirs = plain.world.state_dict()
    assert all(torch.equal(value, theirs[name]) for name, value in raced.world.state_dict().items())


def test_a_race_stops_at_the_first_check_that_is_met_and_its_record_holds(tmp_path, two_rooms, monkeypatch, capsys):
    within_reach(monkeypatch, 1000.0)
    out = tmp_path / "records" / "one"
    main(arguments(two_rooms, out))
    record = Record.load(out)
    assert [event["event"] for event in record.log] == ["check", "confirmation"]
    assert record.results[0]["step"] == 4
    assert record.config["steps"] == 12
    assert str(two_rooms) not in (out / "record.json").read_text()
    assert [path.name for path in out.parent.iterdir()] == ["one"]

    main(Arguments(check=out, rescore=True, data=DataArguments(two_rooms)))
    assert capsys.readouterr().out.count("r1 with features20k: 1 of 1 seeds") == 2
    # Weights that never met it are found out, with a log that is in order.
    within_reach(monkeypatch, 1.0)
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    for line in lines:
        line["scores"] = {name: {"official": 0.5, "converged": 0.5} for name in rungs.SETS}
    (out / "log.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    fields = json.loads((out / "record.json").read_text())
    (out / "record.json").write_text(json.dumps(fields | {"thresholds": rungs.thresholds_of("r1")}))
    main(Arguments(check=out))
    world = load_weights(out / "seed-3")
    assert sum(parameter.numel() for parameter in world.parameters()) == record.parameters
    with pytest.raises(RunError, match="seed 3: its weights score"):
        main(Arguments(check=out, rescore=True, data=DataArguments(two_rooms)))


def test_seeds_that_never_meet_the_rung_are_in_the_record(tmp_path, two_rooms, monkeypatch):
    within_reach(monkeypatch, 1e-9)
    main(arguments(two_rooms, tmp_path / "record", seeds=(3, 4)))
    record = Record.load(tmp_path / "record")
    assert record.summary == {"seeds": 2, "met": 0, "mean_clock_s": None, "mean_processor_s": None}
    assert [event["step"] for event in record.log if event["event"] == "check"] == [4, 8, 12] * 2
    main(Arguments(check=tmp_path / "record"))


def test_a_race_that_is_interrupted_leaves_nothing(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(race_module, "score", lambda *_: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(SystemExit) as stopped:
        main(arguments(two_rooms, tmp_path / "records" / "one"))
    assert stopped.value.code == 128 + signal.SIGINT
    assert list((tmp_path / "records").iterdir()) == []


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


def test_the_clock_stands_while_the_world_is_probed(tmp_path, config, monkeypatch):
    """By a clock that moves a second with every reading and an hour with every probing."""
    now = [0.0]

    def tick():
        now[0] += 1
        return now[0]

    def slow(world, data, names, seed):
        now[0] += 3600
        return dict.fromkeys(names, Scores(1.0, 1.0, [], []))

    monkeypatch.setattr(race_module.time, "perf_counter", tick)
    monkeypatch.setattr(race_module.time, "process_time", tick)
    monkeypatch.setattr(race_module, "score", slow)
    log = race(config, tmp_path / "run", [4, 8, 12], dict.fromkeys(rungs.SETS, 0.5)).log
    clocks = [event["clock_s"] for event in log if event["event"] == "check"]
    assert len(clocks) == 3
    assert 0 < clocks[0] < clocks[1] < clocks[2] < 60
    clock = Clock("cpu")
    with clock.running():
        now[0] += 10
    assert (clock.wall_s, clock.processor_s) == (12, 12)


def test_bad_input_is_named(tmp_path, two_rooms):
    with pytest.raises(InputError, match="--rung, --check: got neither"):
        main(Arguments())
    with pytest.raises(InputError, match=r"--out: got .* expected a folder that is not there yet"):
        main(arguments(two_rooms, tmp_path))
    with pytest.raises(InputError, match=r"--seeds: got \(1, 1\)"):
        main(arguments(two_rooms, tmp_path / "out", seeds=(1, 1)))
    with pytest.raises(InputError, match="--steps: not given, and none is known for r1 with demo"):
        main(arguments(two_rooms, tmp_path / "out", preset="demo", steps=None))

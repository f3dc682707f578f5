"""A time budget fixes the number of steps once, and leaves no trace in what they compute."""

import re
from dataclasses import replace

import pytest
import torch

from jepa_fast import train
from jepa_fast.config import JEPAConfig, RunConfig, Stage
from jepa_fast.engine import calibration
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import training
from jepa_fast.errors import InputError
from jepa_fast.presets import preset
from jepa_fast.progress import rough
from jepa_fast.runs import CONFIG

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)


def arguments(data, **settings):
    return train.Arguments(
        model=SMALL, kernels="reference", data=train.DataArguments(path=data, batch_size=8), seed=3, **settings
    )


def state(folder):
    kept = load_checkpoint(folder)
    return [*kept["model"].values(), *(value for one in kept["optimizer"]["state"].values() for value in one.values())]


def test_a_run_of_minutes_has_the_bits_of_one_of_its_steps_and_resumes_to_them(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(calibration, "ENOUGH_S", 0.2)
    stopped, whole = tmp_path / "stopped", tmp_path / "whole"

    measure = calibration.measure

    def measured(config, ranks, model):
        """Steps are timed as always, and said to be slow: what is left of ten minutes is a dozen, on any machine."""
        measure(config, ranks, model)
        return 50.0, 0.0

    monkeypatch.setattr(calibration, "measure", measured)

    def some_steps(config, folder, options, ranks, model, begin):
        steps = training(config, folder, replace(options, checkpoint_minutes=0), ranks, model, begin)
        while next(steps).done < 3:
            pass
        steps.close()
        return 3

    with monkeypatch.context() as patch:
        patch.setattr("jepa_fast.engine.loop.train", some_steps)
        train.main(arguments(two_rooms, minutes=10, out=stopped))
    steps = RunConfig.load(stopped / CONFIG).steps
    assert load_checkpoint(stopped)["step"] == 3
    assert 3 < steps <= 12
    train.main(train.Arguments(resume=stopped))
    train.main(arguments(two_rooms, steps=steps, out=whole))
    assert load_checkpoint(stopped)["step"] == steps
    ours, theirs = state(stopped), state(whole)
    assert len(ours) == len(theirs)
    assert all(torch.equal(one, other) for one, other in zip(ours, theirs, strict=True))


def test_the_measured_time_is_that_of_the_steps(two_rooms, monkeypatch):
    """By a clock that stands still but for the steps: others may hold the processor."""
    now = [100.0]
    monkeypatch.setattr(calibration, "ENOUGH_S", 0.5)
    monkeypatch.setattr(calibration.time, "monotonic", lambda: now[0])
    config = train.resolve(arguments(two_rooms, steps=1), "cpu", two_rooms)
    advance = calibration.Trainer.step
    for step_s in (0.02, 0.5):

        def timed(trainer, batch, step_s=step_s):
            now[0] += step_s
            return advance(trainer, batch)

        monkeypatch.setattr(calibration.Trainer, "step", timed)
        assert calibration.measure(config) == pytest.approx((step_s, calibration.UNTIMED * step_s))


def test_stages_count_by_their_shares_and_are_each_timed_in_place(two_rooms, monkeypatch):
    config = train.resolve(replace(arguments(two_rooms, steps=1), preset="staged"), "cpu", two_rooms)
    seen = []

    def timed(config, number, ranks, model):
        seen.append(number)
        return (1.0, 0.5) if number == 0 else (5.0, 0.25)

    monkeypatch.setattr(calibration, "_time_stage", timed)
    # The first two of its three stages freeze nothing.
    assert calibration.measure(config) == (0.75 * 1.0 + 0.25 * 5.0, 0.25)
    assert seen == [0, 2]


def test_a_stage_is_timed_with_what_it_freezes(two_rooms, monkeypatch):
    monkeypatch.setattr(calibration, "ENOUGH_S", 0.0)
    config = train.resolve(replace(arguments(two_rooms, steps=1), preset="staged"), "cpu", two_rooms)
    frozen = []

    def step(trainer, batch):
        frozen.append(trainer.stage(int(trainer.clock[1])))
        return advance(trainer, batch)

    advance = calibration.Trainer.step
    monkeypatch.setattr(calibration.Trainer, "step", step)
    calibration.measure(config)
    each = calibration.UNTIMED + calibration.ROUND
    assert frozen == [0] * each + [2] * each


def test_a_budget_that_is_over_before_a_step_is_refused(two_rooms, monkeypatch):
    monkeypatch.setattr(calibration, "measure", lambda config, ranks, model: (3.0, 60.0))
    config = train.resolve(arguments(two_rooms, steps=1), "cpu", two_rooms)
    with pytest.raises(InputError, match=r"--minutes: got 1\.0, expected at least 1\.1, where a step takes 3 s"):
        calibration.steps_within(60, config)
    steps = calibration.steps_within(120, config)
    assert steps == 19 or steps == 20


def test_a_recipe_of_one_stage_is_timed_once(two_rooms, monkeypatch):
    config = train.resolve(arguments(two_rooms, steps=1), "cpu", two_rooms)
    assert config.recipe.stages == (Stage(1),) == preset("baseline").stages
    monkeypatch.setattr(calibration, "_time_stage", lambda config, number, ranks, model: (1.0, number))
    assert calibration.measure(config) == (1.0, 0)


def test_a_run_says_once_how_long_it_will_take(tmp_path, two_rooms, caplog):
    with caplog.at_level("INFO"):
        train.main(arguments(two_rooms, steps=30, out=tmp_path / "run"))
    said = [line for line in caplog.messages if "on this machine" in line]
    assert len(said) == 1
    number, unit, step_s = re.fullmatch(r"about (\d+) (s|min) on this machine: (\S+) s a step", said[0]).groups()
    # Of the 20 steps after the first ten.
    left_s = 20 * float(step_s)
    assert unit == "min" or int(number) == max(1, round(left_s))


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(0.2, "1 s"), (89, "89 s"), (91, "2 min"), (150, "2 min"), (3600, "60 min"), (7800, "2 h 10 min")],
)
def test_a_duration_is_told_roughly(seconds, said):
    assert rough(seconds) == said

"""Guards: a step that is not finite is kept and can be run again; a collapse is noticed, a healthy run let alone."""

import logging
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from jepa_fast.config import JEPAConfig, LoopOptions, OptimizerConfig, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.data.host import group_bases
from jepa_fast.data.shards import open_split
from jepa_fast.engine import pace
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.guards import PATIENCE, load_failure
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import read_spectra
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import RunError
from jepa_fast.runs import create_run

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)
HEALTHY = Recipe(
    model=SMALL,
    objective=VICRegConfig(targets="stop_gradient", sides="both"),
    optimizer=OptimizerConfig(learning_rate=3e-3),
    stages=(Stage(1),),
)
COLLAPSING = replace(HEALTHY, objective=VICRegConfig(variance=0.0, covariance=0.0))


def configuration(data, **changes):
    config = RunConfig(
        preset="test", recipe=HEALTHY, seed=3, steps=60, batch_size=12, amp="off", compile=False, device="cpu",
        data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


@pytest.fixture
def explosive(two_rooms):
    """A run whose energy overflows after some steps, all by itself: a rate far too high, nothing clipped."""
    recipe = Recipe(model=SMALL, optimizer=OptimizerConfig(learning_rate=1e18, clip_norm=1e30))
    return configuration(two_rooms, recipe=recipe, steps=40)


def test_a_run_that_overflows_stops_and_keeps_the_step_which_then_fails_again(tmp_path, explosive):
    folder = tmp_path / "run"
    create_run(folder, explosive)
    with pytest.raises(RunError) as stopped:
        train(explosive, folder, LoopOptions(checkpoint_minutes=0))
    (path,) = folder.glob("failure-*.pt")
    failure = load_failure(path)
    step = failure.state["step"] + 1
    name = next(name for name, value in failure.metrics.items() if name != "total" and not math.isfinite(value))
    assert str(stopped.value).startswith(f"step {step}: {name} is ")
    assert str(path) in str(stopped.value)
    assert "\n" not in str(stopped.value)

    # The state before it is that of the last checkpoint, saved after every step here.
    last = load_checkpoint(folder)
    assert last["step"] == step - 1
    assert all(torch.equal(value, last["model"][key]) for key, value in failure.state["model"].items())

    split = open_split(Path(explosive.data) / "train")
    trainer = Trainer(explosive, split.spec, group_bases(split, torch.device("cpu")))
    trainer.restore(failure.state)
    again = trainer.step(failure.batch).metrics.tolist()
    torch.testing.assert_close(again, list(failure.metrics.values()), rtol=0, atol=0, equal_nan=True)


def test_a_step_gone_wrong_between_readings_is_named_and_no_later_one_is_saved(tmp_path, explosive):
    """Without a log step at every step: the run goes on to the next one, its state does not."""
    every_step = tmp_path / "every_step"
    create_run(every_step, explosive)
    with pytest.raises(RunError) as exact:
        train(explosive, every_step, LoopOptions(checkpoint_minutes=0))
    seldom = tmp_path / "seldom"
    create_run(seldom, explosive)
    with pytest.raises(RunError) as late:
        train(explosive, seldom)
    assert str(late.value).replace("seldom", "every_step") == str(exact.value)
    assert not list(checkpoint_folder(seldom).glob("*.pt"))


def test_a_run_without_a_variance_term_is_caught_collapsing(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(pace, "LOOKS", 6)
    config = configuration(two_rooms, recipe=COLLAPSING)
    create_run(tmp_path / "run", config)
    with pytest.raises(RunError, match=r"step (\d+): latents have collapsed: .* RankMe \d\.\d and effective") as stop:
        train(config, tmp_path / "run", LoopOptions(on_collapse="stop"))
    step = int(str(stop.value).split(":")[0].removeprefix("step "))
    assert load_checkpoint(tmp_path / "run")["step"] == step
    # Three looks, ten steps apart.
    low = [line["step"] for line in read_spectra(tmp_path / "run")][-PATIENCE:]
    assert low == [step - 20, step - 10, step]


def test_a_warning_comes_once_and_the_run_goes_on(tmp_path, two_rooms, caplog):
    config = configuration(two_rooms, recipe=COLLAPSING, steps=50)
    create_run(tmp_path / "run", config)
    with caplog.at_level(logging.WARNING):
        assert train(config, tmp_path / "run") == config.steps
    assert caplog.text.count("latents have collapsed") == 1


def test_a_healthy_run_gives_no_alarm(tmp_path, two_rooms, caplog):
    config = configuration(two_rooms)
    create_run(tmp_path / "run", config)
    with caplog.at_level(logging.WARNING):
        assert train(config, tmp_path / "run", LoopOptions(on_collapse="stop")) == config.steps
    assert "collapsed" not in caplog.text
    assert read_spectra(tmp_path / "run")[-1]["rankme"] > 5

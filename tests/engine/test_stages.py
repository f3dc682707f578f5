"""Stages: they share the steps, what is frozen keeps its bits, and a run resumes across a stage's end."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from jepa_fast.config import JEPAConfig, LoopOptions, Recipe, RunConfig, Stage, VICRegConfig
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train, training
from jepa_fast.engine.record import read_metrics
from jepa_fast.engine.schedule import schedule
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import InputError
from jepa_fast.presets import preset
from jepa_fast.runs import create_run
from tests.engine.test_step import NoReadBack

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)
AGENT = "encoder.agent"
STEPS = 40


def staged(*stages, **changes):
    return Recipe(model=SMALL, stages=stages, **changes)


def configuration(data, recipe, **changes):
    config = RunConfig(
        preset="test", recipe=recipe, seed=3, steps=STEPS, batch_size=8, amp="off", compile=False, device="cpu",
        data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    return replace(config, **changes)


def trainer_for(config):
    split = open_split(Path(config.data) / "train")
    return Trainer(config, split.spec, group_bases(split, torch.device(config.device)))


def batches(config, first=0, stop=STEPS):
    split = open_split(Path(config.data) / "train")
    for rows in Sampler(split.count, config.batch_size, config.seed).steps(first, stop):
        yield gather(split, rows)


def run(folder, config):
    create_run(folder, config)
    train(config, folder)
    return folder


def weigh(invariance, variance, covariance):
    return {"invariance": invariance, "variance": variance, "covariance": covariance}


def moments(trainer):
    """Weights, moments and step counts by parameter name, copied."""
    states = [state for part in trainer.optimizer.parts for state in part.adam.state.items()]
    by_parameter = dict(states)
    return {
        name: {"weight": parameter.detach().clone()}
        | {key: value.clone() for key, value in by_parameter.get(parameter, {}).items()}
        for name, parameter in trainer.model.named_parameters()
    }


@pytest.mark.parametrize("frozen", [(AGENT,), ("encoder",), ("predictor", "encoder.wall")])
@pytest.mark.parametrize("targets", ["shared", "ema"])
def test_frozen_weights_moments_and_counts_keep_their_bits_and_all_others_move(two_rooms, frozen, targets):
    recipe = staged(
        Stage(1, weigh(25, 25, 1)),
        Stage(1, weigh(25, 25, 1), frozen=frozen),
        Stage(1, weigh(25, 25, 1)),
        objective=VICRegConfig(targets=targets),
    )
    config = configuration(two_rooms, recipe, steps=9)
    trainer, stream = trainer_for(config), batches(config)

    def stage():
        for _ in range(3):
            trainer.step(next(stream))
        return moments(trainer)

    for number, (before, after) in enumerate([(first := stage(), second := stage()), (second, stage())]):
        for name, state in after.items():
            stands = number == 0 and name.startswith(tuple(f"{module}." for module in frozen))
            for key, value in state.items():
                assert torch.equal(value, before[name][key]) == stands, (name, key)
    assert first


@pytest.mark.parametrize("frozen", [("encoder.agent",), ("encoder.wall",), ("encoder",), ("predictor",)])
def test_steps_launched_one_by_one_compute_no_gradients_of_what_is_frozen_and_end_where_captured_ones_do(
    two_rooms, frozen
):
    """A step that is to serve all stages computes them and makes them zero."""
    config = configuration(
        two_rooms, staged(Stage(2, weigh(25, 25, 1)), Stage(3, weigh(25, 25, 1), frozen=frozen)), steps=5
    )
    each, same = trainer_for(config), trainer_for(config)
    same._same_in_all_stages = True
    for number, batch in enumerate(batches(config, stop=5)):
        each.step(batch), same.step(batch)
        for name, parameter in each.model.named_parameters():
            stands = number >= 2 and name.startswith(tuple(f"{module}." for module in frozen))
            assert (parameter.grad is None) == stands, name
        assert all(parameter.grad is not None for parameter in same.model.parameters())
    for name, weight in each.model.state_dict().items():
        torch.testing.assert_close(same.model.state_dict()[name], weight, rtol=1e-4, atol=1e-6)


def test_learning_rate_and_sigma_begin_anew_where_a_stage_restarts_them():
    stages = Stage(1), Stage(1, {"nll": 2.0}, restarts=True), Stage(2, {"nll": 3.0})
    recipe = replace(preset("wall_apart"), stages=stages)
    found, base = schedule(40, recipe), recipe.optimizer.learning_rate
    rates, sigmas = (found.column(name).double() for name in ("learning_rate", "sigma"))
    whole = [base * (1 + math.cos(math.pi * step / 30)) / 2 for step in range(30)]
    assert rates[10:].tolist() == pytest.approx(whole)
    assert rates[:10].tolist() == pytest.approx(whole[::3])  # a run of its own, a third as long
    assert sigmas[[0, 5, 10, 25]].tolist() == pytest.approx([0.5, (0.5 * 0.2) ** 0.5] * 2)
    assert found.column("nll")[[9, 10, 19, 20]].tolist() == [1, 2, 2, 3]


def test_what_is_frozen_does_not_count_in_the_gradient_that_is_clipped(two_rooms):
    config = configuration(two_rooms, staged(Stage(1, weigh(25, 25, 1), frozen=("encoder",))))
    trainer = trainer_for(config)
    metrics = dict(zip(trainer.names, trainer.step(next(batches(config))).metrics.tolist(), strict=True))
    norms = {part: module_norm(module) for part, module in trainer.model.named_children()}
    assert norms["encoder"] == 0
    # Clipped to half, or left as it was.
    assert norms["predictor"] == pytest.approx(min(metrics["gradient_norm"], 0.5), rel=1e-4)


def module_norm(module):
    gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    return sum(gradient.square().sum().item() for gradient in gradients) ** 0.5


def test_a_recipe_that_freezes_nothing_takes_the_steps_of_one_plain_adam(two_rooms):
    config = configuration(two_rooms, staged(Stage(1, weigh(25, 25, 1))), steps=4)
    ours, theirs = trainer_for(config), trainer_for(config)
    rate = torch.zeros(())
    adam = torch.optim.Adam(theirs.model.parameters(), lr=rate, weight_decay=3e-4, fused=True)
    for number, batch in enumerate(batches(config, stop=4)):
        ours.step(batch)
        rate.fill_(ours.learning_rate(number))
        adam.zero_grad()
        loss, _ = theirs.forward(batch, {name: torch.tensor(weight) for name, weight in weigh(25.0, 25.0, 1.0).items()})
        loss.total.backward()
        nn.utils.clip_grad_norm_(theirs.model.parameters(), 0.5)
        adam.step()
        theirs.clock[1] += 1
    for name, weight in theirs.model.state_dict().items():
        assert torch.equal(ours.model.state_dict()[name], weight), name


@pytest.mark.parametrize("cut", [5, 16, 27])
def test_a_run_resumed_before_at_or_after_a_stage_s_end_gives_the_same_bits(tmp_path, two_rooms, cut):
    recipe = staged(Stage(16, weigh(0, 25, 1)), Stage(10, weigh(25, 5, 1)), Stage(14, weigh(25, 0, 0), frozen=(AGENT,)))
    config = configuration(two_rooms, recipe)
    whole = load_checkpoint(run(tmp_path / "whole", config))
    create_run(tmp_path / "cut", config)
    steps = training(config, tmp_path / "cut", LoopOptions(checkpoint_minutes=0))
    while next(steps).done < cut:
        pass
    steps.close()
    assert load_checkpoint(tmp_path / "cut")["step"] == cut
    train(config, tmp_path / "cut", LoopOptions(resume=True))
    again = load_checkpoint(tmp_path / "cut")
    assert len(whole["optimizer"]["parts"]) == 2
    for ours, theirs in zip(leaves(again), leaves(whole), strict=True):
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
    stages = [line["stage"] for line in read_metrics(tmp_path / "whole")]
    assert stages == [1, 2, 3, 3]
    assert [line["stage"] for line in read_metrics(tmp_path / "cut")] == stages


def leaves(state):
    values = state.values() if isinstance(state, dict) else state
    for value in values:
        if isinstance(value, (dict, list, tuple)):
            yield from leaves(value)
        else:
            yield value


FREEZING = staged(Stage(6, weigh(0, 25, 1)), Stage(6, weigh(25, 0, 0)), Stage(28, weigh(25, 0, 0), frozen=(AGENT,)))


def test_a_staged_step_reads_nothing_back_and_what_a_captured_step_looks_at_stays_in_place(two_rooms):
    config = configuration(two_rooms, FREEZING, kernels="fused")
    trainer, stream = trainer_for(config), batches(config)
    trainer.step(next(stream))
    places = [tensor.data_ptr() for tensor in (trainer._table, *(part.skipped for part in trainer.optimizer.parts))]
    for number in range(1, 14):
        with NoReadBack():
            trainer.step(next(stream))
        assert trainer.optimizer.parts[0].skipped == (number >= 12)
    after = [trainer._table, *(part.skipped for part in trainer.optimizer.parts)]
    assert [tensor.data_ptr() for tensor in after] == places


@pytest.mark.gpu
def test_a_captured_step_goes_through_stages_like_an_eager_one(two_rooms):
    found = []
    for capture in (False, True):
        config = configuration(two_rooms, FREEZING, device="cuda", capture=capture)
        trainer = trainer_for(config)
        for number, batch in enumerate(batches(config, stop=18)):
            metrics = trainer.step(batch).metrics.clone()
            if number == 11:
                frozen = moments(trainer)
        after = moments(trainer)
        assert all(torch.equal(after[name]["weight"], frozen[name]["weight"]) for name in after if AGENT in name)
        found.append(metrics)
    torch.testing.assert_close(*found, rtol=2e-3, atol=1e-5)


def test_stages_are_read_back(tmp_path, two_rooms):
    recipe = staged(
        Stage(0.25, weigh(0.0, 25.0, 1.0)), Stage(0.5, {"variance": 0.0}, ("encoder", "predictor"), restarts=True)
    )
    config = configuration(two_rooms, recipe)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config


def test_stages_that_make_no_sense_are_refused(two_rooms):
    with pytest.raises(InputError, match=r"stage\.epochs: got 0, expected a positive number"):
        Stage(0)
    with pytest.raises(
        InputError, match=r"stage\.weights: got 'nll', expected invariance, variance, covariance: terms"
    ):
        staged(Stage(1, {"nll": 2.0}))
    with pytest.raises(InputError, match=r"stages: got \(\), expected at least one"):
        staged()
    with pytest.raises(InputError, match=r"stage\.frozen: got 'encoder\.agnet', expected a module with parameters"):
        trainer_for(configuration(two_rooms, staged(Stage(1, frozen=("encoder.agnet",)))))
    with pytest.raises(InputError, match=r"stage\.frozen: got 'encoder, predictor', expected modules that leave"):
        trainer_for(configuration(two_rooms, staged(Stage(1), Stage(1, frozen=("encoder", "predictor")))))


def test_the_preset_goes_from_spreading_to_predicting_to_a_frozen_agent_encoder():
    recipe = preset("staged")
    spread, predict, settle = (recipe.objective.weights(stage.weights) for stage in recipe.stages)
    assert (spread["invariance"], predict["variance"], settle["variance"]) == (0, 0, 0)
    assert recipe.stages[2].frozen == (AGENT,)
    assert recipe.epochs == preset("baseline").epochs
    assert math.isclose(sum(stage.epochs for stage in recipe.stages), 1)

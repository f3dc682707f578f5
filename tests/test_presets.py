"""Every preset through the commands that users type, its model made small."""

from dataclasses import replace

import pytest
import torch

import jepa_fast
from jepa_fast import evaluate, export
from jepa_fast.config import JEPAConfig, LoopOptions, RunConfig
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train, training
from jepa_fast.presets import PRESETS, preset
from jepa_fast.probing.results import Evaluation
from jepa_fast.runs import create_run


def configuration(data, name):
    recipe = preset(name)
    if isinstance(recipe.model, JEPAConfig):
        recipe = replace(recipe, model=replace(recipe.model, channels=4, dim=16))
    return RunConfig(
        preset=name, recipe=recipe, seed=3, steps=10, batch_size=4, amp="off", compile=False, device="cpu",
        data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_trains_resumes_evaluates_and_exports(tmp_path, least_two_rooms, name):
    config, whole, cut = configuration(least_two_rooms, name), tmp_path / "whole", tmp_path / "cut"
    create_run(whole, config)
    assert train(config, whole) == 10
    create_run(cut, config)
    steps = training(config, cut, LoopOptions(checkpoint_minutes=0))
    while next(steps).done < 4:
        pass
    steps.close()
    assert load_checkpoint(cut)["step"] == 4
    train(config, cut, LoopOptions(resume=True))
    ours, theirs = (load_checkpoint(folder)["model"] for folder in (cut, whole))
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)

    export.main(export.Arguments(whole))
    exported = jepa_fast.load(whole / "export")
    assert exported.config == config.recipe.model
    assert all(torch.equal(value, theirs[key]) for key, value in exported.state_dict().items())
    evaluate.main(evaluate.Arguments(run=whole))
    parameters = sum(parameter.numel() for parameter in exported.parameters())
    assert Evaluation.load(whole / "evaluation.json").parameters == parameters

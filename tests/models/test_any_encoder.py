"""Any module that encodes frames trains: through the step, the loop, EMA targets, freezing, checkpoints and probing."""

import contextlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import jepa_fast
from jepa_fast.config import CustomConfig, InfoNCEConfig, LoopOptions, OptimizerConfig, Recipe, Stage, VICRegConfig
from jepa_fast.data.batches import expand_frames
from jepa_fast.data.host import gather, group_bases
from jepa_fast.data.sampler import Sampler
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.engine.loop import train, training
from jepa_fast.engine.step import Trainer
from jepa_fast.errors import InputError
from jepa_fast.models.jepa import JEPA, build_jepa
from jepa_fast.models.predictor import MLPPredictor
from jepa_fast.models.registry import build_model
from jepa_fast.objectives.infonce import InfoNCE
from jepa_fast.objectives.vicreg import VICReg
from jepa_fast.probing.rollouts import rollout_split
from jepa_fast.runs import create_run
from tests.one_step_runs import configuration


class MapEncoder(nn.Module):
    """Frames [N, 2, H, W] to maps [N, 3, 2, 2], with statistics of its own."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(2, 3, 5, stride=4), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2))

    def forward(self, frames):
        return self.layers(frames * 10)


def vector_encoder():
    """Frames [N, 2, H, W] to vectors [N, 12]."""
    return nn.Sequential(nn.Conv2d(2, 4, 7, stride=4), nn.GELU(), nn.Flatten(), nn.LazyLinear(12))


def made(encoder=None, objective=None, seed=0, **options):
    torch.manual_seed(seed)
    encoder = encoder or MapEncoder()
    with torch.no_grad():
        encoder(torch.zeros(2, 2, 65, 65))
    return JEPA(encoder, MLPPredictor(12, 2, dropout=0.0, **options), objective or InfoNCE())


def config_for(model, data, **changes):
    recipe = Recipe(model.config, model.objective.config, OptimizerConfig(learning_rate=3e-3), stages=(Stage(1),))
    return configuration("baseline", data, **{"preset": "own", "recipe": recipe, **changes})


def losses(model, config):
    split = open_split(Path(config.data) / "train")
    trainer = Trainer(config, split.spec, group_bases(split, torch.device("cpu")), model=model)
    rows = Sampler(split.count, config.batch_size, config.seed).steps(0, config.steps)
    return [trainer.step(gather(split, each)).metrics[0].item() for each in rows], trainer


@pytest.mark.parametrize("encoder", [MapEncoder, vector_encoder])
@pytest.mark.parametrize("objective", [InfoNCE, VICReg])
def test_an_encoder_of_one_s_own_learns(two_rooms, encoder, objective):
    model = made(encoder(), objective())
    found, trainer = losses(model, config_for(model, two_rooms, steps=60))
    assert trainer.model is model
    assert sum(found[-5:]) < 0.8 * sum(found[:5])


def test_maps_are_flattened_and_names_are_the_module_s_own(two_rooms):
    model = made().eval()
    split = open_split(two_rooms / "train")
    batch = gather(split, torch.arange(3).numpy())
    frames = expand_frames(batch, split.spec)
    encoded = model.batch_encoder(split.spec)(batch, model.dropout_clock)
    assert torch.equal(encoded, model.encoder(frames.flatten(0, 1)).reshape(3, frames.shape[1], 12))
    assert torch.equal(encoded, model.encode(frames))
    assert {name for name in model.state_dict() if name.startswith("encoder.")} == {
        f"encoder.{name}" for name in model.encoder.state_dict()
    }
    predicted, following = model(frames, batch.actions)
    torch.testing.assert_close(following, encoded[:, 1:])
    torch.testing.assert_close(model.rollout(frames[:, 0], batch.actions)[:, 1:], predicted)
    rolled = rollout_split(model, split, "own").latents
    torch.testing.assert_close(rolled[:3, 1:], predicted.detach(), rtol=1e-4, atol=1e-5)


def test_it_is_trained_resumed_and_loaded_into_the_module_that_made_it(tmp_path, two_rooms):
    config = config_for(made(), two_rooms, steps=14)
    assert config.recipe.model == CustomConfig(encoder="MapEncoder", predictor="MLPPredictor")
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    for folder in (whole, cut):
        create_run(folder, config)
    assert train(config, whole, model=made()) == 14
    with contextlib.closing(training(config, cut, LoopOptions(checkpoint_minutes=0), model=made())) as steps:
        while next(steps).done < 6:
            pass
    train(config, cut, LoopOptions(resume=True), model=made(seed=1))
    ours, theirs = (load_checkpoint(folder)["model"] for folder in (cut, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    with pytest.raises(InputError, match="its model was made in Python; give one to load"):
        jepa_fast.load(whole)
    loaded = jepa_fast.load(whole, model=made(seed=1))
    assert all(torch.equal(value, theirs[name]) for name, value in loaded.state_dict().items())
    with pytest.raises(InputError, match=r"model\.kind: got 'custom', which only the code that made"):
        build_model(config.recipe.model)


def test_an_averaged_encoder_follows_its_weights_and_its_statistics(two_rooms):
    model = made(objective=VICReg(VICRegConfig(targets="ema", ema_decay=0.9)))
    first = [parameter.detach().clone() for parameter in model.encoder.parameters()]
    _, trainer = losses(model, config_for(model, two_rooms, steps=1))
    for slow, before, now in zip(trainer.target_encoder.parameters(), first, model.encoder.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.9 * before + 0.1 * now)
    for kept, now in zip(trainer.target_encoder.buffers(), model.encoder.buffers(), strict=True):
        assert torch.equal(kept, now)


def test_stages_freeze_its_modules(two_rooms):
    model = made()
    config = config_for(model, two_rooms, steps=4)
    frozen = [value.detach().clone() for value in model.encoder.layers[0].parameters()]
    losses(model, replace(config, recipe=replace(config.recipe, stages=(Stage(1, frozen=("encoder.layers.0",)),))))
    assert all(map(torch.equal, model.encoder.layers[0].parameters(), frozen))


def test_what_the_model_in_hand_says_is_what_is_run(two_rooms):
    """Not what the configuration says that came with it."""
    model = made(objective=InfoNCE(InfoNCEConfig(temperature=0.5)))
    config = replace(config_for(model, two_rooms), recipe=Recipe())
    _, trainer = losses(model, config)
    assert trainer.names == ("total", "contrast", "invariance", "top1", "gradient_norm")
    assert trainer.config.recipe.objective.temperature == 0.5


class Pair(nn.Module):
    """Gives two things."""

    def forward(self, frames):
        return frames, frames


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Flatten(0), r"encoder: got shape \(50700,\) of 6 frames, expected \[6, D\] or \[6, c, h, w\]"),
        (Pair(), r"encoder: got a tuple of 6 frames"),
    ],
)
def test_encoders_that_do_not_encode_frame_by_frame_are_refused(encoder, message):
    model = JEPA(encoder, MLPPredictor(12, 2))
    with pytest.raises(ValueError, match=message):
        model.encode(torch.rand(2, 3, 2, 65, 65))


def test_latents_and_actions_of_another_size_than_the_predictor_s_are_refused():
    model = made(vector_encoder())
    frames = torch.rand(2, 3, 2, 65, 65)
    with pytest.raises(ValueError, match=r"actions: got shape \(2, 2, 7\), expected \(2, 2, 2\)"):
        model(frames, torch.zeros(2, 2, 7))
    wrong = JEPA(model.encoder, MLPPredictor(16, 2))
    with pytest.raises(ValueError, match=r"latents: got 12 numbers, expected the predictor's dim, 16"):
        wrong(frames, torch.zeros(2, 2, 2))


def test_frames_of_any_size_and_actions_of_any_length_are_taken():
    torch.manual_seed(0)
    encoder = nn.Sequential(nn.Conv2d(3, 4, 3, stride=3), nn.Flatten(), nn.LazyLinear(12))
    model = JEPA(encoder, MLPPredictor(12, 7, dropout=0.0), VICReg())
    predicted, encoded = model(torch.rand(4, 5, 3, 21, 34), torch.randn(4, 4, 7))
    assert predicted.shape == encoded.shape == (4, 4, 12)
    (predicted - encoded).square().mean().backward()
    assert model.predictor.action.weight.grad.abs().min() > 0


def test_the_published_model_is_one_instance():
    model = build_jepa()
    assert isinstance(model, JEPA)
    assert [name for name, _ in model.named_children()] == ["objective", "encoder", "predictor"]

"""States that leave the wall out: the wall is carried, not predicted, and is learned through the predictor alone."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from jepa_fast.config import EnergyConfig, ModelConfig, Recipe, RunConfig
from jepa_fast.errors import InputError
from jepa_fast.model.dropout import new_clock
from jepa_fast.model.encoder import Encoder
from jepa_fast.model.objectives import choose_objective
from jepa_fast.model.shortcuts import BatchEncoder, Rewrites
from jepa_fast.model.world import World
from jepa_fast.presets import preset
from tests.model.exactness import assert_equal_to_plain
from tests.model.numpy_world import branch_states, gelu, layer_norm

SMALL = ModelConfig(channels=3, blocks=2, dim=10, dropout=0.0, wall="apart")
WEIGHTS = torch.tensor([25.0, 25.0, 1.0], dtype=torch.float64)


def scrambled(config=SMALL):
    """A float64 world with every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(0)
    world = World(config).double()
    with torch.no_grad():
        for parameter in world.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return world.eval()


def weights_under(world, prefix):
    return {k.removeprefix(prefix): v.numpy() for k, v in world.state_dict().items() if k.startswith(prefix)}


def predictor_step(state, wall, action, w):
    """The state [D] that follows, from the formula."""
    hidden = w["state.weight"] @ state + w["wall.weight"] @ wall + w["action.weight"] @ action + w["state.bias"]
    hidden = gelu(layer_norm(hidden, w["norm.weight"], w["norm.bias"]))
    mixed = layer_norm(w["mix.weight"] @ hidden + w["mix.bias"], w["mix_norm.weight"], w["mix_norm.bias"])
    return state + w["move.weight"] @ action + w["project.weight"] @ (hidden + gelu(mixed)) + w["project.bias"]


def test_a_rollout_equals_the_formulas_in_numpy():
    world = scrambled()
    frames, actions = torch.rand(2, 5, 2, 13, 13).double(), torch.randn(2, 4, 2).double()
    predicted, encoded = world(frames, actions)
    states = world.rollout(frames[:, 0], actions)
    agent, wall, weights = (weights_under(world, p) for p in ("encoder.agent.", "encoder.wall.", "predictor."))
    for b in range(2):
        targets = [branch_states(frame[0], agent) for frame in frames[b].numpy()]
        carried = branch_states(frames[b, 0, 1].numpy(), wall)
        np.testing.assert_allclose(encoded[b].detach(), targets[1:], rtol=1e-10, atol=1e-10)
        expected = [targets[0]]
        for t in range(4):
            expected.append(predictor_step(expected[-1], carried, actions[b, t].numpy(), weights))
        np.testing.assert_allclose(states[b].detach(), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(predicted[b].detach(), expected[1:], rtol=1e-10, atol=1e-10)


def test_untrained_an_action_moves_every_state_alike_whatever_the_wall():
    predictor = World(SMALL).double().predictor
    first, actions = torch.randn(4, 20).double(), torch.randn(1, 5, 2).double().expand(4, -1, -1)
    moved = predictor(first, actions, new_clock()) - first[:, None, :10]
    assert moved[0].abs().min() > 0
    torch.testing.assert_close(moved, moved[:1].expand(4, -1, -1), rtol=1e-12, atol=1e-12)


def test_the_preset_is_short_rollouts_with_the_default_encoder_and_the_wall_apart():
    recipe, other = preset("wall_apart"), preset("short_rollouts")
    assert replace(recipe, model=other.model, optimizer=other.optimizer, stages=other.stages) == other
    world = World(recipe.model)
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in world.named_children()}
    assert sizes == {"encoder": 159_712, "predictor": 463_232}
    assert sum(p.numel() for p in World(other.model).parameters()) == 293_344


def test_states_say_nothing_of_the_wall_and_predictions_do():
    world = scrambled()
    frames, actions = torch.rand(2, 3, 2, 13, 13).double(), torch.randn(2, 2, 2).double()
    other = frames.clone()
    other[:, :, 1] = torch.rand_like(other[:, :, 1])
    (predicted, encoded), (moved, same) = world(frames, actions), world(other, actions)
    assert torch.equal(encoded, same)
    assert (predicted - moved).abs().amax(dim=(1, 2)).min() > 1e-3
    assert torch.equal(world.rollout(frames[:, 0], actions)[:, 0], world.rollout(other[:, 0], actions)[:, 0])


def test_the_wall_is_that_of_frame_0_bit_for_bit_in_every_frame(drawn):
    batch, spec, bases = drawn(1, trajectories=3)
    encoder = scrambled(replace(SMALL, dropout=0.3)).encoder.train()
    encoded = BatchEncoder(encoder, spec, bases)(batch, new_clock(2))
    wall = encoded[..., 10:]
    assert torch.equal(wall, wall[:, :1].expand_as(wall))
    assert (wall[0, 0] - wall[1, 0]).abs().max() > 1e-3
    # Walls that come with every frame are looked at in frame 0 alone.
    changing = batch.walls[:, None].repeat(1, 3, 1, 1)
    changing[:, 1:] = 255 - changing[:, 1:]
    for mode in ("auto", "off"):
        again = BatchEncoder(encoder, spec, bases, mode)(batch._replace(walls=changing), new_clock(2))
        torch.testing.assert_close(again, encoded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_shortcuts_are_exact_with_the_wall_apart(drawn, dropout):
    batch, spec, bases = drawn(4)
    encoder = Encoder(16, 2, 32, dropout, wall="apart")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


@pytest.mark.parametrize("horizon", [None, 1, 3])
def test_only_predictions_teach_the_wall_branch(horizon):
    """The wall's branch gets its gradient through the predictor: one that does not look at walls gives it none."""
    world = scrambled()
    frames, actions = torch.rand(4, 4, 2, 13, 13).double(), torch.randn(4, 3, 2).double()
    config = EnergyConfig(sides="both", targets="stop_gradient", horizon=horizon)
    objective = choose_objective(world, config, fused=False)

    def gradients(weights):
        world.zero_grad()
        encoded = world.encoder(frames, world.dropout_clock)
        objective(encoded, actions, world.dropout_clock, weights, None)[0].total.backward()
        return {name: p.grad.abs().sum().item() for name, p in world.named_parameters() if p.grad is not None}

    assert min(gradients(WEIGHTS).values()) > 0
    assert set(gradients(WEIGHTS)) == {name for name, _ in world.named_parameters()}
    world.predictor.requires_grad_(False)
    with torch.no_grad():
        world.predictor.wall.weight.zero_()
    assert not any(size for name, size in gradients(WEIGHTS).items() if name.startswith("encoder.wall."))


def test_dropout_keeps_the_predictor_a_function_of_the_clock():
    predictor = scrambled(replace(SMALL, dropout=0.4)).predictor.train()
    first, actions = torch.randn(3, 20).double(), torch.randn(3, 4, 2).double()
    once, again = (predictor(first, actions, new_clock(7)) for _ in range(2))
    assert torch.equal(once, again)
    assert not torch.equal(once, predictor(first, actions, new_clock(8)))
    assert not torch.equal(once, predictor.eval()(first, actions, new_clock(7)))


@pytest.mark.parametrize(
    "change", [{"residual": "state"}, {"activation": "before_norm"}, {"bias": False}, {"history": 2}]
)
def test_settings_of_the_other_predictor_are_refused(change):
    with pytest.raises(InputError, match=rf"model\.{next(iter(change))}: got .*, with model\.wall 'apart'"):
        replace(SMALL, **change)


def test_configurations_from_before_there_was_a_choice_load_as_they_were(tmp_path):
    config = RunConfig(
        preset="old", recipe=Recipe(), seed=0, steps=1, batch_size=2, amp="off", compile=False, device="cpu",
        data="data", loader="auto", kernels="reference", exact_shortcuts=True,
    )  # fmt: skip
    config.save(tmp_path / "config.json")
    fields = json.loads((tmp_path / "config.json").read_text())
    del fields["recipe"]["model"]["wall"], fields["recipe"]["energy"]["horizon"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    assert RunConfig.load(tmp_path / "config.json") == config
    with pytest.raises(InputError, match=r"model\.wall: got 'beside'"):
        ModelConfig(wall="beside")

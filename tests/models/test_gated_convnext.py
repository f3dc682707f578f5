"""States that leave the wall out: the wall is carried, not predicted, and is learned through the gate alone."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import jepa_fast
from jepa_fast.backends import choose_kernels
from jepa_fast.config import GatedConvNeXtConfig, Recipe, RunConfig, VICRegConfig
from jepa_fast.data.host import gather
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.gated_convnext import GatedConvNeXt
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.registry import build_model
from jepa_fast.models.sparse_encoder import Rewrites, SparseEncoder
from jepa_fast.presets import preset
from tests.models.exactness import assert_equal_to_plain, images_of, stored_dense
from tests.models.numpy_jepa import branch_states
from tests.objective_terms import mixture
from tests.one_step_runs import configuration, run

SMALL = GatedConvNeXtConfig(channels=3, blocks=2, dim=10, frame=13, hidden=7)
HALF = 6  # pixels
CONFIGS = Path(__file__).parents[1] / "stored" / "configs.json"
WEIGHTS = torch.tensor([1.0, 0.5, 10.0, 0.1], dtype=torch.float64)


def scrambled(config=SMALL):
    """A float64 model with every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(0)
    model = GatedConvNeXt(config).double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        model.predictor.gate.mix[-1].bias.zero_()
        # Rooms of such weights would leave no line undecided, and a tanh at its end hides mistakes too.
        model.predictor.gate.shift.weight.div_(16)
    return model.eval()


def weights_under(model, prefix):
    return {k.removeprefix(prefix): v.numpy() for k, v in model.state_dict().items() if k.startswith(prefix)}


def moves(weight):
    """A [D, 2]: orthogonal columns whose length is that of half a frame."""
    x = weight[:, 0] / np.linalg.norm(weight[:, 0])
    y = weight[:, 1] - (x @ weight[:, 1]) * x
    return SMALL.spread * np.stack([x, y / np.linalg.norm(y)], axis=1)


def moving(state, wall, action, w):
    """How much of a move the dot makes in a rollout, from the formula."""
    w = {name.removeprefix("gate."): value for name, value in w.items()}
    position = HALF * state @ moves(w["action.weight"]) / SMALL.spread**2
    shift = w["shift.weight"] @ wall + w["lines.bias"]
    sides = [np.tanh(w["lines.weight"] @ place / 2 + shift) for place in (position, position + action)]
    x = np.concatenate([*sides, action])
    for layer in ("mix.0", "mix.2"):
        x = np.maximum(w[f"{layer}.weight"] @ x + w[f"{layer}.bias"], 0)
    logit = (w["mix.4.weight"] @ x + w["mix.4.bias"]).item()
    return 1 / (1 + np.exp(-logit / (1 + abs(logit) / 20)))


def test_a_rollout_equals_the_formulas_in_numpy():
    model = scrambled()
    frames, actions = torch.rand(2, 5, 2, 13, 13).double(), torch.randn(2, 4, 2).double()
    predicted, encoded = model(frames, actions)
    states = model.rollout(frames[:, 0], actions)
    agent, wall, weights = (weights_under(model, p) for p in ("encoder.agent.", "encoder.wall.", "predictor."))
    gates = []
    for b in range(2):
        targets = [branch_states(frame[0], agent) for frame in frames[b].numpy()]
        carried = branch_states(frames[b, 0, 1].numpy(), wall)
        np.testing.assert_allclose(encoded[b].detach(), targets[1:], rtol=1e-10, atol=1e-10)
        expected = [targets[0]]
        for action in actions[b].numpy():
            gates.append(moving(expected[-1], carried, action, weights))
            expected.append(expected[-1] + gates[-1] * moves(weights["action.weight"]) @ action / HALF)
        np.testing.assert_allclose(states[b].detach(), expected, rtol=1e-10, atol=1e-10)
        np.testing.assert_allclose(predicted[b].detach(), expected[1:], rtol=1e-10, atol=1e-10)
    assert max(gates) - min(gates) > 0.02


def test_untrained_the_gate_is_the_same_everywhere_and_mostly_open():
    model = GatedConvNeXt(SMALL).double()
    frames, actions = torch.rand(4, 5, 2, 13, 13).double(), torch.randn(4, 5, 2).double()
    log_move = model.transition(model.encode(frames), actions).log_move
    torch.testing.assert_close(log_move, log_move[:1, :1].expand_as(log_move), rtol=0, atol=0)
    assert 0.79 < log_move[0, 0].exp() < 0.81


def test_the_preset_has_the_default_encoder_without_the_norms_before_a_sum():
    model = build_model(preset("wall_apart").model)
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in model.named_children()}
    default = build_jepa().encoder
    norms = sum(p.numel() for branch in (default.agent, default.wall) for p in branch.norm.parameters())
    assert sizes == {
        "encoder": sum(p.numel() for p in default.parameters()) - norms,
        "predictor": 98_817,
        "objective": 0,
    }
    assert sum(sizes.values()) == 258_017


def test_states_say_nothing_of_the_wall_and_predictions_do():
    model = scrambled()
    frames, actions = torch.rand(2, 3, 2, 13, 13).double(), torch.randn(2, 2, 2).double()
    other = frames.clone()
    other[:, :, 1] = torch.rand_like(other[:, :, 1])
    (predicted, encoded), (moved, same) = model(frames, actions), model(other, actions)
    assert torch.equal(encoded, same)
    assert (predicted - moved).abs().amax(dim=(1, 2)).min() > 1e-3
    assert torch.equal(model.rollout(frames[:, 0], actions)[:, 0], model.rollout(other[:, 0], actions)[:, 0])


def test_the_wall_is_that_of_frame_0_bit_for_bit_in_every_frame(drawn):
    batch, spec, bases = drawn(1, trajectories=3)
    encoder = Encoder(3, 2, 10, 0.3, apart="wall").double().train()
    encoded = SparseEncoder(encoder, spec, bases)(batch, new_clock(2))
    wall = encoded[..., 10:]
    assert torch.equal(wall, wall[:, :1].expand_as(wall))
    assert (wall[0, 0] - wall[1, 0]).abs().max() > 1e-3
    # Walls that come with every frame are looked at in frame 0 alone.
    changing = images_of(batch, spec, "wall").clone()
    changing[:, 1:] = 255 - changing[:, 1:]
    batch, spec = stored_dense(batch, spec, "wall", changing)
    for mode in ("auto", "off"):
        again = SparseEncoder(encoder, spec, bases, mode)(batch, new_clock(2))
        torch.testing.assert_close(again, encoded, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_shortcuts_are_exact_with_the_wall_apart(drawn, dropout):
    batch, spec, bases = drawn(4)
    encoder = Encoder(16, 2, 32, dropout, norm_before_add=False, apart="wall")
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


def test_batches_and_frames_are_encoded_alike(two_rooms):
    split = open_split(two_rooms / "probe_wall" / "val")
    batch = gather(split, np.arange(0, split.count, 10))
    model = scrambled(replace(SMALL, frame=65))
    with torch.no_grad():
        shortcut, plain = (model.batch_encoder(split.spec, (), mode)(batch, new_clock()) for mode in ("auto", "off"))
    torch.testing.assert_close(shortcut.latents, plain.latents, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(shortcut.room, plain.room, rtol=1e-9, atol=1e-9)


def test_only_the_gate_teaches_the_wall_branch():
    """The wall's branch gets its gradient through the gate: one that does not look at walls gives it none."""
    model = scrambled()
    frames, actions = torch.rand(4, 4, 2, 13, 13).double(), torch.randn(4, 3, 2).double()
    objective = mixture(model)

    def gradients():
        model.zero_grad()
        encoded = model.encode(frames)
        objective(encoded, actions, WEIGHTS)[0].total.backward()
        return {name: p.grad.abs().sum().item() for name, p in model.named_parameters() if p.grad is not None}

    assert set(gradients()) == {name for name, _ in model.named_parameters()}
    assert min(gradients().values()) > 0
    with torch.no_grad():
        model.predictor.gate.shift.weight.zero_()
    assert not any(size for name, size in gradients().items() if name.startswith("encoder.wall."))


def test_the_loss_holds_the_plane_of_states_at_the_centre():
    model = scrambled()
    frames, actions = torch.rand(4, 4, 2, 13, 13).double(), torch.randn(4, 3, 2).double()
    encoded = model.encode(frames)
    objective = mixture(model)
    terms = objective(encoded, actions, WEIGHTS)[0]
    weighted = WEIGHTS[0] * terms.nll + WEIGHTS[2] * terms.variance + WEIGHTS[3] * terms.covariance
    columns = moves(model.predictor.action.weight.detach().numpy())
    positions = encoded.latents.detach().numpy() @ columns / SMALL.spread**2
    off_centre = np.square(positions.mean(axis=(0, 1))).sum()
    assert off_centre > 1e-4
    np.testing.assert_allclose((terms.total - weighted).item(), 0.1 * off_centre, rtol=1e-8)


def test_states_that_come_close_to_one_another_have_collapsed_and_states_of_rank_two_have_not():
    recipe = preset("wall_apart")
    assert recipe.model.is_collapsed([0.001] * 128, 10.0, 2.0)
    assert not recipe.model.is_collapsed([1.0] * 128, 10.0, 1.9)


def test_states_follow_the_dot_while_the_gate_stands_still(tmp_path, walks):
    """In the first stage one A a comes to explain the steps of dots wherever they are."""
    recipe = preset("wall_apart")
    assert recipe.stages[0].frozen == ("encoder.wall", "predictor.gate")
    kernels = choose_kernels("auto", "cpu")
    first_stage = replace(recipe, stages=recipe.stages[:1])
    config = configuration("wall_apart", walks, recipe=first_stage, steps=140, kernels=kernels)
    torch.manual_seed(config.seed)
    fresh = build_model(recipe.model)
    trained = jepa_fast.load(run(tmp_path / "run", config))
    assert all(map(torch.equal, fresh.predictor.gate.parameters(), trained.predictor.gate.parameters()))
    split = open_split(walks / "probe_normal" / "val")
    batch = gather(split, np.arange(40))

    @torch.no_grad()
    def agreement(model):
        """The cosine between what a state changes by and A a, of the median step: most are not blocked."""
        states = model.batch_encoder(split.spec)(batch, new_clock()).latents
        return torch.cosine_similarity(states.diff(dim=1), model.lift(batch.actions), dim=-1).median()

    assert agreement(fresh) < 0.2
    assert agreement(trained) > 0.7


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"hidden": 0}, r"model\.hidden: got 0"),
        ({"dim": 1}, r"model\.dim: got 1, expected from 2 to 1,048,576"),
        ({"spread": 0.0}, r"model\.spread: got 0\.0"),
        ({"kind": "beside"}, r"model\.kind: got 'beside'"),
    ],
)
def test_settings_out_of_range_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        GatedConvNeXtConfig(**setting)


def test_the_model_goes_with_its_energy_alone():
    with pytest.raises(InputError, match=r"objective\.kind: got 'vicreg', expected mixture, which"):
        Recipe(model=GatedConvNeXtConfig(), objective=VICRegConfig())


def test_a_configuration_is_stored_and_read_back(tmp_path):
    config = configuration("wall_apart", tmp_path)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config


def test_configurations_of_when_the_wall_was_a_setting_load_as_they_were(tmp_path):
    fields = json.loads(CONFIGS.read_text())["explorejepa_repo"]
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = RunConfig.load(tmp_path / "config.json")
    del fields["recipe"]["energy"]["horizon"]
    for wall in ("added", "apart"):
        fields["recipe"]["model"]["wall"] = wall
        (tmp_path / "config.json").write_text(json.dumps(fields))
        if wall == "added":
            assert RunConfig.load(tmp_path / "config.json") == config
        else:
            with pytest.raises(InputError, match=r"not a run configuration .*model\.wall: got 'apart'"):
                RunConfig.load(tmp_path / "config.json")

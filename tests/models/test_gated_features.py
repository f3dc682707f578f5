"""The model on features: what it may know, what it computes, that it learns."""

import pytest
import torch
import torch.nn.functional as F
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from jepa_fast.config import GatedFeaturesConfig
from jepa_fast.data.batches import expand_frames
from jepa_fast.kernels import feature_gate
from jepa_fast.kernels.gated import mixture_nll
from jepa_fast.models.gated import SUREST
from jepa_fast.models.gated_features import GatedFeatures
from jepa_fast.presets import preset
from tests.models.exactness import stored_dense

SMALL = GatedFeaturesConfig(dim=16, border_hidden=8, wall_hidden=12)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return GatedFeatures(SMALL)


def scenes(count=200):
    """Positions [N, 2], layouts [N, 2, 2, 2] and actions [N, 2] at random, in the unit of positions."""
    generator = torch.Generator().manual_seed(1)

    def draw(low, high, *shape):
        return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

    middle = draw(-0.4, 0.4, count, 1, 2)
    wall = torch.stack([middle - 0.05, middle + 0.05], dim=-1)
    borders = torch.tensor([-0.9, 0.9], dtype=torch.float64).expand(count, 1, 2, 2)
    positions = middle[:, 0] + draw(-0.2, 0.2, count, 2)
    return positions, torch.cat([borders, wall], dim=1), draw(-0.1, 0.1, count, 2)


def test_parameters_stay_below_twenty_thousand_and_all_are_trained():
    model = GatedFeatures(preset("features20k").model)
    assert sum(parameter.numel() for parameter in model.parameters()) < 20_000
    assert all(parameter.requires_grad for parameter in model.parameters())
    # Nothing fixed and random is kept beside them.
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_a_batch_is_encoded_as_its_frames_are(model, batch_and_spec):
    batch, spec = batch_and_spec
    encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
    frames = expand_frames(batch, spec)
    predicted, following = model(frames, batch.actions)
    torch.testing.assert_close(encoded.latents[:, 1:], following, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.rollout(frames[:, 0], batch.actions)[:, 1:], predicted, rtol=0, atol=1e-5)
    for number, name in enumerate(("agent", "wall")):
        batch, spec = stored_dense(batch, spec, name, frames[:, :, number : number + 1])
    found = model.batch_encoder(spec)(batch, model.dropout_clock)
    torch.testing.assert_close(tuple(found), tuple(encoded), rtol=0, atol=1e-5)


def test_states_stand_for_positions_and_are_spread_as_asked(model):
    positions = torch.randn(5, 7, 2)
    states = model.encoder(positions)
    torch.testing.assert_close(model.encoder.positions(states), positions)
    torch.testing.assert_close(states.norm(dim=-1), SMALL.spread * positions.norm(dim=-1))


@pytest.mark.parametrize("change", ["mirror x", "mirror y", "shift", "enlarge"])
def test_gates_see_relations_alone(change):
    """Mirrored, shifted and enlarged scenes give the same gates: nothing is known of where or how large things are."""
    torch.manual_seed(0)
    predictor = GatedFeatures(SMALL).double().predictor
    positions, layout, actions = scenes()
    if change.startswith("mirror"):
        signs = torch.tensor([-1.0, 1.0] if change.endswith("x") else [1.0, -1.0], dtype=torch.float64)
        moved = signs[:, None] * layout
        layout_after = torch.where(signs[:, None] < 0, moved.flip(-1), moved)
        after = signs * positions, layout_after, signs * actions
    elif change == "shift":
        offset = torch.tensor([0.3, -0.7], dtype=torch.float64)
        after = positions + offset, layout + offset[:, None], actions
    else:
        after = 3 * positions, 3 * layout, 3 * actions
    states = torch.zeros(len(positions), 16, dtype=torch.float64)
    before = predictor.step(states, positions, layout, actions).log_move
    torch.testing.assert_close(predictor.step(states, *after).log_move, before)
    assert before.std() > 0.01


def test_the_predictor_reads_where_lines_are(model):
    """Each line that is read from pixels changes what an untrained predictor thinks of some step."""
    predictor = model.double().predictor
    positions, layout, actions = scenes()
    states = torch.zeros(len(positions), 16, dtype=torch.float64)
    before = predictor.step(states, positions, layout, actions).log_move
    for kind in range(2):
        for axis in range(2):
            for side in range(2):
                moved = layout.clone()
                # Closer to the dot, where it is told apart.
                moved[:, kind, axis, side] = positions[:, axis] + 0.02
                assert (predictor.step(states, positions, moved, actions).log_move - before).abs().max() > 1e-4


def test_chances_of_staying_and_of_moving_are_those_of_independent_gates(monkeypatch):
    torch.manual_seed(0)
    predictor = GatedFeatures(SMALL).double().predictor
    positions, layout, actions = scenes()
    states = torch.zeros(len(positions), 16, dtype=torch.float64)
    for scale in (1.0, 10.0):
        with torch.no_grad():
            predictor.wall[-1].weight *= scale
        outcome = predictor.step(states, positions, layout, actions)
        torch.testing.assert_close(outcome.log_stay.exp() + outcome.log_move.exp(), torch.ones_like(outcome.log_stay))
    seen = []
    monkeypatch.setattr(feature_gate.F, "logsigmoid", lambda x: seen.append(x) or torch.log(x.sigmoid()))
    arguments = positions, layout, actions, predictor.gate_weights(), predictor.reach
    feature_gate.feature_gate_reference(*arguments, float("inf"))
    logits = seen.pop()
    monkeypatch.undo()
    assert logits.shape == (len(positions), 4)
    assert logits.abs().max() > 5
    log_move = predictor.step(states, positions, layout, actions).log_move
    torch.testing.assert_close(log_move.exp(), (logits / (1 + logits.abs() / SUREST)).sigmoid().prod(dim=1))


def test_standing_still_is_a_step_like_any_other(model):
    positions, layout, _ = (value.float() for value in scenes(8))
    outcome = model.predictor.step(model.encoder(positions), positions, layout, torch.zeros(8, 2))
    assert torch.equal(outcome.mean, outcome.stayed)
    assert outcome.log_move.isfinite().all()


def test_the_nll_is_that_of_a_mixture_of_gaussians():
    generator = torch.Generator().manual_seed(2)

    def draw(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

    stayed, step, following, logit = draw(9, 5), draw(9, 5), draw(9, 5), draw(9)
    sigma = torch.tensor(0.7, dtype=torch.float64)
    log_stay, log_move = F.logsigmoid(-logit).detach(), F.logsigmoid(logit).detach()
    keep = log_move.exp()
    ours = mixture_nll(stayed, step, log_stay, log_move, following, sigma)
    outcomes = Independent(Normal(torch.stack([stayed, stayed + step], dim=1), sigma), 1)
    mixture = MixtureSameFamily(Categorical(torch.stack([1 - keep, keep], dim=1)), outcomes)
    constant = 5 * torch.log(sigma * (2 * torch.pi) ** 0.5)
    torch.testing.assert_close(ours, -mixture.log_prob(following) - constant, rtol=1e-5, atol=1e-5)
    assert torch.autograd.gradcheck(
        lambda *inputs: mixture_nll(*inputs, sigma),
        (stayed, step, log_stay.requires_grad_(), log_move.requires_grad_(), following),
    )


@pytest.mark.parametrize("logit", [-60.0, 0.0, 60.0])
def test_a_gate_that_is_sure_and_wrong_feels_it(logit):
    gate = torch.full((3,), logit, requires_grad=True)
    following = torch.stack([torch.zeros(4), torch.ones(4), torch.full((4,), 1e3)])
    chances = F.logsigmoid(-gate), F.logsigmoid(gate)
    nll = mixture_nll(torch.zeros(3, 4), torch.ones(3, 4), *chances, following, torch.tensor(0.1))
    (gradient,) = torch.autograd.grad(nll.sum(), gate)
    # Stayed, moved, neither. Being wrong costs the logit, and its gradient is 1 where the gate is sure.
    expected = [max(logit, 0.0), max(-logit, 0.0)] if logit else [0.693, 0.693]
    assert nll[:2].tolist() == pytest.approx(expected, abs=1e-3)
    slopes = {-60.0: [0, -1], 0.0: [0.5, -0.5], 60.0: [1, 0]}[logit]
    assert gradient[:2].tolist() == pytest.approx(slopes, abs=1e-3)
    assert nll.isfinite().all()
    assert gradient.isfinite().all()

"""Spatial latents and the predictor that convolves them."""

import pytest
import torch

import jepa_fast as jf
from jepa_fast.config import Group, JEPAConfig
from jepa_fast.errors import InputError
from jepa_fast.kernels.dropout import new_clock
from jepa_fast.models.convnext import POOLED_SIDE
from jepa_fast.models.jepa import build_jepa

CONFIG = JEPAConfig(
    channels=8, dim=144, head="spatial", predictor="conv", dropout=0.0, groups=(Group("rgb", 3),), action_size=5,
    stride=4,
)  # fmt: skip


def test_a_latent_is_a_map_of_cells_and_each_cell_sees_its_part_of_the_frame():
    torch.manual_seed(0)
    model = build_jepa(CONFIG).eval()
    assert model.latent_shape == (4, POOLED_SIDE, POOLED_SIDE)
    frames = torch.rand(2, 1, 3, 96, 96)
    maps = model.maps(model.encode(frames))
    assert maps.shape == (2, 1, 4, 6, 6)
    changed = frames.clone()
    changed[..., :4, :4] += 1
    moved = (model.maps(model.encode(changed)) - maps).abs().amax(dim=(0, 1, 2)) > 1e-7
    # Two blocks of 7 x 7 reach six cells of four pixels: two cells of the map, 16 pixels each.
    assert moved[0, 0]
    assert not moved[3:].any()
    assert not moved[:, 3:].any()


def test_a_convolved_rollout_is_its_formula_and_feeds_itself_back():
    torch.manual_seed(0)
    predictor = jf.ConvPredictor((4, 6, 6), action_dim=5).double()
    first, actions = torch.randn(3, 144).double(), torch.randn(3, 2, 5).double()
    state, expected = first.view(3, 4, 6, 6), []
    for action in actions.unbind(1):
        normed = torch.nn.functional.layer_norm(state.permute(0, 2, 3, 1), (4,)).permute(0, 3, 1, 2)
        moved = normed + torch.nn.functional.layer_norm(predictor.action(action), (4,))[:, :, None, None]
        hidden = torch.nn.functional.layer_norm(predictor.expand(moved).permute(0, 2, 3, 1), (16,))
        update = torch.nn.functional.gelu(hidden) @ predictor.project.weight.T + predictor.project.bias
        state = normed + update.permute(0, 3, 1, 2)
        expected.append(state.flatten(1))
    predicted = predictor(first, actions, new_clock())
    torch.testing.assert_close(predicted, torch.stack(expected, dim=1), rtol=1e-10, atol=1e-10)


def test_every_parameter_gets_a_gradient():
    model = build_jepa(CONFIG)
    predicted, encoded = model(torch.rand(2, 3, 3, 40, 56), torch.randn(2, 2, 5))
    (predicted * torch.randn_like(predicted) + encoded).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


def test_dropout_is_that_of_the_clock():
    predictor = jf.ConvPredictor((2, 3, 5), action_dim=1, dropout=0.5)
    first, actions = torch.randn(2, 30), torch.randn(2, 3, 1)
    once, again, later = (predictor(first, actions, new_clock(seed)) for seed in (1, 1, 2))
    assert torch.equal(once, again)
    assert not torch.equal(once, later)
    predictor.eval()
    assert torch.equal(predictor(first, actions, new_clock(1)), predictor(first, actions, new_clock(2)))


def test_an_encoder_of_one_s_own_that_gives_maps_goes_with_it():
    model = jf.JEPA(torch.nn.Conv2d(3, 4, 8, stride=8), jf.ConvPredictor((4, 4, 6), action_dim=7))
    latents = model.rollout(torch.rand(2, 3, 32, 48), torch.randn(2, 5, 7))
    assert model.maps(latents).shape == (2, 6, 4, 4, 6)


def test_vectors_are_no_maps_and_sizes_are_checked():
    model = build_jepa(JEPAConfig(channels=8, dim=16))
    with pytest.raises(ValueError, match="latents: got vectors, expected maps"):
        model.maps(torch.zeros(2, 3, 16))
    predictor = jf.ConvPredictor((4, 6, 6), action_dim=5)
    with pytest.raises(ValueError, match="latents: got 12 numbers, expected the predictor's dim, 144"):
        predictor(torch.zeros(2, 12), torch.zeros(2, 3, 5), new_clock())
    with pytest.raises(ValueError, match="actions: got 4 numbers, expected action_dim, 5"):
        predictor(torch.zeros(2, 144), torch.zeros(2, 3, 4), new_clock())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"head": "spatial"}, r"model\.dim: got 128, expected a multiple of 36"),
        ({"predictor": "conv"}, r"model\.predictor: got 'conv', expected 'mlp': 'conv' predicts maps"),
        (
            {"head": "spatial", "dim": 144, "predictor": "conv", "history": 2},
            r"model\.predictor: got 'conv', expected 'mlp' with history",
        ),
    ],
)
def test_impossible_maps_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JEPAConfig(**settings)

"""Models that differ from the default one in one thing: that this is what they differ in."""

import pytest
import torch

from jepa_fast.config import ModelConfig
from jepa_fast.model.encoder import Encoder
from jepa_fast.model.shortcuts import Rewrites
from jepa_fast.model.world import World
from jepa_fast.presets import preset
from tests.model.exactness import assert_equal_to_plain


def scramble(module):
    """Every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def test_the_larger_model_has_twice_the_blocks_and_twice_the_channels_and_states_as_long():
    default, larger = World(), World(preset("larger").model)
    for name in ("agent", "wall"):
        ours, theirs = getattr(larger.encoder, name), getattr(default.encoder, name)
        assert len(ours.blocks) == 2 * len(theirs.blocks)
        assert ours.stem.out_channels == 2 * theirs.stem.out_channels
    shapes = [[p.shape for p in world.predictor.parameters()] for world in (larger, default)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in larger.parameters()) == 507_968


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_without_biases_no_input_gives_the_state_zero(kernels):
    world = scramble(World(preset("no_bias").model, kernels)).eval()
    assert not [name for name, _ in world.named_parameters() if name.endswith("bias")]
    empty = torch.zeros(3, 2, 65, 65), torch.zeros(3, 5, 2)
    assert torch.equal(world.rollout(*empty), torch.zeros(3, 6, 128))
    # With biases it does not; and one pixel is input.
    assert scramble(World()).eval().rollout(*empty).abs().amax(dim=(0, 2)).min() > 0.1
    empty[0][:, :, 30, 30] = 0.09
    assert world.rollout(*empty).abs().amax(dim=(0, 2)).min() > 0.1


def test_without_biases_training_sees_zero_as_well():
    world = scramble(World(ModelConfig(channels=4, blocks=1, dim=8, bias=False)))
    predicted, encoded = world(torch.zeros(2, 4, 2, 20, 20), torch.zeros(2, 3, 2))
    assert torch.equal(predicted, torch.zeros_like(predicted))
    assert torch.equal(encoded, torch.zeros_like(encoded))


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_shortcuts_are_exact_without_biases(drawn, kernels):
    batch, spec, bases = drawn(2)
    encoder = scramble(Encoder(16, 2, 32, 0.1, kernels, bias=False))
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


def test_the_fused_rollout_is_the_plain_one_without_biases():
    config = ModelConfig(channels=2, blocks=1, dim=16, dropout=0.3, bias=False)
    plain, fused = (World(config, kernels).double() for kernels in ("reference", "triton"))
    fused.load_state_dict(scramble(plain).state_dict())
    first, actions = torch.randn(3, 16).double(), torch.randn(3, 4, 2).double()
    gradients = []
    for world in (plain, fused):
        states = world.predictor(first, actions, world.dropout_clock)
        states.square().sum().backward()
        gradients.append([states.detach(), *(p.grad for p in world.predictor.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)

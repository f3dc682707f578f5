"""Models that differ from the default one in one thing: that this is what they differ in."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from jepa_fast.config import JEPAConfig, read_model_config
from jepa_fast.errors import InputError
from jepa_fast.models.convnext import Encoder
from jepa_fast.models.jepa import build_jepa
from jepa_fast.models.sparse_encoder import Rewrites
from jepa_fast.presets import preset
from tests.models.exactness import assert_equal_to_plain


def scramble(module):
    """Every parameter random, so that no default of ones or zeros hides a mistake."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def test_the_larger_model_has_twice_the_blocks_and_twice_the_channels_and_states_as_long():
    default, larger = build_jepa(), build_jepa(preset("larger").model)
    for name in ("agent", "wall"):
        ours, theirs = getattr(larger.encoder, name), getattr(default.encoder, name)
        assert len(ours.blocks) == 2 * len(theirs.blocks)
        assert ours.stem.out_channels == 2 * theirs.stem.out_channels
    shapes = [[p.shape for p in model.predictor.parameters()] for model in (larger, default)]
    assert shapes[0] == shapes[1]
    assert sum(p.numel() for p in larger.parameters()) == 507_968


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_without_biases_no_input_gives_the_state_zero(kernels):
    model = scramble(build_jepa(preset("no_bias").model, kernels=kernels)).eval()
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    empty = torch.zeros(3, 2, 65, 65), torch.zeros(3, 5, 2)
    assert torch.equal(model.rollout(*empty), torch.zeros(3, 6, 128))
    # With biases it does not; and one pixel is input.
    assert scramble(build_jepa()).eval().rollout(*empty).abs().amax(dim=(0, 2)).min() > 0.1
    empty[0][:, :, 30, 30] = 0.09
    assert model.rollout(*empty).abs().amax(dim=(0, 2)).min() > 0.1


def test_without_biases_training_sees_zero_as_well():
    model = scramble(build_jepa(JEPAConfig(channels=4, blocks=1, dim=8, bias=False)))
    predicted, encoded = model(torch.zeros(2, 4, 2, 20, 20), torch.zeros(2, 3, 2))
    assert torch.equal(predicted, torch.zeros_like(predicted))
    assert torch.equal(encoded, torch.zeros_like(encoded))


@pytest.mark.parametrize("kernels", ["reference", "triton"])
def test_shortcuts_are_exact_without_biases(drawn, kernels):
    batch, spec, bases = drawn(2)
    encoder = scramble(Encoder(16, 2, 32, 0.1, kernels, bias=False))
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


def test_the_fused_rollout_is_the_plain_one_without_biases():
    config = JEPAConfig(channels=2, blocks=1, dim=16, dropout=0.3, bias=False)
    plain, fused = (build_jepa(config, kernels=kernels).double() for kernels in ("reference", "triton"))
    fused.load_state_dict(scramble(plain).state_dict())
    first, actions = torch.randn(3, 16).double(), torch.randn(3, 4, 2).double()
    gradients = []
    for model in (plain, fused):
        states = model.predictor(first, actions, model.dropout_clock)
        states.square().sum().backward()
        gradients.append([states.detach(), *(p.grad for p in model.predictor.parameters())])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_without_norms_before_adding_a_state_is_the_sum_of_what_the_branches_linear_layers_give():
    config = replace(preset("no_norm_before_add").model, channels=4, dim=8)
    model = scramble(build_jepa(config)).eval()
    assert not [name for name, _ in model.encoder.named_parameters() if name.startswith(("agent.norm", "wall.norm"))]
    heads = []
    for branch in (model.encoder.agent, model.encoder.wall):
        branch.fc.register_forward_hook(lambda _, __, out: heads.append(out))
    frames = torch.rand(2, 3, 2, 20, 20)
    states = model.encoder(frames, model.dropout_clock)
    assert torch.equal(states.flatten(0, 1), heads[0] + heads[1])
    # With norms, how bright the walls are hardly matters.
    frames[:, :, 1] *= 1e3
    assert (model.encoder(frames, model.dropout_clock) - states).abs().max() > 10
    normed = scramble(build_jepa(replace(config, norm_before_add=True))).eval()
    assert normed.encoder(frames, normed.dropout_clock).abs().max() < 10


def test_shortcuts_are_exact_without_norms_before_adding(drawn):
    batch, spec, bases = drawn(3)
    encoder = scramble(Encoder(16, 2, 32, 0.1, norm_before_add=False))
    assert_equal_to_plain(encoder, batch, spec, bases, Rewrites())


def test_a_norm_after_adding_is_of_the_sum_alone(drawn):
    config = replace(preset("norm_after_add").model, channels=4, dim=8)
    model, bare = scramble(build_jepa(config)).eval(), build_jepa(replace(config, norm_after_add=False)).eval()
    weights = model.state_dict()
    assert set(weights) - set(bare.state_dict()) == {"encoder.norm.weight", "encoder.norm.bias"}
    bare.load_state_dict({name: weights[name] for name in bare.state_dict()})
    frames = torch.rand(2, 3, 2, 20, 20)
    summed = bare.encoder(frames, bare.dropout_clock)
    expected = F.layer_norm(summed, (8,), weights["encoder.norm.weight"], weights["encoder.norm.bias"])
    assert torch.equal(model.encoder(frames, model.dropout_clock), expected)
    batch, spec, bases = drawn(3)
    assert_equal_to_plain(scramble(build_jepa(config)).encoder, batch, spec, bases, Rewrites())


DENSE = JEPAConfig(channels=2, blocks=1, dim=6, dropout=0.3, history=3, history_decay=0.5)


def test_a_history_of_none_is_the_baseline_to_the_bit():
    torch.manual_seed(0)
    plain = build_jepa()
    torch.manual_seed(0)
    dense = build_jepa(replace(preset("dense_predictor").model, history=0))
    frames, actions = torch.rand(2, 4, 2, 65, 65), torch.randn(2, 3, 2)
    results = []
    for model in (plain, dense):
        predicted, encoded = model(frames, actions)
        (predicted - encoded).square().sum().backward()
        results.append([*model.parameters(), predicted, *(p.grad for p in model.parameters())])
    assert list(plain.state_dict()) == list(dense.state_dict())
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_the_predictor_reads_its_last_states_each_weighed_by_its_age():
    model = scramble(build_jepa(DENSE)).double().eval()
    p, first, actions = model.predictor, torch.randn(4, 6).double(), torch.randn(4, 6, 2).double()
    states = [first]
    for t in range(6):
        normed = [F.layer_norm(state, (6,), p.state_norm.weight, p.state_norm.bias) for state in reversed(states)]
        fused = normed[0] + p.action_norm(p.action(actions[:, t]))
        past = [0.5, 0.25, 0.125]
        seen = [weight * state for weight, state in zip(past, normed[1:], strict=False)]
        # Before the encoding that it starts from there is nothing.
        seen += [torch.zeros_like(first)] * (3 - len(seen))
        hidden = F.gelu(p.norm(p.expand(torch.cat([fused, *seen], dim=1))))
        states.append(fused + p.project(hidden))
    rolled = model.unroll(first[:, None], actions)
    torch.testing.assert_close(rolled, torch.stack(states, dim=1), rtol=1e-12, atol=1e-12)


def test_the_first_dense_prediction_is_that_of_a_predictor_without_history():
    model, plain = scramble(build_jepa(DENSE)).eval(), build_jepa(replace(DENSE, history=0)).eval()
    weights = model.predictor.state_dict()
    plain.predictor.load_state_dict(weights | {"expand.weight": weights["expand.weight"][:, :6]})
    first, actions = torch.randn(3, 6), torch.randn(3, 2, 2)
    ours, theirs = (each.unroll(first[:, None], actions) for each in (model, plain))
    torch.testing.assert_close(ours[:, 1], theirs[:, 1])
    assert (ours[:, 2] - theirs[:, 2]).abs().max() > 1e-3


def test_kernels_leave_a_dense_predictor_to_plain_pytorch():
    plain, asked = (build_jepa(DENSE, kernels=kernels) for kernels in ("reference", "triton"))
    asked.load_state_dict(plain.state_dict())
    first, actions = torch.randn(3, 6), torch.randn(3, 5, 2)
    ours, theirs = (model.predictor(first, actions, model.dropout_clock) for model in (asked, plain))
    assert torch.equal(ours, theirs)


def test_a_configuration_stored_before_there_were_variants_is_of_the_default_model():
    stored = {"channels": 16, "blocks": 2, "dim": 128, "dropout": 0.1, "residual": "sum", "activation": "after_norm"}
    assert read_model_config(stored) == JEPAConfig()
    # Names and shapes of its weights, as a run folder of then holds them.
    names = [name for name, _ in build_jepa(read_model_config(stored)).named_parameters()]
    branch = ["stem.weight"]
    for block in range(2):
        layers = ("dwconv.weight", "norm.weight", "norm.bias", "expand.weight", "project.weight")
        branch += [f"blocks.{block}.{layer}" for layer in layers]
    branch += ["fc.weight", "fc.bias", "norm.weight", "norm.bias"]
    layers = ("state_norm", "action", "action_norm", "expand", "norm", "project")
    assert names == [
        *(f"encoder.{which}.{name}" for which in ("agent", "wall") for name in branch),
        *(f"predictor.{layer}.{kind}" for layer in layers for kind in ("weight", "bias")),
    ]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"history": -1}, r"model\.history: got -1, expected from 0 to 1,048,576"),
        ({"history_decay": 0.0}, r"model\.history_decay: got 0\.0, expected a factor in \(0, 1\]"),
    ],
)
def test_variants_that_make_no_sense_are_refused(settings, message):
    with pytest.raises(InputError, match=message):
        JEPAConfig(**settings)

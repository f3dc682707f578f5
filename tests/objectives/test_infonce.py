"""The contrastive energy: its definition, its gradients, what it says of collapsed and of perfect states."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from jepa_fast.config import InfoNCEConfig, JEPAConfig, Recipe, RunConfig, Stage
from jepa_fast.engine.loop import train
from jepa_fast.engine.record import read_metrics, read_spectra
from jepa_fast.errors import InputError
from jepa_fast.presets import preset
from jepa_fast.runs import create_run
from tests.objective_terms import contrast

WEIGHTS = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64)


def draw(batch=5, steps=4, dim=3, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, steps, dim, generator=generator, dtype=torch.float64) for _ in range(2))


def reference(predicted, encoded, temperature):
    """The definition in NumPy, one prediction at a time: mean surprise, and the share that is found."""
    predicted, encoded = predicted.detach().numpy(), encoded.detach().numpy()
    batch, steps, _ = predicted.shape
    surprises, found = [], []
    for b in range(batch):
        for t in range(steps):
            others = [(i, t) for i in range(batch) if i != b]
            far = np.array([((predicted[b, t] - encoded[i]) ** 2).mean() for i in [(b, t), *others]])
            surprises.append(far[0] / temperature + np.log(np.exp(-far / temperature).sum()))
            found.append((far[1:] > far[0]).all())
    return np.mean(surprises), np.mean(found)


@pytest.mark.parametrize("shape", [(5, 4, 3), (2, 1, 1), (1, 3, 2), (1, 1, 2), (7, 16, 32)])
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_terms_are_those_of_the_definition(shape, temperature):
    predicted, encoded = draw(*shape)
    predicted = (encoded + 0.8 * predicted).transpose(0, 1).contiguous().transpose(0, 1)
    terms = contrast(predicted, encoded, WEIGHTS, InfoNCEConfig(temperature=temperature))
    surprise, found = reference(predicted, encoded, temperature)
    assert terms.contrast.item() == pytest.approx(surprise, rel=1e-12, abs=1e-12)
    assert terms.top1.item() == pytest.approx(found)
    assert terms.invariance.item() == pytest.approx(((predicted - encoded) ** 2).mean().item())
    assert terms.total.item() == 2 * terms.contrast.item()


def test_gradients_go_to_both_sides_and_are_those_of_finite_differences():
    predicted, encoded = (side.requires_grad_() for side in draw())
    config = InfoNCEConfig(temperature=0.7)
    torch.autograd.gradcheck(lambda *sides: contrast(*sides, WEIGHTS, config).contrast, (predicted, encoded))


def test_a_tiny_case_is_the_cross_entropy_worked_out_by_hand():
    """Two trajectories of one step: squared distances 1 and 9 to own encodings, 4 both ways across."""
    predicted = torch.tensor([[[0.0]], [[3.0]]], dtype=torch.float64)
    encoded = torch.tensor([[[1.0]], [[6.0]]], dtype=torch.float64)
    by_hand = (
        -math.log(1 / (1 + math.exp(-35 / 2))) - math.log(math.exp(-9 / 2) / (math.exp(-9 / 2) + math.exp(-2)))
    ) / 2
    terms = contrast(predicted, encoded, WEIGHTS, InfoNCEConfig(temperature=2.0))
    assert terms.contrast.item() == pytest.approx(by_hand, rel=1e-12)
    logits = -torch.tensor([[1.0, 36.0], [4.0, 9.0]], dtype=torch.float64) / 2
    assert terms.contrast.item() == pytest.approx(F.cross_entropy(logits, torch.arange(2)).item(), rel=1e-12)
    assert terms.top1.item() == 0.5


def test_collapsed_states_sit_at_the_logarithm_of_the_number_of_candidates():
    state = torch.randn(8, generator=torch.Generator().manual_seed(0))
    collapsed = state.expand(6, 5, 8)
    terms = contrast(collapsed, collapsed, WEIGHTS.float(), InfoNCEConfig())
    assert terms.contrast.item() == pytest.approx(math.log(6), rel=1e-6)
    assert terms.top1 == 0


def test_predictions_that_are_far_from_all_other_encodings_cost_nothing():
    encoded = 10 * draw()[1]
    terms = contrast(encoded, encoded, WEIGHTS, InfoNCEConfig())
    assert terms.contrast < 1e-6
    assert terms.top1 == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrow_states_under_autocast_are_worked_with_in_float32(dtype):
    # About a large common offset, which squares would lose in float32 if they were taken about the origin.
    predicted, encoded = ((side + 50).to(dtype) for side in draw(batch=9, steps=16, dim=32))
    truth = contrast(predicted.double(), encoded.double(), WEIGHTS, InfoNCEConfig())
    with torch.autocast("cpu", torch.bfloat16):
        terms = contrast(predicted, encoded, WEIGHTS.float(), InfoNCEConfig())
    assert terms.total.dtype == torch.float32
    torch.testing.assert_close(terms.contrast.double(), truth.contrast, rtol=1e-5, atol=1e-5)


def test_shapes_that_differ_are_refused():
    predicted, encoded = draw()
    with pytest.raises(ValueError, match=r"predicted, encoded: got shapes \(5, 4, 3\) and \(5, 3, 3\), expected"):
        contrast(predicted, encoded[:, 1:], WEIGHTS, InfoNCEConfig())


def test_settings_are_checked_and_read_back(tmp_path):
    for settings, named in (({"temperature": 0.0}, "objective.temperature"), ({"kind": "nce"}, "objective.kind")):
        with pytest.raises(InputError, match=named):
            InfoNCEConfig(**settings)
    with pytest.raises(InputError, match=r"stage\.weights: got 'variance', expected contrast: terms of"):
        Recipe(objective=InfoNCEConfig(), stages=(Stage(1, {"variance": 1.0}),))


def test_training_comes_to_find_each_own_encoding_and_keeps_states_spread(tmp_path, two_rooms):
    """No regulariser is there but the other candidates; one trajectory in twelve would be found by chance."""
    recipe = preset("infonce")
    recipe = replace(recipe, model=JEPAConfig(channels=4, blocks=1, dim=128))
    config = RunConfig(
        preset="infonce", recipe=recipe, seed=3, steps=100, batch_size=12, amp="off", compile=False, device="cpu",
        data=str(two_rooms), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run")
    assert RunConfig.load(tmp_path / "run" / "config.json") == config
    last, spectrum = read_metrics(tmp_path / "run")[-1], read_spectra(tmp_path / "run")[-1]
    assert last["contrast"] < 0.7 * math.log(12)
    assert last["top1"] > 4 / 12
    assert spectrum["rankme"] > 4

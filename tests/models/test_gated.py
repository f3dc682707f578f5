"""What holds for every model of the gated family."""

from dataclasses import replace

import pytest
import torch

from jepa_fast.config import GatedConvNeXtConfig, GatedFeaturesConfig, GatedPixelsConfig
from jepa_fast.data.batches import Batch
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import open_split
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.probing import rollouts as rollouts_module
from jepa_fast.probing.rollouts import rollout_split
from tests.blinded import batches_of_noise_after_frame_zero
from tests.objective_terms import mixture

CONFIGS = {
    "features": GatedFeaturesConfig(dim=16, border_hidden=8, wall_hidden=12),
    "pixels": GatedPixelsConfig(dim=16, channels=3, hidden=12),
    "apart": GatedConvNeXtConfig(dim=16, channels=3, hidden=12),
}
# What the objective takes, and the tensors of a batch that the model goes by and that change it when rows are swapped.
WEIGHTS = {"features": [1.0, 0.1], "pixels": [1.0, 0.5, 10.0, 1.0], "apart": [1.0, 0.5, 100.0, 0.1]}
FIELDS = {
    "features": ("0.corners", "1.pixels", "actions"),
    "pixels": ("0.pixels", "0.corners", "1.pixels", "actions"),
    "apart": ("0.pixels", "0.corners", "1.pixels", "actions"),
}


@pytest.fixture(params=list(CONFIGS))
def kind(request):
    return request.param


@pytest.fixture
def model(kind):
    torch.manual_seed(0)
    model = build_model(CONFIGS[kind])
    if kind == "apart":
        # Untrained, its gate is a constant and looks at nothing.
        torch.nn.init.normal_(model.predictor.gate.mix[-1].weight)
    return model


def test_evaluation_sees_frame_zero_and_the_actions_alone(model, kind, two_rooms, monkeypatch):
    split = open_split(two_rooms / "probe_normal" / "val")
    plain = rollout_split(model, split, "plain")
    monkeypatch.setattr(rollouts_module, "evaluation_batches", batches_of_noise_after_frame_zero)
    assert torch.equal(rollout_split(model, split, "noisy").latents, plain.latents)
    # Of the batch, only these fields reach the model; each of them matters.
    for field in FIELDS[kind]:

        def changed(split, batch_size, field=field):
            for batch in evaluation_batches(split, batch_size):
                tensors = batch.tensors()
                yield Batch.of(tensors | {field: tensors[field].flip(0)})

        monkeypatch.setattr(rollouts_module, "evaluation_batches", changed)
        assert not torch.equal(rollout_split(model, split, field).latents, plain.latents)


def test_bf16_autocast_changes_nothing(model, kind, batch_and_spec):
    batch, spec = batch_and_spec
    objective, weights = mixture(model), torch.tensor(WEIGHTS[kind])

    def terms():
        encoded = model.batch_encoder(spec)(batch, model.dropout_clock)
        return objective(encoded, batch.actions, weights)[0]

    plain = terms()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = terms()
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(rounded, plain, strict=True))


def test_frames_of_another_size_are_refused(kind, batch_and_spec):
    model = build_model(replace(CONFIGS[kind], frame=64))
    with pytest.raises(InputError, match=r"model\.frame: got 64, expected the data's 65 x 65 pixels"):
        model.batch_encoder(batch_and_spec[1])


def test_compiled_equals_eager(model, kind, batch_and_spec):
    batch, spec = batch_and_spec
    objective, encode = mixture(model), model.batch_encoder(spec)
    weights = torch.tensor(WEIGHTS[kind])

    def total(batch):
        encoded = encode(batch, model.dropout_clock)
        return objective(encoded, batch.actions, weights)[0].total

    gradients = []
    for function in (total, torch.compile(total, fullgraph=True, backend="aot_eager")):
        model.zero_grad()
        function(batch).backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)

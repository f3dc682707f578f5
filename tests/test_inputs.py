"""Pixel values: a trained model knows those of its data, and takes bytes and floats of the same frames alike."""

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

import jepa_fast as jf
from jepa_fast import export, onnx_export, train
from jepa_fast.config import GatedFeaturesConfig, GlimpseConfig, InputSpec, JEPAConfig
from jepa_fast.data.two_rooms.world import WORLD
from jepa_fast.errors import InputError
from jepa_fast.models.registry import build_model
from jepa_fast.weights import load_weights, save_weights
from tests.test_flags import parse

SMALL = JEPAConfig(channels=4, blocks=1, dim=8)
SPEC = InputSpec(2, 65, 65, 2, scale=0.5, offset=-10.0)


@pytest.fixture
def model():
    torch.manual_seed(0)
    built = build_model(SMALL).eval()
    built.inputs = SPEC
    return built


def test_bytes_are_scaled_by_the_model(model):
    frames = torch.randint(0, 256, (3, 2, 65, 65), dtype=torch.uint8)
    actions = torch.randn(3, 2, 2)
    torch.testing.assert_close(
        model.rollout(frames, actions), model.rollout(frames * 0.5 - 10.0, actions), rtol=0, atol=0
    )


def test_a_model_that_does_not_know_the_scale_takes_floats_alone(model):
    actions = torch.zeros(1, 1, 2)
    with pytest.raises(ValueError, match=r"got torch\.int64, expected uint8 or floats"):
        model.rollout(torch.zeros(1, 2, 65, 65, dtype=torch.int64), actions)
    model.inputs = None
    with pytest.raises(ValueError, match="expected floats: what a byte stands for, this model was not told"):
        model.rollout(torch.zeros(1, 2, 65, 65, dtype=torch.uint8), actions)


def test_values_outside_of_the_data_s_are_told_once(model, caplog):
    actions = torch.zeros(1, 1, 2)
    inside = torch.full((1, 2, 65, 65), -10.0)
    model.rollout(inside, actions)
    assert caplog.messages == []
    for _ in range(2):
        model.rollout(inside + 255, actions)
    assert len(caplog.messages) == 1
    assert "frames hold values from 245 to 245, this model was trained on -10 to 117.5" in caplog.messages[0]


def test_a_run_and_its_export_know_the_data_s_pixels(tmp_path, two_rooms, caplog):
    caplog.set_level(logging.INFO)
    small = ("--model.channels", 4, "--model.blocks", 1, "--model.dim", 8, "--data.batch-size", 4)
    train.main(parse("--data", two_rooms, "--out", tmp_path / "run", "--steps", 1, *small))
    expected = InputSpec(2, 65, 65, 2, WORLD.scale)
    assert jf.load(tmp_path / "run").inputs == expected
    export.main(export.Arguments(tmp_path / "run", tmp_path / "exported"))
    assert jf.load(tmp_path / "exported").inputs == expected


def test_weights_that_do_not_tell_are_read_as_before(tmp_path, model):
    model.inputs = None
    save_weights(model, tmp_path, {})
    assert "inputs" not in json.loads((tmp_path / "config.json").read_text())
    assert load_weights(tmp_path).inputs is None


def test_onnx_files_compute_what_the_model_does(tmp_path, model, caplog):
    pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    onnxruntime = pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    caplog.set_level(logging.INFO)
    onnx_export.export_onnx(model, tmp_path)
    assert sum("as the model's" in line for line in caplog.messages) == 2
    encode, step = (onnxruntime.InferenceSession(str(tmp_path / f"{name}.onnx")) for name in ("encoder", "predictor"))
    frames = np.random.default_rng(0).uniform(-10, 117, (5, 2, 65, 65)).astype(np.float32)
    actions = np.random.default_rng(1).normal(size=(5, 3, 2)).astype(np.float32)
    (latents,) = encode.run(None, {"frames": frames})
    with torch.no_grad():
        expected = model.rollout(torch.from_numpy(frames), torch.from_numpy(actions))
    for time in range(3):
        np.testing.assert_allclose(latents, expected[:, time], atol=1e-5 * float(expected.abs().max()))
        (latents,) = step.run(None, {"latents": latents, "actions": actions[:, time]})


@pytest.mark.parametrize("config", [GatedFeaturesConfig(dim=4), GlimpseConfig(channels=2, blocks=1, dim=4, hidden=4)])
def test_onnx_modules_carry_what_a_model_carries_beside_its_latents(config):
    torch.manual_seed(0)
    model = build_model(config).eval()
    frames, actions = 0.1 * torch.rand(3, 2, 65, 65), torch.randn(3, 1, 2)
    with torch.no_grad():
        latents, carried = onnx_export.OneFrame(model)(frames)
        step = onnx_export.OneStep(model, type(model.encode(frames[:, None])))
        following = step(latents, carried, actions[:, 0])
        expected = model.rollout(frames, actions)
    torch.testing.assert_close(torch.stack([latents, following], dim=1), expected, rtol=0, atol=0)


def test_onnx_says_what_it_lacks(tmp_path, model, monkeypatch):
    monkeypatch.setattr(onnx_export, "PACKAGES", ("onnx_that_is_not_there",))
    with pytest.raises(InputError, match="needs onnx_that_is_not_there, which this environment lacks: pip install"):
        onnx_export.export_onnx(model, tmp_path)
    monkeypatch.setattr(onnx_export, "PACKAGES", ())
    model.inputs = None
    with pytest.raises(InputError, match="does not tell the size of its frames"):
        onnx_export.export_onnx(model, tmp_path)
    model.inputs = SPEC
    model.config = replace(SMALL, history=2)
    with pytest.raises(InputError, match=r"model\.history is 2"):
        onnx_export.export_onnx(model, tmp_path)


def test_bytes_and_floats_of_the_same_frames_are_packed_the_same_to_a_model(tmp_path):
    frames = np.random.default_rng(0).integers(0, 256, (5, 3, 16, 20), np.uint8)
    frames[0, 0, 0, 0] = 255  # the brightest there can be
    actions = np.zeros((4, 2), np.float32)
    stored = [
        jf.pack([(values, actions)] * 2, tmp_path / name, workers=1)[1].frames
        for name, values in (("bytes", frames), ("floats", (frames / 255).astype(np.float32)))
    ]
    torch.testing.assert_close(stored[0], stored[1], rtol=0, atol=1e-7)
    torch.testing.assert_close(stored[0], torch.from_numpy(frames) / 255, rtol=0, atol=1e-7)

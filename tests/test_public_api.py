"""What `import jepa_fast as jf` offers: nothing is imported before it is used, and a model of one's own trains."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn

import jepa_fast as jf
from jepa_fast.config import RunConfig
from jepa_fast.engine import calibration, loop
from jepa_fast.engine.checkpoint import load_checkpoint
from jepa_fast.errors import InputError
from jepa_fast.models.jepa import build_jepa
from jepa_fast.presets import preset

DIM = 16


class Pixels(nn.Module):
    """Every eighth pixel, weighted: an encoder of a few lines."""

    def __init__(self, dim=DIM):
        super().__init__()
        self.project = nn.Linear(2 * 9 * 9, dim)

    def forward(self, frames):
        return self.project(10 * frames[:, :, ::8, ::8].flatten(1))


class Maps(nn.Module):
    """An encoder that gives maps [N, c, h, w]."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv2d(2, 4, 33, stride=32)

    def forward(self, frames):
        return self.layer(10 * frames)


def model(encoder=None, dim=DIM, action_dim=2, objective=None, seed=0):
    torch.manual_seed(seed)
    predictor = jf.MLPPredictor(dim=dim, action_dim=action_dim)
    return jf.JEPA(encoder=encoder or Pixels(), predictor=predictor, objective=objective or jf.VICReg())


def fit(tmp_path, two_rooms, trained=None, name="run", **settings):
    settings = {"steps": 12, "batch_size": 8, "device": "cpu", **settings}
    return jf.fit(trained or model(), two_rooms, out=tmp_path / name, **settings)


def tensors_equal(ours, theirs):
    assert ours.keys() == theirs.keys()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_import_is_instant_and_without_torch():
    program = "import sys, jepa_fast; print('torch' in sys.modules, 'numpy' in sys.modules)"

    def cpu_s(program):
        """Of a process, user and system: others may hold the processors."""
        before = os.times()
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        after = os.times()
        return done, after.children_user + after.children_system - before.children_user - before.children_system

    # The best of three. Python itself is part of it.
    bare_s = min(cpu_s("pass")[1] for _ in range(3))
    (done, best_s), *_ = sorted((cpu_s(program) for _ in range(3)), key=lambda pair: pair[1])
    assert done.stdout.split() == ["False", "False"]
    assert best_s - bare_s < 0.1


@pytest.mark.parametrize("name", jf.__all__)
def test_every_public_name_is_there_documented_and_listed(name):
    found = getattr(jf, name)
    assert found.__doc__
    assert name in dir(jf)
    assert getattr(jf, name) is found


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match=r"jepa_fast.*'nothing'"):
        _ = jf.nothing


def test_functional_and_nn_are_the_ops_and_the_modules():
    torch.manual_seed(0)
    x, target = torch.randn(12, 5), torch.randn(12, 5)
    terms = jf.functional.vicreg(x, target)
    torch.testing.assert_close(terms[0], (x - target).square().mean())
    images = torch.randn(2, 16, 9, 9)
    block = jf.nn.ConvNeXtBlock(16)
    update = block.project(nn.functional.gelu(block.expand(block.norm(block.dwconv(images).permute(0, 2, 3, 1)))))
    torch.testing.assert_close(block(images), images + update.permute(0, 3, 1, 2))
    for module in (jf.functional, jf.nn):
        assert all(getattr(module, name) for name in module.__all__)


def test_a_model_of_ones_own_trains_in_place_and_loads_into_another_instance(tmp_path, two_rooms):
    before = {name: value.clone() for name, value in model().state_dict().items()}
    trained = model()
    run = fit(tmp_path, two_rooms, trained)
    assert run.model is trained
    assert not trained.training
    assert run.steps == load_checkpoint(run.folder)["step"] == 12
    assert not tensors_equal(trained.state_dict(), before)
    assert [metrics["step"] for metrics in run.metrics] == [10, 12]
    assert {"total", "invariance", "variance", "covariance", "learning_rate"} <= run.metrics[0].keys()
    assert {path.name for path in run.folder.iterdir()} >= {
        "config.json", "environment.json", "metrics.jsonl", "spectra.jsonl", "checkpoints",
    }  # fmt: skip
    stored = RunConfig.load(run.folder / "config.json")
    assert (stored.preset, stored.recipe.model.encoder) == ("custom", "Pixels")
    loaded = jf.load(run.folder, model=model(seed=1))
    assert tensors_equal(loaded.state_dict(), trained.state_dict())
    with pytest.raises(InputError, match=r"made in Python.*load\(run, model=\.\.\.\)"):
        jf.load(run.folder)
    with pytest.raises(InputError, match="its checkpoint is not of the model"):
        jf.load(run.folder, model=model(Maps()))


def test_rollouts_of_a_loaded_model_start_from_its_encoding(tmp_path, two_rooms):
    run = fit(tmp_path, two_rooms, steps=2)
    frames, actions = torch.rand(3, 2, 65, 65), torch.randn(3, 4, 2)
    with torch.no_grad():
        latents = run.model.rollout(frames, actions)
        assert latents.shape == (3, 5, DIM)
        torch.testing.assert_close(latents[:, 0], run.model.encoder(frames))


def test_maps_are_flattened(tmp_path, two_rooms):
    run = fit(tmp_path, two_rooms, model(Maps(), dim=16), steps=3)
    assert run.model.encode(torch.rand(1, 2, 2, 65, 65)).shape == (1, 2, 16)


@pytest.mark.parametrize("objective", ["InfoNCE", "VICReg"])
def test_objectives_train_a_model_of_ones_own(tmp_path, two_rooms, objective):
    run = fit(tmp_path, two_rooms, model(objective=getattr(jf, objective)()), steps=30)
    assert run.metrics[-1]["total"] < run.metrics[0]["total"]


def test_a_stopped_fit_resumes_to_the_same_bits_and_refuses_another_one(tmp_path, two_rooms):
    whole = fit(tmp_path, two_rooms, name="whole")
    cut = model()
    # A full disk stops it; the checkpoint of step 5 is the last.
    saved = loop.save_checkpoint

    def save(folder, step, state):
        if step == 6:
            raise OSError(28, "No space left on device")
        return saved(folder, step, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save_checkpoint", save)
        with pytest.raises(RuntimeError, match="No space left"):
            fit(tmp_path, two_rooms, cut, name="cut", checkpoint_minutes=0)
    assert load_checkpoint(tmp_path / "cut")["step"] == 5
    settings = {"batch_size": 8, "device": "cpu", "resume": tmp_path / "cut"}
    with pytest.raises(InputError, match=r"--optimizer\.learning-rate: got 0\.1, expected 0\.003"):
        jf.fit(model(seed=4), two_rooms, optimizer=jf.OptimizerConfig(learning_rate=0.1), **settings)
    with pytest.raises(InputError, match=r"--model\.encoder: got 'Maps', expected 'Pixels'"):
        jf.fit(model(Maps()), two_rooms, **settings)
    resumed = jf.fit(model(seed=4), two_rooms, **settings)
    assert resumed.steps == 12
    assert tensors_equal(resumed.model.state_dict(), whole.model.state_dict())
    assert tensors_equal(
        load_checkpoint(resumed.folder)["optimizer"]["state"][0], load_checkpoint(whole.folder)["optimizer"]["state"][0]
    )


def test_minutes_leave_the_model_s_weights_to_the_run(tmp_path, two_rooms, monkeypatch):
    monkeypatch.setattr(calibration, "ENOUGH_S", 0.0)
    measure = calibration.measure

    def measured(config, ranks, trained):
        before = {name: value.clone() for name, value in trained.state_dict().items()}
        measure(config, ranks, trained)
        assert tensors_equal(before, trained.state_dict())
        return 50.0, 0.0

    monkeypatch.setattr(calibration, "measure", measured)
    timed = fit(tmp_path, two_rooms, name="timed", steps=None, minutes=10)
    assert 1 < timed.steps <= 12
    counted = fit(tmp_path, two_rooms, name="counted", steps=timed.steps)
    assert tensors_equal(timed.model.state_dict(), counted.model.state_dict())


def test_a_model_that_is_built_from_a_configuration_is_stored_as_such(tmp_path, two_rooms):
    config = replace(preset("baseline").model, channels=4, blocks=1, dim=8)
    torch.manual_seed(0)
    run = fit(tmp_path, two_rooms, build_jepa(config, jf.VICReg()), steps=2)
    loaded = jf.load(run.folder)
    assert loaded.config == config
    assert tensors_equal(loaded.state_dict(), run.model.state_dict())


def test_data_may_be_a_split_a_folder_of_splits_or_an_open_data_set(tmp_path, two_rooms):
    trained = [
        jf.fit(model(), data, out=tmp_path / str(number), steps=3, batch_size=8, device="cpu").model.state_dict()
        for number, data in enumerate((two_rooms, str(two_rooms / "train"), jf.TrajectoryDataset(two_rooms / "train")))
    ]
    assert tensors_equal(trained[0], trained[1])
    assert tensors_equal(trained[0], trained[2])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"steps": 3, "minutes": 1.0}, "--steps, --minutes: got both"),
        ({"batch_size": 49}, r"--data\.batch-size: got 49, expected from 2 to the 48 trajectories"),
        ({"amp": "fp8"}, "--amp: got 'fp8'"),
        ({"steps": 0}, "--steps: got 0"),
    ],
)
def test_arguments_out_of_range_are_named_and_leave_nothing(tmp_path, two_rooms, settings, said):
    with pytest.raises(InputError, match=said):
        fit(tmp_path, two_rooms, **settings)
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_do_not_fit_are_named(tmp_path, two_rooms):
    with pytest.raises(ValueError, match="action"):
        fit(tmp_path, two_rooms, model(action_dim=7))
    with pytest.raises(ValueError, match="dim"):
        fit(tmp_path, two_rooms, model(dim=32), name="other")

"""Probes for any named targets: what they find, what they cost to believe, and on which trajectories."""

import math

import numpy as np
import pytest
import torch

import jepa_fast as jf
from jepa_fast import evaluate
from jepa_fast.config import Group, JEPAConfig, Recipe, RunConfig
from jepa_fast.engine.loop import train
from jepa_fast.errors import InputError
from jepa_fast.models.jepa import build_jepa
from jepa_fast.probing.target_results import TARGETS, TargetEvaluation, shown_steps
from jepa_fast.probing.targets import (
    Rolled,
    errors_of,
    evaluate_targets,
    fit_linear,
    fit_mlp,
    latent_errors,
    validation_splits,
)
from jepa_fast.runs import create_run

SIDE, FRAMES = 18, 5


def episodes(count, seed, targets=True):
    """A bright square on grey, moved by its actions; where it is, and how far from the left."""
    random = np.random.default_rng(seed)
    for _ in range(count):
        actions = random.normal(0, 1.5, (FRAMES - 1, 2)).astype(np.float32)
        place = np.cumsum(np.concatenate([random.uniform(4, 9, (1, 2)), actions]), axis=0).clip(0, SIDE - 4)
        frames = np.full((FRAMES, SIDE, SIDE, 3), 90, np.uint8)
        for frame, (x, y) in zip(frames, place.round().astype(int), strict=True):
            frame[y : y + 4, x : x + 4] = (250, 200, 10)
        known = {"place": place.astype(np.float32), "left": place[:, 0].astype(np.float32)}
        yield frames, actions, known if targets else {}


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("squares")
    jf.pack(episodes(96, 0), folder / "train", workers=1)
    jf.pack(episodes(64, 1), folder / "val", workers=1)
    return folder


class Location(torch.nn.Module):
    """Frames to the brightness' centre: two numbers that a linear probe turns into the place."""

    def forward(self, frames):
        weight = 255 * frames[:, :1] - 90
        rows, columns = (torch.arange(SIDE, dtype=frames.dtype) for _ in (0, 1))
        total = weight.sum(dim=(1, 2, 3))
        across, down = (weight * columns).sum(dim=(1, 2, 3)), (weight * rows[:, None]).sum(dim=(1, 2, 3))
        return torch.stack([across, down], dim=1) / total[:, None]


class Adds(torch.nn.Module):
    """A predictor that adds actions up."""

    def __init__(self):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(()))

    def forward(self, first, actions, clock):
        return first[:, None] + self.scale * actions.cumsum(dim=1)


def test_what_latents_say_is_found_at_every_step_and_beside_the_floor(data):
    model = jf.JEPA(Location(), Adds())
    found = evaluate_targets(model, data)
    assert (found.fitted_on, found.scored_on, found.fitted, found.scored) == ("train", "val", 96, 64)
    assert [(one.name, one.size) for one in found.targets] == [("place", 2), ("left", 1)]
    for target in found.targets:
        assert target.linear.mse < 0.02 * target.constant.mse
        assert target.mlp.mse < 0.05 * target.constant.mse
        assert target.linear.r2 > 0.98
        assert len(target.linear.mse_by_step) == FRAMES
        assert abs(target.constant.r2) < 0.05
        assert (target.untrained_linear, target.untrained_mlp) == (None, None)
    assert found.latents.error[0] == 0
    assert found.latents.top1[0] == 1
    assert found.latents.still[-1] > 10 * found.latents.error[-1]


def test_an_untrained_model_of_the_same_make_is_the_floor(data):
    torch.manual_seed(3)
    model = build_jepa(JEPAConfig(channels=4, dim=16, groups=(Group("frames", 3),)))
    found = evaluate_targets(model, data / "val", probe_seed=5)
    again = evaluate_targets(model, data / "val", probe_seed=5, floor=False)
    for target, repeated in zip(found.targets, again.targets, strict=True):
        assert (repeated.linear, repeated.mlp) == (target.linear, target.mlp)
        assert repeated.untrained_mlp is None
        assert target.untrained_linear.mse != target.linear.mse
    # What was torch's generator's is still its own.
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    fit_mlp(*(torch.zeros(4, 2) for _ in range(4)), 1)
    assert torch.equal(torch.rand(1), expected)


def test_without_another_split_the_probes_leave_a_part_of_the_trajectories_out(data):
    found = evaluate_targets(jf.JEPA(Location(), Adds()), data / "train")
    assert (found.fitted_on, found.scored_on, found.fitted, found.scored) == ("train", "train", 77, 19)
    assert "the model may have been trained on" in " ".join(found.words())


def test_frames_are_found_by_their_predicted_latents(data):
    found = evaluate_targets(jf.JEPA(Location(), Adds()), data, floor=False)
    assert len(found.retrievals) == 4
    first = found.retrievals[0]
    assert first.steps == [0, 1, 2, 4]
    assert first.true[0] == first.found[0]
    assert (first.trajectory, first.found_at[0][1]) == (0, 0)


def test_small_sets_come_with_a_word_on_what_that_means(data):
    words = " ".join(evaluate_targets(jf.JEPA(Location(), Adds()), data, floor=False).words())
    assert "fitted on 96 trajectories of train and scored on 64 of val" in words
    assert "On 64 trajectories an error has a standard error of up to" in words
    assert "96 trajectories are few for an MLP probe" in words


def test_the_command_prints_the_table_and_writes_what_the_report_reads(data, tmp_path, capsys):
    model = JEPAConfig(channels=4, dim=16, groups=(Group("frames", 3),))
    config = RunConfig(
        preset="generic", recipe=Recipe(model), seed=0, steps=2, batch_size=8, amp="off", compile=False, device="cpu",
        data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(tmp_path / "run", config)
    train(config, tmp_path / "run")
    evaluate.main(evaluate.Arguments(run=tmp_path / "run"))
    printed = capsys.readouterr().out
    stored = TargetEvaluation.load(tmp_path / "run" / TARGETS)
    assert printed == stored.table() + "\n"
    for words in (
        "place: squared error, mean over 2 numbers",
        "left: squared error, 1 number",
        "untrained, MLP",
        "constant guess",
        "step 4",
        "nothing moves",
    ):
        assert words in printed
    with pytest.raises(InputError, match="--split: got 'test', expected one of val"):
        evaluate.main(evaluate.Arguments(run=tmp_path / "run", split="test"))
    (tmp_path / "run" / TARGETS).write_text("{}")
    with pytest.raises(InputError, match="not probes of this version"):
        TargetEvaluation.load(tmp_path / "run" / TARGETS)


def test_data_without_targets_are_looked_at_all_the_same(tmp_path):
    jf.pack(episodes(8, 0, targets=False), tmp_path / "train", workers=1)
    found = evaluate_targets(jf.JEPA(Location(), Adds()), tmp_path)
    assert (found.targets, len(found.latents.error), found.scored) == ([], FRAMES, 2)
    assert "Predicted latents against encodings" in found.table()


@pytest.mark.posix
def test_other_targets_than_the_training_split_s_are_refused(data, tmp_path):
    (tmp_path / "train").symlink_to(data / "train")
    jf.pack(episodes(4, 0, targets=False), tmp_path / "val", workers=1)
    with pytest.raises(InputError, match=r"val: found targets \(\), expected .*'place'"):
        evaluate_targets(jf.JEPA(Location(), Adds()), tmp_path)
    jf.pack(episodes(1, 0), tmp_path / "one", workers=1)
    with pytest.raises(InputError, match=r"one: found 1 trajectory, expected 3 or more"):
        evaluate_targets(jf.JEPA(Location(), Adds()), tmp_path / "one")


def test_splits_called_val_come_first(data, tmp_path):
    for name in ("a/test", "b/val", "train"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).mkdir()
        (tmp_path / name / "manifest.json").write_bytes((data / "train" / "manifest.json").read_bytes())
    assert validation_splits(tmp_path) == ["b/val", "a/test"]


def test_a_linear_probe_is_ridge_regression_and_goes_by_held_out_rows():
    random = torch.Generator().manual_seed(0)
    inputs, weights = torch.randn(400, 5, generator=random), torch.randn(5, 2, generator=random)
    outputs = inputs @ weights + 3
    probe = fit_linear(inputs[:300], outputs[:300], inputs[300:], outputs[300:], 0)
    torch.testing.assert_close(probe(inputs.view(20, 20, 5)), outputs.view(20, 20, 2), rtol=1e-4, atol=1e-4)
    # More dimensions than rows and noise alone: a large penalty is the best.
    noise, values = torch.randn(40, 200, generator=random), torch.randn(40, 1, generator=random)
    probe = fit_linear(noise[:30], values[:30], noise[30:], values[30:], 0)
    assert probe(torch.randn(500, 200, generator=random)).std() < 1


def test_an_mlp_probe_learns_what_is_not_linear():
    random = torch.Generator().manual_seed(0)
    inputs = torch.randn(1000, 3, generator=random)
    outputs = inputs[:, :1] * inputs[:, 1:2]
    fitted = inputs[:800], outputs[:800], inputs[800:], outputs[800:], 0
    errors = [float((fit(*fitted)(inputs[800:]) - outputs[800:]).square().mean()) for fit in (fit_linear, fit_mlp)]
    assert errors[1] < 0.1 * errors[0]


def test_errors_are_means_with_a_standard_error_over_trajectories():
    truth = torch.tensor([[[0.0], [1.0]], [[2.0], [3.0]], [[4.0], [8.0]]])
    errors = errors_of(truth + torch.tensor([1.0, 1.0, 3.0])[:, None, None], truth)
    assert errors.mse == pytest.approx(11 / 3)
    assert errors.deviation == pytest.approx(np.std([1, 1, 9], ddof=1) / math.sqrt(3))
    assert errors.r2 == pytest.approx(1 - (11 / 3) / np.var([0, 1, 2, 3, 4, 8]))
    assert errors.r2_by_step[0] == pytest.approx(1 - (11 / 3) / np.var([0, 2, 4]))
    still = errors_of(torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
    assert (still.mse, math.isnan(still.r2), math.isnan(still.deviation)) == (0, True, True)


def test_errors_of_latents_are_shares_of_the_encodings_variance():
    encoded = torch.randn(500, 3, 8, generator=torch.Generator().manual_seed(0))
    mean = encoded.mean(dim=(0, 1)).expand_as(encoded)
    found = latent_errors(Rolled(mean, encoded))
    assert found.error == pytest.approx([1, 1, 1], abs=0.1)
    assert found.still[0] == 0
    assert found.still[1:] == pytest.approx([2, 2], abs=0.2)
    assert latent_errors(Rolled(encoded, encoded)).top1 == [1, 1, 1]


def test_the_steps_that_are_shown():
    assert [shown_steps(count) for count in (1, 2, 5, 9, 17, 18)] == [
        [0], [0, 1], [0, 1, 2, 4], [0, 1, 2, 4, 8], [0, 1, 2, 4, 8, 16], [0, 1, 2, 4, 8, 16, 17],
    ]  # fmt: skip

"""The protocol on packed splits: four sets, floors, and no look at later frames."""

import json
import shutil
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from jepa_fast.config import JEPAConfig, Recipe, RunConfig
from jepa_fast.data.host import evaluation_batches
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import save_checkpoint
from jepa_fast.errors import InputError
from jepa_fast.evaluate import Arguments, main
from jepa_fast.kernels import extension
from jepa_fast.kernels.dispatch import why_no_compiled_blocks
from jepa_fast.models import window_encoder
from jepa_fast.models.jepa import build_jepa
from jepa_fast.probing import rollouts as rollouts_module
from jepa_fast.probing.evaluation import PROBE_SETS, evaluate, rectangles, score
from jepa_fast.probing.prober import converged_probe
from jepa_fast.probing.results import Evaluation
from jepa_fast.probing.rollouts import rollout_split
from jepa_fast.runs import create_run
from tests.blinded import batches_of_noise_after_frame_zero

SMALL = JEPAConfig(channels=4, blocks=1, dim=16)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return build_jepa(SMALL)


@pytest.fixture(scope="module")
def evaluation(model, two_rooms):
    return evaluate(model, two_rooms)


def test_all_four_sets_are_scored_at_every_step(evaluation):
    assert [result.name for result in evaluation.probe_sets] == list(PROBE_SETS)
    for result in evaluation.probe_sets:
        steps = 91 if "expert" in result.name else 17
        for scores in (result.trained, result.untrained):
            for mean, by_step in (
                (scores.official, scores.official_by_step),
                (scores.converged, scores.converged_by_step),
            ):
                assert len(by_step) == steps
                assert abs(mean - sum(by_step) / steps) < 1e-3 * mean
        assert 100 < result.constant < 400


def test_an_untrained_world_scores_as_the_untrained_floor(two_rooms):
    """The floor is the same architecture with the probe seed's weights, probed in the same way."""
    torch.manual_seed(5)
    evaluation = evaluate(build_jepa(SMALL), two_rooms, probe_seed=5)
    for result in evaluation.probe_sets:
        assert result.trained == result.untrained


def test_without_the_floor_the_scores_are_the_same(tmp_path, model, two_rooms, evaluation):
    without = evaluate(model, two_rooms, floor=False)
    assert [result.untrained for result in without.probe_sets] == [None] * 4
    assert [result.trained for result in without.probe_sets] == [result.trained for result in evaluation.probe_sets]
    without.save(tmp_path / "evaluation.json")
    loaded = Evaluation.load(tmp_path / "evaluation.json")
    assert [result.untrained for result in loaded.probe_sets] == [None] * 4
    rows = [line.split() for line in without.table().splitlines() if line.startswith("probe_") and ":" not in line]
    assert [row[3:5] for row in rows] == [["-", "-"]] * 4


def test_the_wall_to_agent_ratio_is_wall_over_normal_and_is_stored(tmp_path, evaluation):
    normal, wall = (result.trained for result in evaluation.probe_sets[:2])
    expected = {"official": wall.official / normal.official, "converged": wall.converged / normal.converged}
    assert evaluation.wall_to_agent == expected
    evaluation.save(tmp_path / "evaluation.json")
    assert json.loads((tmp_path / "evaluation.json").read_text())["wall_to_agent"] == expected
    assert f"official {expected['official']:.2f}, converged {expected['converged']:.2f}" in evaluation.table()
    alone = replace(evaluation, probe_sets=evaluation.probe_sets[1:])
    assert alone.wall_to_agent == {}
    assert "ratio" not in alone.table()


def test_the_model_cannot_see_later_frames(model, two_rooms, monkeypatch):
    """With every frame after the first replaced by noise, the predicted latents are the same to the bit."""
    split = open_split(two_rooms / "probe_normal" / "val")
    plain = rollout_split(model, split, "plain")

    monkeypatch.setattr(rollouts_module, "evaluation_batches", batches_of_noise_after_frame_zero)
    noisy = rollout_split(model, split, "noisy")
    assert torch.equal(noisy.latents, plain.latents)
    # The test can fail: frame 0 and the actions do matter.
    monkeypatch.setattr(
        rollouts_module,
        "evaluation_batches",
        lambda split, size: (
            b._replace(groups=(b.groups[0]._replace(corners=b.groups[0].corners.flip(0)), *b.groups[1:]))
            for b in evaluation_batches(split, size)
        ),
    )
    assert not torch.equal(rollout_split(model, split, "moved").latents, plain.latents)


def test_rollouts_equal_the_models_own_rollout_from_whole_frames(model, two_rooms):
    from jepa_fast.data.batches import expand_frames

    split = open_split(two_rooms / "probe_wall" / "val")
    rolled = rollout_split(model, split, "wall", batch_size=32)
    model.eval()
    with torch.no_grad():
        for batch in evaluation_batches(split, 80):
            frames = expand_frames(batch, split.spec)
            expected = model.rollout(frames[:, 0], batch.actions)
    model.train()
    torch.testing.assert_close(rolled.latents, expected, rtol=1e-4, atol=1e-4)


def test_rolling_out_leaves_the_world_in_its_mode(model, two_rooms):
    split = open_split(two_rooms / "probe_wall" / "val")
    for mode in (True, False):
        model.train(mode)
        rollout_split(model, split, "mode")
        assert model.training is mode
    model.train()


def test_command_prints_the_table_and_writes_the_json(tmp_path, two_rooms, capsys):
    run = make_run(tmp_path / "run", two_rooms)
    main(Arguments(run=run))
    table = capsys.readouterr().out
    evaluation = json.loads((run / "evaluation.json").read_text())
    assert [result["name"] for result in evaluation["probe_sets"]] == list(PROBE_SETS)
    for result in evaluation["probe_sets"]:
        assert result["name"] in table
        assert f"{result['trained']['official']:.3f}" in table


@pytest.mark.skipif(why_no_compiled_blocks(8, torch.empty(0)) is not None, reason="without compiled blocks")
def test_command_takes_the_compiled_blocks_and_says_so(tmp_path, two_rooms, caplog, monkeypatch):
    run = make_run(tmp_path / "run", two_rooms, replace(SMALL, channels=8))
    chains, chain = [], window_encoder.window_chain
    monkeypatch.setattr(
        window_encoder, "window_chain", lambda *args, **options: chains.append(1) or chain(*args, **options)
    )
    evaluations, logged = {}, {}
    for kernels in ("auto", "reference"):
        chains.clear()
        caplog.clear()
        with caplog.at_level("INFO"):
            main(Arguments(run=run, kernels=kernels, out=tmp_path / "evaluation.json", floor=False))
        evaluations[kernels] = Evaluation.load(tmp_path / "evaluation.json")
        logged[kernels] = caplog.text
        assert (len(chains) > 0) == (kernels == "auto")
    assert f"convnext_block: compiled cpu kernel ({extension.instruction_set()})" in logged["auto"]
    assert "convnext_block: plain PyTorch" in logged["reference"]
    for fast, plain in zip(evaluations["auto"].probe_sets, evaluations["reference"].probe_sets, strict=True):
        assert fast.trained.official == pytest.approx(plain.trained.official, rel=1e-3)


def test_sets_that_are_not_there_are_left_out_and_named(tmp_path, two_rooms, model, caplog):
    for name in ("train", "val"):
        shutil.copytree(two_rooms / "probe_expert" / name, tmp_path / "probe_expert" / name)
    with caplog.at_level("INFO"):
        evaluation = evaluate(model, tmp_path)
    assert [result.name for result in evaluation.probe_sets] == ["probe_expert/val"]
    assert "probe_normal/val: left out" in caplog.text


def test_a_folder_without_probe_sets_is_refused(tmp_path, model):
    with pytest.raises(InputError, match=f"{tmp_path}: no probe set; expected probe_normal/val or"):
        evaluate(model, tmp_path)


def test_the_evaluation_says_what_was_probed(evaluation, model):
    assert evaluation.state_dim == 16
    assert evaluation.parameters == sum(p.numel() for p in model.parameters())
    assert evaluation.state_norm > 0


def test_bins_of_distance_add_up_to_the_scores(evaluation):
    for result in evaluation.probe_sets:
        frames = sum(one.frames for one in result.by_distance)
        assert frames == result.trajectories * len(result.trained.official_by_step)
        for probe in ("official", "converged"):
            total = sum(one.frames * getattr(one, probe) for one in result.by_distance)
            assert total / frames == pytest.approx(getattr(result.trained, probe), rel=1e-4)


def test_examples_are_the_best_the_median_and_the_worst_trajectories(model, two_rooms, evaluation):
    split = open_split(two_rooms / "probe_wall" / "val")
    rollouts = rollout_split(model, split, "wall")
    probe = converged_probe(rollout_split(model, open_split(two_rooms / "probe_normal" / "train"), "train"), 0)
    errors = probe.squared_errors(rollouts).mean(1).sort()
    examples = evaluation.probe_sets[1].examples
    assert [example.kind for example in examples] == ["best", "best", "median", "median", "worst", "worst"]
    assert [example.trajectory for example in examples] == errors.indices[[0, 1, 39, 40, -1, -2]].tolist()
    for example in examples:
        assert example.error == pytest.approx(float(errors.values[errors.indices == example.trajectory]), rel=1e-4)
        true, located = torch.tensor(example.true), torch.tensor(example.located)
        torch.testing.assert_close(true, rollouts.locations[example.trajectory], rtol=0, atol=5.1e-3)
        assert (true - located).square().mean() == pytest.approx(example.error, rel=1e-2)
        wall = torch.zeros(65, 65, dtype=torch.bool)
        for x, y, width, height in example.solid:
            wall[y : y + height, x : x + width] = True
        stored = next(evaluation_batches(split, 80)).groups[1].pixels[example.trajectory, 0]
        assert torch.equal(wall, stored > 0)


@settings(max_examples=50)
@given(arrays(np.uint8, st.tuples(st.integers(1, 9), st.integers(1, 9)), elements=st.sampled_from([0, 0, 7, 255])))
def test_rectangles_cover_every_solid_pixel_once(image):
    covered = np.zeros(image.shape, int)
    for x, y, width, height in rectangles(image):
        covered[y : y + height, x : x + width] += 1
    assert np.array_equal(covered, (image != 0).astype(int))


def test_an_evaluation_reads_back_as_it_was_saved(tmp_path, evaluation):
    evaluation.save(tmp_path / "evaluation.json")
    loaded = Evaluation.load(tmp_path / "evaluation.json")
    assert loaded.table() == evaluation.table()
    assert json.loads(json.dumps(asdict(loaded))) == json.loads(json.dumps(asdict(evaluation)))
    for damaged in ("{", "[]", "{}", json.dumps({"probe_sets": [{"name": "x"}]})):
        (tmp_path / "evaluation.json").write_text(damaged)
        with pytest.raises(InputError, match=r"not an evaluation of this version .* evaluate again"):
            Evaluation.load(tmp_path / "evaluation.json")


def make_run(folder, data, model=SMALL):
    config = RunConfig(
        preset="test", recipe=Recipe(model=model), seed=0, steps=1, batch_size=8, amp="off", compile=False,
        device="cpu", data=str(data), loader="host", kernels="reference", sparse=True,
    )  # fmt: skip
    create_run(folder, config)
    torch.manual_seed(0)
    save_checkpoint(folder, 1, {"step": 1, "model": build_jepa(model).state_dict()})
    assert asdict(RunConfig.load(folder / "config.json")) == asdict(config)
    return folder


def test_the_light_score_is_that_of_the_evaluation(model, evaluation, two_rooms):
    names = ["probe_wall/val", "probe_expert/val"]
    found = score(model, two_rooms, names, probe_seed=0)
    assert found == {result.name: result.trained for result in evaluation.probe_sets if result.name in names}

"""The preset features20k through the commands that users type: it learns from pixels and actions alone."""

import signal
import time
from dataclasses import replace

import pytest
import torch

import jepa_fast
from jepa_fast import evaluate, export
from jepa_fast.config import GatedFeaturesConfig, JEPAConfig, MixtureConfig, Recipe, RunConfig, Stage
from jepa_fast.data.shards import open_split
from jepa_fast.engine.checkpoint import checkpoint_folder, load_checkpoint
from jepa_fast.engine.record import read_metrics
from jepa_fast.errors import InputError
from jepa_fast.models.gated_features import GatedFeatures
from jepa_fast.presets import preset
from jepa_fast.probing.results import Evaluation
from jepa_fast.probing.rollouts import rollout_split
from jepa_fast.report import __main__ as report
from tests.forked import Command
from tests.one_step_runs import configuration, run


def error_px2(model, split):
    """Squared error of the positions that predicted states stand for: what a perfect probe would see."""
    rollouts = rollout_split(model, split, "error")
    half = (model.config.frame - 1) / 2
    with torch.no_grad():
        found = half + half * model.encoder.positions(rollouts.latents)
    return (found - rollouts.locations).square().mean().item()


def test_seconds_of_training_make_the_error_fall_and_untrained_it_fails(tmp_path, walks):
    recipe = preset("features20k")
    recipe = replace(recipe, model=replace(recipe.model, wall_hidden=32))
    trained = jepa_fast.load(
        run(tmp_path / "run", configuration("features20k", walks, recipe=recipe, steps=700, batch_size=64))
    )
    torch.manual_seed(0)
    untrained = GatedFeatures(recipe.model)
    for name, floor, factor in (("probe_normal/val", 20, 100), ("probe_wall/val", 20, 10)):
        split = open_split(walks / name)
        before, after = error_px2(untrained, split), error_px2(trained, split)
        assert before > floor
        assert after < before / factor


@pytest.mark.posix
def test_a_killed_run_resumes_to_the_same_bits_and_goes_through_every_command(tmp_path, two_rooms, capsys):
    flags = ("--preset", "features20k", "--data", two_rooms, "--data.batch-size", 6, "--steps", 25, "--seed", 5)
    whole, killed = tmp_path / "whole", tmp_path / "killed"

    def command(*arguments):
        return Command("-m", "jepa_fast.train", "--checkpoint-minutes", 0, *arguments)

    run(whole, configuration("features20k", two_rooms, batch_size=6, steps=25, seed=5, kernels="fused"))
    with command("--out", killed, *flags) as process:
        deadline = time.monotonic() + 300
        while not any(path.name >= "step-000000003.pt" for path in checkpoint_folder(killed).glob("step-*.pt")):
            assert time.monotonic() < deadline, "no checkpoint appeared"
            time.sleep(0.005)
        process.kill()
        assert process.wait() == -signal.SIGKILL
    assert load_checkpoint(killed)["step"] < 25
    with command("--resume", killed) as process:
        assert process.wait() == 0
    ours, theirs = (load_checkpoint(folder)["model"] for folder in (killed, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert [line["step"] for line in read_metrics(killed)] == [10, 20, 25]
    assert set(preset("features20k").terms) < set(read_metrics(killed)[-1])

    evaluate.main(evaluate.Arguments(run=killed))
    evaluation = Evaluation.load(killed / "evaluation.json")
    assert f"{evaluation.parameters:,} parameters, latents of 128" in capsys.readouterr().out
    report.main(report.Arguments((killed,)))
    page = (killed / "report.html").read_text()
    assert "by the likelihood of the blocked/free mixture, sigma 0.15 px to 0.05 px: 1 nll up to step 25." in page
    export.main(export.Arguments(killed))
    exported, loaded = jepa_fast.load(killed / "export"), jepa_fast.load(killed)
    assert isinstance(loaded.config, GatedFeaturesConfig)
    assert exported.config == loaded.config
    assert all(torch.equal(exported.state_dict()[name], value) for name, value in loaded.state_dict().items())


def test_reports_compare_runs_of_both_kinds(tmp_path, two_rooms):
    features = run(tmp_path / "features", configuration("features20k", two_rooms))
    recipe = Recipe(model=JEPAConfig(channels=2, blocks=1, dim=8))
    convnext = run(tmp_path / "convnext", configuration("features20k", two_rooms, preset="test", recipe=recipe))
    report.main(report.Arguments((features, convnext), out=tmp_path / "both.html"))
    page = (tmp_path / "both.html").read_text()
    for term in ("Nll term", "Move_probability term", "Invariance term", "Covariance term"):
        assert term in page


def test_configurations_of_both_kinds_read_back_and_do_not_mix(tmp_path, two_rooms):
    config = configuration("features20k", two_rooms)
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    with pytest.raises(InputError, match=r"objective\.kind: got 'vicreg', expected mixture, which train"):
        Recipe(model=GatedFeaturesConfig())
    with pytest.raises(InputError, match=r"objective\.variance: got 1\.0, expected 0: no latent of a gated_feat"):
        replace(config.recipe, stages=(Stage(1, {"variance": 1.0}),))
    for settings, named in (({"dim": 1}, "model.dim"), ({"reach": 0.0}, "model.reach"), ({"kind": "x"}, "model.kind")):
        with pytest.raises(InputError, match=named):
            GatedFeaturesConfig(**settings)
    with pytest.raises(InputError, match=r"objective\.last_sigma: got 0"):
        MixtureConfig(last_sigma=0.0)

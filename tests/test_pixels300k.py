"""The preset pixels300k through the commands that users type: it learns, from pixels and actions alone."""

import contextlib
from dataclasses import replace

import pytest
import torch

import jepa_fast
from jepa_fast.config import GatedPixelsConfig, LoopOptions, MixtureConfig, Recipe, RunConfig
from jepa_fast.data.shards import open_split
from jepa_fast.engine.loop import training
from jepa_fast.engine.record import read_metrics
from jepa_fast.errors import InputError
from jepa_fast.models.gated_pixels import GatedPixels
from jepa_fast.presets import preset
from jepa_fast.probing.collapse import spectrum
from jepa_fast.probing.rollouts import rollout_split
from jepa_fast.report import __main__ as report
from jepa_fast.runs import create_run
from tests.one_step_runs import configuration, run


def error_px2(model, split):
    """Squared error of positions after the affine map that fits them best: what a perfect linear probe would see."""
    rollouts = rollout_split(model, split, "error")
    with torch.no_grad():
        found = model.lift.positions(rollouts.latents).reshape(-1, 2).double()
    found = torch.cat([found, torch.ones(len(found), 1, dtype=torch.float64)], dim=1)
    truth = rollouts.locations.reshape(-1, 2).double()
    return (found @ torch.linalg.lstsq(found, truth).solution - truth).square().mean().item()


def test_seconds_of_training_make_the_error_fall_and_untrained_it_fails(tmp_path, walks):
    config = configuration("pixels300k", walks, steps=500, batch_size=32)
    trained = jepa_fast.load(run(tmp_path / "run", config))
    torch.manual_seed(0)
    untrained = GatedPixels(config.recipe.model)
    for name in ("probe_normal/val", "probe_wall/val"):
        split = open_split(walks / name)
        before, after = error_px2(untrained, split), error_px2(trained, split)
        assert before > 5
        assert after < before / 10


def test_without_the_variance_term_its_encoder_collapses(tmp_path, walks):
    """To one position for all frames: the term is what learns, not the form of the encoder alone."""
    spectra, weight = {}, preset("pixels300k").objective.variance
    for variance in (0.0, weight):
        recipe = preset("pixels300k")
        recipe = replace(recipe, objective=replace(recipe.objective, variance=variance))
        config = configuration("pixels300k", walks, recipe=recipe, steps=200, batch_size=32)
        model = jepa_fast.load(run(tmp_path / str(variance), config))
        states = rollout_split(model, open_split(walks / "probe_normal" / "val"), "spread").latents[:, 0]
        found = spectra[variance] = spectrum(states)
        assert recipe.model.is_collapsed(found.std.tolist(), found.size, found.rankme) == (variance == 0)
    assert spectra[weight].std.norm() > 100 * spectra[0.0].std.norm()


def test_what_it_learns_is_logged_and_told(tmp_path, two_rooms):
    folder = run(tmp_path / "run", configuration("pixels300k", two_rooms))
    assert set(preset("pixels300k").terms) < set(read_metrics(folder)[-1])
    report.main(report.Arguments((folder,)))
    page = (folder / "report.html").read_text()
    first, then = (f"{weight} nll + 10 variance + 1 covariance up to step" for weight in (0, 1))
    assert f"sigma 0.5 px to 0.05 px: {first} 1, then {then} 12." in page


def test_its_configuration_reads_back_and_goes_with_one_step_alone(tmp_path, two_rooms):
    config = configuration(
        "pixels300k", two_rooms, recipe=replace(preset("pixels300k"), model=GatedPixelsConfig(hidden=7))
    )
    config.save(tmp_path / "config.json")
    assert RunConfig.load(tmp_path / "config.json") == config
    with pytest.raises(InputError, match=r"objective\.kind: got 'vicreg', expected mixture, which train"):
        Recipe(model=GatedPixelsConfig())
    with pytest.raises(InputError, match=r"objective\.kind: got 'mixture', expected vicreg or infonce"):
        Recipe(objective=MixtureConfig())


def test_the_dot_is_found_before_the_gate_learns(tmp_path, walks):
    """In the first stage positions spread and the predictor stays as it was drawn."""
    config = configuration("pixels300k", walks, steps=320, batch_size=32)
    create_run(tmp_path, config)
    fresh = GatedPixels(config.recipe.model)
    with contextlib.closing(training(config, tmp_path, LoopOptions())) as steps:
        for progress in steps:
            if progress.done == 1:
                fresh.load_state_dict(progress.model.state_dict())
            if progress.done == 40:
                break
        model = progress.model
        split = open_split(walks / "probe_normal" / "val")
        spread = [rollout_split(one, split, "spread").latents[:, 0].std(dim=0).norm() for one in (fresh, model)]
        assert spread[1] > 10 * spread[0]
        assert all(map(torch.equal, fresh.predictor.parameters(), model.predictor.parameters()))

"""Learning rate and stages as functions of the step."""

import itertools
import math

import pytest

from jepa_fast.config import Recipe, Stage
from jepa_fast.engine.schedule import schedule
from jepa_fast.presets import PRESETS, explorejepa_repo, explorejepa_writeup, preset


def test_learning_rate_falls_from_base_to_zero_along_a_cosine():
    rates = schedule(100, Recipe()).column("learning_rate").tolist()
    assert math.isclose(rates[0], 5e-4, rel_tol=1e-7)
    assert math.isclose(rates[50], 2.5e-4, rel_tol=1e-7)
    assert 0 < rates[99] < 2e-7
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("steps", [2, 7, 100, 1149 * 35])
def test_stages_share_the_steps_in_proportion_to_their_epochs(steps):
    recipe = Recipe(stages=(Stage(30, {"variance": 1.0}), Stage(5, {"variance": 2.0})))
    stages = schedule(steps, recipe).column("variance").tolist()
    assert stages == sorted(stages)
    assert stages.count(1) == math.ceil(steps * 30 / 35)


def test_the_sigma_of_the_mixture_falls_from_its_first_to_its_last_value():
    recipe = preset("gated_features")
    sigmas = schedule(100, recipe).column("sigma").tolist()
    assert sigmas[0] == pytest.approx(recipe.objective.first_sigma)
    assert math.isclose(sigmas[50], math.sqrt(recipe.objective.first_sigma * recipe.objective.last_sigma), rel_tol=1e-6)
    assert all(a > b for a, b in itertools.pairwise([*sigmas, recipe.objective.last_sigma]))


def test_presets_say_what_their_sources_say():
    writeup, repo = explorejepa_writeup(), explorejepa_repo()
    assert [stage.epochs for stage in writeup.stages] == [30, 5]
    first, second = (writeup.objective.weights(stage.weights) for stage in writeup.stages)
    assert first["variance"] > first["invariance"]
    assert second["invariance"] > first["invariance"]
    assert writeup.model.residual == "state"
    assert [(stage.epochs, *repo.objective.weights(stage.weights).values()) for stage in repo.stages] == [
        (50, 25, 25, 1),
        (50, 30, 25, 1),
    ]
    assert repo.model.residual == "sum"
    assert writeup.batch_size == repo.batch_size == 128
    assert (repo.optimizer.learning_rate, repo.optimizer.weight_decay, repo.optimizer.clip_norm) == (5e-4, 3e-4, 0.5)


def test_unknown_preset_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=f"--preset: got 'best', expected one of {', '.join(sorted(PRESETS))}"):
        preset("best")


@pytest.mark.parametrize(
    ("old", "new"),
    [("wall_apart", "gated_convnext"), ("features20k", "gated_features"), ("pixels300k", "gated_pixels")],
)
def test_presets_are_found_under_the_names_that_they_had(old, new):
    assert preset(old) == preset(new)
    assert old not in PRESETS

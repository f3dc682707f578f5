"""Learning rate and stages as functions of the step."""

import itertools
import math

import pytest

from jepa_fast.config import Recipe, Stage
from jepa_fast.engine.schedule import schedule_table
from jepa_fast.presets import PRESETS, explorejepa_repo, explorejepa_writeup, features20k, preset


def test_learning_rate_falls_from_base_to_zero_along_a_cosine():
    rates = schedule_table(100, Recipe())[:, 0].tolist()
    assert math.isclose(rates[0], 5e-4, rel_tol=1e-7)
    assert math.isclose(rates[50], 2.5e-4, rel_tol=1e-7)
    assert 0 < rates[99] < 2e-7
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("steps", [2, 7, 100, 1149 * 35])
def test_stages_share_the_steps_in_proportion_to_their_epochs(steps):
    recipe = Recipe(stages=(Stage(30, 1, 0, 0), Stage(5, 2, 0, 0)))
    stages = schedule_table(steps, recipe)[:, 1].tolist()
    assert stages == sorted(stages)
    assert stages.count(1) == math.ceil(steps * 30 / 35)


def test_the_width_of_the_one_step_likelihood_falls_from_its_first_to_its_last_value():
    recipe = features20k()
    widths = schedule_table(100, recipe)[:, 2].tolist()
    assert widths[0] == pytest.approx(recipe.energy.first_width)
    assert math.isclose(widths[50], math.sqrt(recipe.energy.first_width * recipe.energy.last_width), rel_tol=1e-6)
    assert all(a > b for a, b in itertools.pairwise([*widths, recipe.energy.last_width]))


def test_presets_say_what_their_sources_say():
    writeup, repo = explorejepa_writeup(), explorejepa_repo()
    assert [stage.epochs for stage in writeup.stages] == [30, 5]
    first, second = writeup.stages
    assert first.variance > first.invariance
    assert second.invariance > first.invariance
    assert writeup.model.residual == "state"
    assert [(s.epochs, s.invariance, s.variance, s.covariance) for s in repo.stages] == [
        (50, 25, 25, 1),
        (50, 30, 25, 1),
    ]
    assert repo.model.residual == "sum"
    assert writeup.batch_size == repo.batch_size == 128
    assert (repo.optimizer.learning_rate, repo.optimizer.weight_decay, repo.optimizer.clip_norm) == (5e-4, 3e-4, 0.5)


def test_unknown_preset_is_refused_with_the_names_there_are():
    with pytest.raises(ValueError, match=f"--preset: got 'best', expected one of {', '.join(sorted(PRESETS))}"):
        preset("best")

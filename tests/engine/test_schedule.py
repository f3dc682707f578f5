"""Learning rate and stages as functions of the step."""

import itertools
import math

import pytest

from jepa_fast.config import Recipe, Stage
from jepa_fast.engine.schedule import schedule_table, stage_at
from jepa_fast.presets import explorejepa_repo, explorejepa_writeup, preset


def test_learning_rate_falls_from_base_to_zero_along_a_cosine():
    rates = schedule_table(100, Recipe())[:, 0].tolist()
    assert math.isclose(rates[0], 5e-4, rel_tol=1e-7)
    assert math.isclose(rates[50], 2.5e-4, rel_tol=1e-7)
    assert 0 < rates[99] < 2e-7
    assert all(a > b for a, b in itertools.pairwise(rates))


@pytest.mark.parametrize("steps", [2, 7, 100, 1149 * 35])
def test_stages_share_the_steps_in_proportion_to_their_epochs(steps):
    recipe = Recipe(stages=(Stage(30, 1, 0, 0), Stage(5, 2, 0, 0)))
    stages = [stage_at(step, steps, recipe).invariance for step in range(steps)]
    assert stages == sorted(stages)
    assert stages.count(1) == math.ceil(steps * 30 / 35)
    assert schedule_table(steps, recipe)[:, 1].tolist() == stages


def test_no_stage_lies_beyond_the_last_step():
    with pytest.raises(ValueError, match="step: got 10, expected less than 10"):
        stage_at(10, 10, Recipe())


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
    with pytest.raises(
        ValueError, match="--preset: got 'best', expected one of demo, explorejepa_repo, explorejepa_writeup"
    ):
        preset("best")
